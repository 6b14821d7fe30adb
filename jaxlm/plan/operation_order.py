"""The order in which a compiled program runs its operations, as far as memory depends on it."""

import heapq
from collections import defaultdict, deque

from jaxlm.plan.operations import BARRIER, KERNELS, Operation, Program, Value

# In the scope of operations of the forward and of the backward pass.
FORWARD_NAME, BACKWARD_NAME = "jvp(", "transpose("

# In the scope of operations of layers.
BLOCK_NAME = "Block)"

# What a step does with gradients after the backward pass.
AT_THE_END = {"psum", "psum_invariant", "reduce_scatter"}


def order_operations(operations: list[Operation]) -> list[Operation]:
    """Return operations in the order in which they run.

    That is their own, but for the backward pass: before another layer begins, its operations run as
    soon as they can, since they free memory. So of two losses that don't depend on each other one
    is done with before the layers of the other begin.
    """
    makers = {value: index for index, o in enumerate(operations) for value in o.results}
    missing: list[set[int]] = []
    readers: dict[int, list[int]] = defaultdict(list)
    ready: list[int] = []
    for index, operation in enumerate(operations):
        missing.append({makers[v] for v in operation.operands if v in makers})
        for maker in missing[-1]:
            readers[maker].append(index)
        if not missing[-1] and BACKWARD_NAME in operation.scope:
            heapq.heappush(ready, index)

    order: list[Operation] = []
    done: set[int] = set()
    waiting = deque(range(len(operations)))
    while len(order) < len(operations):
        while waiting and waiting[0] in done:
            waiting.popleft()
        scope = operations[waiting[0]].scope if waiting else BACKWARD_NAME
        may_go_back = BACKWARD_NAME in scope or BLOCK_NAME in scope
        index = heapq.heappop(ready) if ready and may_go_back else waiting.popleft()
        if index in done:
            continue
        done.add(index)
        order.append(operations[index])
        for reader in readers[index]:
            missing[reader].discard(index)
            if not missing[reader] and BACKWARD_NAME in operations[reader].scope:
                heapq.heappush(ready, reader)
    return order


def deferred_products(program: Program) -> set[Operation]:
    """Return the products of the backward pass that XLA may put off to its end.

    They are the gradients of weights that nothing else in the backward pass waits for: those of the
    head. Layers hold theirs together by a barrier (`models.stack.in_turn`), or run in a loop.
    """
    if FORWARD_NAME in program.scope:  # a loop over layers
        return set()
    readers: dict[Value, list[Operation]] = defaultdict(list)
    for operation in program.operations:
        for value in operation.operands:
            readers[value].append(operation)

    def is_awaited(operation: Operation) -> bool:
        if operation.name in AT_THE_END:
            return False
        if operation.name in KERNELS or operation.name == BARRIER:
            return True
        return any(is_awaited(o) for value in operation.results for o in readers[value])

    found = set()
    for operation in reversed(program.operations):
        if FORWARD_NAME in operation.scope and BACKWARD_NAME not in operation.scope:
            break  # the backward pass of a first loss ends before the second one begins
        if operation.name == "dot_general" and not any(
            is_awaited(o) for value in operation.results for o in readers[value]
        ):
            found.add(operation)
    return found
