"""Estimate the time of a compiled step: a roofline of each kernel, in the compiler's order.

A kernel takes as long as its FLOPs or its memory traffic need, whichever is longer (Williams,
Waterman and Patterson, 2009, doi 10.1145/1498765.1498785), each at the share of the peak that real
steps reach. A collective runs beside the kernels that the compiler has scheduled between its start
and its end; the rest of its time is exposed. Imports no jax.
"""

from collections import Counter
from typing import NamedTuple

from jaxlm.accelerators import Accelerator
from jaxlm.hardware import Cluster
from jaxlm.plan.compiled_text import (
    COLLECTIVES,
    Collective,
    CompiledText,
    Instruction,
    called_computations,
    collective_of,
    groups_of,
)
from jaxlm.plan.kernel_costs import (
    Computation,
    attention_flops,
    attention_shape,
    has_bias,
    is_attention,
    product_flops,
    traffic_bytes,
)

# Instructions that start no kernel.
FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
# Dtypes of a program, as peaks are named. XLA computes float32 products as TF32 by default.
PEAK_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "tf32"}

# The parts of a step, whose seconds add up to it.
PRODUCTS, ATTENTION, OTHER = "products", "attention", "other kernels"
LAUNCHES, EXPOSED = "between kernels", "exposed communication"
PARTS = (PRODUCTS, ATTENTION, OTHER, LAUNCHES, EXPOSED)
# Counted beside them.
COMMUNICATION, FLOPS = "communication", "FLOPs"

Costs = dict[str, float]


class Efficiency(NamedTuple):
    """Shares of the peaks that kernels reach, and times that no peak explains.

    Measured on one H200 with the steps of docs/performance.md: GPT-2's products reach 71% with
    their biases and GELU, and 77% would explain Llama's step; attention with 64 channels a head
    runs at 246 TFLOP/s, with T5's bias at 137; GPT-2's other kernels use 65% of the bandwidth.
    Flash kernels of 128 channels as cuDNN's in FlashAttention-3 (arXiv 2407.08608, figures 5 and
    6). The links as NCCL's tests report: 230 of 300 GB/s in a server of A100, 340 of 400 between
    servers of H100 (NVIDIA/nccl issue 1218).
    """

    products: float = 0.74
    attention: float = 0.25  # heads of less than 128 channels
    wide_attention: float = 0.45
    biased_attention: float = 0.14
    memory: float = 0.7
    links: float = 0.8
    launch_seconds: float = 4e-6  # from the end of a kernel to the start of the next
    collective_seconds: float = 2e-5  # of a collective in a node without its bytes; twice between


MEASURED = Efficiency()


class Estimate(NamedTuple):
    """The time of a step on each GPU."""

    parts: dict[str, float]  # seconds by the names in PARTS
    communication_seconds: float  # of all collectives, hidden or not
    flops: int  # that a GPU executes in products and attention, recomputation included

    @property
    def seconds(self) -> float:
        """Return the seconds of the step."""
        return sum(self.parts.values())


def estimate_step(
    text: CompiledText, cluster: Cluster, efficiency: Efficiency = MEASURED
) -> Estimate:
    """Estimate the time of a compiled step on a cluster."""
    costs = Roofline(text, cluster, efficiency).computation_costs(text.entry)
    return Estimate(
        parts={name: costs[name] for name in PARTS},
        communication_seconds=costs[COMMUNICATION],
        flops=round(costs[FLOPS]),
    )


class Roofline:
    """The costs of the computations of a program: seconds by the names in PARTS, and two more."""

    def __init__(self, text: CompiledText, cluster: Cluster, efficiency: Efficiency):
        self.text, self.cluster, self.efficiency = text, cluster, efficiency
        self.costs: dict[str, Costs] = {}  # of the computations so far

    def computation_costs(self, name: str) -> Costs:
        """Return the costs of one run of a computation.

        Kernels run one after another, and so do collectives, beside the kernels. What waits for a
        collective waits for its end.
        """
        if name in self.costs:
            return self.costs[name]
        costs = no_costs()
        now, links_free = 0.0, 0.0
        ends: dict[str, float] = {}  # of the collectives that were started

        for instruction in self.text.computations[name].values():
            collective = self.find_collective(name, instruction)
            if collective is not None:
                seconds = collective_seconds(collective, self.cluster, self.efficiency)
                costs[COMMUNICATION] += seconds
                links_free = max(now, links_free) + seconds
                ends[instruction.name] = links_free
            elif instruction.opcode not in FREE:
                added = self.instruction_costs(name, instruction)
                add_costs(costs, added)
                now += step_seconds(added)

            awaited = ""
            if instruction.opcode.endswith("-done"):
                awaited = instruction.operands[0]
            elif collective is not None and not instruction.opcode.endswith("-start"):
                awaited = instruction.name
            exposed = max(0.0, ends.get(awaited, 0.0) - now)
            costs[EXPOSED] += exposed
            now += exposed

        self.costs[name] = costs
        return costs

    def find_collective(self, name: str, instruction: Instruction) -> Collective | None:
        """Return the collective that an instruction starts, itself or in what it calls."""
        if instruction.opcode.removesuffix("-start") in COLLECTIVES:
            return collective_of(self.text.computations[name], instruction, ())
        if instruction.opcode != "async-start":
            return None

        for _, called in called_computations(instruction.attributes):
            for inner in self.text.computations.get(called, {}).values():
                if inner.opcode in COLLECTIVES:
                    return collective_of(self.text.computations[called], inner, ())
        return None

    def instruction_costs(self, name: str, instruction: Instruction) -> Costs:
        """Return the costs of an instruction that is no collective."""
        called = called_computations(instruction.attributes)
        if instruction.opcode == "while":
            (body,) = [computation for key, computation in called if key == "body"]
            costs = no_costs()
            add_costs(costs, self.computation_costs(body), self.text.trips(name, instruction))
            return costs
        if instruction.opcode == "conditional":
            branches = [self.computation_costs(branch) for key, branch in called if key == "branch"]
            return max(branches, key=step_seconds)
        if instruction.opcode in ("call", "async-start"):
            return self.computation_costs(called[0][1])
        if instruction.opcode.endswith(("-done", "-update")):
            return no_costs()
        return self.kernel_costs(name, instruction)

    def kernel_costs(self, name: str, instruction: Instruction) -> Costs:
        """Return the costs of a kernel."""
        gpu, efficiency, costs = self.cluster.accelerator, self.efficiency, no_costs()
        costs[LAUNCHES] = efficiency.launch_seconds
        traffic = traffic_bytes(self.text, name, instruction)
        memory_seconds = traffic / (efficiency.memory * gpu.memory_bandwidth)

        if is_attention(instruction):
            computation = self.text.computations[name]
            dtype = computation[instruction.operands[0]].arrays[0].dtype
            share = attention_share(efficiency, computation, instruction)
            costs[FLOPS] = attention_flops(computation, instruction)
            seconds = costs[FLOPS] / (share * peak_of_dtype(gpu, dtype))
            costs[ATTENTION] = max(seconds, memory_seconds)
            return costs

        by_dtype = product_flops(self.text, name, instruction)
        seconds = 0.0
        for dtype, flops in by_dtype.items():
            seconds += flops / (efficiency.products * peak_of_dtype(gpu, dtype))
        costs[FLOPS] = by_dtype.total()
        costs[PRODUCTS if by_dtype else OTHER] = max(seconds, memory_seconds)
        return costs


def no_costs() -> Costs:
    """Return costs of nothing."""
    return dict.fromkeys((*PARTS, COMMUNICATION, FLOPS), 0.0)


def add_costs(costs: Costs, added: Costs, times: int = 1) -> None:
    """Add other costs to `costs`, so many times."""
    for name, value in added.items():
        costs[name] += times * value


def step_seconds(costs: Costs) -> float:
    """Return the seconds that the step takes longer by these costs."""
    return sum(costs[part] for part in PARTS)


def attention_share(
    efficiency: Efficiency, computation: Computation, instruction: Instruction
) -> float:
    """Return the share of the peak that a flash kernel reaches."""
    if has_bias(instruction):
        return efficiency.biased_attention
    *_, width = attention_shape(computation, instruction)
    return efficiency.wide_attention if width >= 128 else efficiency.attention


def peak_of_dtype(gpu: Accelerator, dtype: str) -> float:
    """Return the peak FLOP/s of products in a dtype of a program ("bf16").

    What the tensor cores lack runs in float32.
    """
    return gpu.peak_flops.get(PEAK_NAMES.get(dtype, "float32"), gpu.peak_flops["float32"])


def collective_seconds(
    collective: Collective, cluster: Cluster, efficiency: Efficiency = MEASURED
) -> float:
    """Return the seconds of a collective, as rings of NCCL need them.

    Each GPU of a group of n sends (n - 1) / n of the bytes, in an all-reduce twice. Rings go
    through all GPUs of a node before they leave it, so those of a group share the network links of
    all its GPUs in a node.
    """
    size, gpu = collective.group, cluster.accelerator
    if size == 1:
        return 0.0
    sent = collective.bytes * (size - 1) / size
    if collective.kind == "all-reduce":
        sent *= 2
    if collective.kind == "collective-permute":  # to one other GPU
        sent = collective.bytes

    groups = groups_of(collective.line) if "replica_groups=" in collective.line else [[0, size - 1]]
    members = Counter(number // cluster.gpus_per_node for number in groups[0])
    seconds = 0.0
    if max(members.values()) > 1:
        seconds = sent / (efficiency.links * gpu.node_bandwidth)
    if len(members) > 1:
        network = min(members.values()) * gpu.network_bandwidth
        seconds = max(seconds, sent / (efficiency.links * network))
    return seconds + efficiency.collective_seconds * min(2, len(members))
