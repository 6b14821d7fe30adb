"""Bytes that a training step takes on each GPU, by what they are for, before there is a GPU.

The state is exact. What a step has beside it comes from the step's own program, traced for a
device of the mesh (`device_program`) and followed array by array (`liveness`).
"""

from dataclasses import dataclass, field, replace

from jaxlm.config import Config
from jaxlm.hardware import Accelerator, usable_memory
from jaxlm.plan.device_program import Device, StateBytes, TracedStep, measure_state, trace_step
from jaxlm.plan.liveness import EARLY, FORWARD, PEELED, Peak, find_peaks
from jaxlm.plan.operation_order import BACKWARD_NAME
from jaxlm.plan.operations import Value

# Layers of the two short stacks from which a longer one is extrapolated, in periods of windows.
# While a stack is unrolled, each part of a step takes a fixed part and one for each layer.
SHORT = (2, 4)

UPDATE = "optimizer"  # the part of a step after the gradients

NOTES = {
    "gradients": "of weights, which microbatches add up",
    "activations": "what the forward pass keeps for the backward pass",
    "logits": "scores over the vocabulary and their gradient",
    "batch": "tokens, targets and weights",
    "weight_copies": "weights in the dtype of products, and in the order of collectives",
    "gathered_weights": "of layers, from other GPUs",
    "next_turn": "what XLA has ready for the last microbatch while the others run",
    "temporary": "within a layer, forward or backward",
}
BUFFERS = ("batch", "weight_copies", "gathered_weights", "next_turn", "temporary")


@dataclass
class MemoryEstimate:
    """Bytes on each GPU when a step has most in memory."""

    parameters: int
    optimizer: int
    working: dict[str, int]  # the other bytes by the names of NOTES
    part: str  # of the step at which that is
    parts: dict[str, int]  # the most bytes in each part of a step
    kernels: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def gradients(self) -> int:
        return self.working.get("gradients", 0)

    @property
    def activations(self) -> int:
        return self.working.get("activations", 0)

    @property
    def logits(self) -> int:
        return self.working.get("logits", 0)

    @property
    def buffers(self) -> int:
        return sum(self.working.get(name, 0) for name in BUFFERS)

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + sum(self.working.values())


def estimate_memory(config: Config, gpus: int, accelerator: Accelerator) -> MemoryEstimate:
    """Return the bytes that a step of a config takes on each of `gpus` GPUs.

    Raises ConfigError where the config does not fit so many GPUs, ValueError where it asks for a
    kernel of attention that can't do its case.
    """
    state = measure_state(config, gpus)
    device = Device(compute_capability=str(accelerator.compute_capability))
    memory = usable_memory(accelerator)

    lengths = short_stacks(config, gpus)
    if lengths is None:
        step = trace_step(config, gpus, memory, device)
        parts = measure_parts(step)
    else:
        short, longer = (
            trace_step(with_layers(config, layers), gpus, memory, device) for layers in lengths
        )
        step = longer
        parts = extrapolate(measure_parts(short), measure_parts(longer), lengths, config)

    fixed = {"batch": state.batch, "weight_copies": state.copies}
    for working in parts.values():
        for name, size in fixed.items():
            working[name] = working.get(name, 0) + size
    parts[UPDATE] = update_bytes(state)

    held = state.parameters + state.optimizer
    totals = {part: held + sum(working.values()) for part, working in parts.items()}
    largest = max(totals, key=lambda part: totals[part])
    return MemoryEstimate(
        parameters=state.parameters,
        optimizer=state.optimizer,
        working=parts[largest],
        part=largest,
        parts=totals,
        kernels=step.kernels,
    )


def update_bytes(state: StateBytes) -> dict[str, int]:
    """Return the bytes beside the state while the optimizer computes the new one, in its place."""
    return {
        "gradients": state.gradients,
        "batch": state.batch,
        "weight_copies": state.copies,
        "temporary": state.matrices,
    }


# Parts of a step


def measure_parts(step: TracedStep) -> dict[str, dict[str, int]]:
    """Return the bytes in each part of a step, by the names of NOTES."""
    parts = {part: group_arrays(step, p) for part, p in find_peaks(step.gradients).items()}
    for part in (FORWARD, EARLY):
        if "logits" in parts[part]:
            parts[part]["logits"] += step.second_scores
    return parts


def group_arrays(step: TracedStep, peak: Peak) -> dict[str, int]:
    """Return the bytes of the arrays of a peak by what they are for."""
    groups: dict[str, int] = {}
    for value in peak.arrays:
        name = purpose(step, value)
        groups[name] = groups.get(name, 0) + value.bytes
    return groups


def purpose(step: TracedStep, value: Value) -> str:
    """Return what an array is for, as a name of NOTES."""
    if value.operation == PEELED:
        return "next_turn"
    if value.operation == "all_gather":
        return "gathered_weights"
    if value.shape in step.weight_shapes:
        is_copy = value.operation in ("convert_element_type", "slice") and value.is_derived
        return "weight_copies" if is_copy else "gradients"
    if len(value.shape) > 2 and value.shape[-1] == step.scores_width:
        return "logits"
    return "temporary" if BACKWARD_NAME in value.scope else "activations"


# Long stacks


def short_stacks(config: Config, gpus: int) -> tuple[int, int] | None:
    """Return the layers of two shorter stacks that tell of a long one; None where it is traced.

    A scanned stack is a short program, however many layers it has. The two stacks of an
    encoder-decoder must have the same layers.
    """
    model, parallel = config.model, config.parallel
    scanned = parallel.blocks == "scanned" or (
        parallel.blocks == "auto" and parallel.zero == 3 and gpus > 1
    )
    counts = {stack.layers for stack in model.stacks.values()}
    period = len(model.windows)
    short, longer = (n * period for n in SHORT)
    if scanned or len(counts) > 1 or model.layers % period or model.layers <= short + longer:
        return None
    return short, longer


def with_layers(config: Config, layers: int) -> Config:
    """Return the config with so many layers in each stack."""
    model = replace(config.model, layers=layers)
    if model.family == "encoder_decoder":
        model = replace(model, encoder_layers=None)
    return replace(config, model=model)


def extrapolate(
    short: dict[str, dict[str, int]],
    longer: dict[str, dict[str, int]],
    lengths: tuple[int, int],
    config: Config,
) -> dict[str, dict[str, int]]:
    """Return the bytes of each part of a step with all layers, from those of two shorter stacks."""
    scale = (config.model.layers - lengths[0]) / (lengths[1] - lengths[0])
    parts = {}
    for part, working in longer.items():
        before = short.get(part, {})
        parts[part] = {
            name: round(before.get(name, 0) + scale * (working.get(name, 0) - before.get(name, 0)))
            for name in {*before, *working}
        }
    return parts
