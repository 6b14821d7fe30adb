"""A budget's plan as the text and the JSON of `python -m jaxlm.plan budget`."""

from typing import Any

from jaxlm import hardware
from jaxlm.columns import align_columns
from jaxlm.plan.budget import DEFAULT_MFU, PETAFLOP_DAY, count_flops, peak_flops
from jaxlm.plan.question import Plan
from jaxlm.plan.scaling_laws import REPEATED_DATA, Allocation

SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
APPROACHES = {
    "1": "1 (training curves)",
    "2": "2 (isoFLOP profiles)",
    "3": "3 (parametric fit)",
    "refit": "refit (3, corrected)",
}
A100_SPARSE = 2  # times its peak, where half of the weights are zeros: a figure that some plan with
OFFERED = ("h100", "h200", "b200", "a100", "l40s", "rtx4090")  # GPUs of a plan that names none
MEASURED_FLOPS = (6e18, 3e21)  # Hoffmann et al. 2022, section 3.2
MOST_EPOCHS = 40  # beyond which Muennighoff et al. found no use in repeating (section 5)


def format_plan(plan: Plan) -> str:
    """Return the plan as lines and tables."""
    blocks = [
        format_budget(plan),
        format_approaches(plan),
        format_chosen(plan),
        format_data(plan),
        format_overtraining(plan),
        format_machines(plan),
    ]
    return "\n\n".join(block for block in blocks if block)


def short(value: float) -> str:
    """Return 67823000000 as '67.8B'."""
    for size, suffix in SCALES:
        if size <= value * 1.0005 < 1e16:
            return f"{float(f'{value / size:.3g}'):,g}{suffix}"
    return f"{value:.3g}"


def ratio(allocation: Allocation) -> str:
    """Return the tokens per parameter."""
    value = allocation.tokens / allocation.parameters
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_budget(plan: Plan) -> str:
    """Return the FLOPs, in the units that papers use."""
    days = plan.flops / PETAFLOP_DAY
    days_text = f"{days:,.0f}" if days >= 100 else f"{days:.3g}"
    lines = [f"{plan.flops:.4g} FLOPs = {days_text} petaFLOP/s-days"]
    if plan.question.recompute:
        training = plan.flops / plan.question.executed
        lines[0] += f", of which {training:.4g} train and the rest computes activations again"
    if plan.exact_flops is not None and not plan.question.is_budget:
        lines.append(f"{plan.exact_flops:.4g} FLOPs by counting every product of the model below")

    lines.append(f"1 petaFLOP/s-day is {PETAFLOP_DAY:.3g} FLOPs: a day of {unit_in_gpus()}")
    return "\n".join(lines)


def unit_in_gpus() -> str:
    """Return how many GPUs compute a petaFLOP/s-day in a day, at stated shares of their peak."""
    v100, a100 = (1e15 / peak_flops(hardware.find_accelerator(name)) for name in ("v100", "a100"))
    return (
        f"{v100:.2g} V100 or {a100:.2g} A100 at 100% MFU ({a100 / A100_SPARSE:.2g} by the A100's "
        f"peak with sparsity), of {v100 / DEFAULT_MFU:.2g} V100 or {a100 / DEFAULT_MFU:.2g} A100 "
        f"at {DEFAULT_MFU:.0%}"
    )


def format_approaches(plan: Plan) -> str:
    """Return the optimum by each law as a table."""
    lines = [["compute-optimal by approach", "parameters", "tokens", "per parameter", "loss"]]
    question = plan.question
    sizes = (question.parameters, question.tokens)
    has_flops = not question.is_budget and not all(sizes)  # else all have those of the plan
    if has_flops:
        lines[0].append("FLOPs")
    for name, optimum in plan.approaches.items():
        line = [APPROACHES[name], short(optimum.parameters), short(optimum.tokens), ratio(optimum)]
        line.append("" if optimum.loss is None else f"{optimum.loss:.3f}")
        if has_flops:
            line.append(f"{question.executed * count_flops(question, optimum):.3g}")
        lines.append(line)
    return "\n".join([align_columns(lines), *notes(plan)])


def notes(plan: Plan) -> list[str]:
    """Return what the laws don't cover of this plan."""
    lines = []
    if plan.question.family != "decoder":
        lines.append(
            "(the laws and their losses are those of decoders; the FLOPs are counted for "
            f"{plan.question.family.replace('_', '-')}s)"
        )
    low, high = MEASURED_FLOPS
    if not low <= plan.chosen.flops <= high:
        lines.append(f"(extrapolated: the laws were measured from {low:g} to {high:g} FLOPs)")
    return lines


def format_chosen(plan: Plan) -> str:
    """Return the parameters and tokens that are planned with, and their shape."""
    chosen, question, shape = plan.chosen, plan.question, plan.shape
    loss = "" if chosen.loss is None else f", loss {chosen.loss:.3f}"
    lines = [
        f"planned: {short(chosen.parameters)} parameters on {short(chosen.tokens)} tokens{loss} "
        f"({describe_source(plan)})"
    ]
    if shape is None:
        return "\n".join([*lines, plan.shape_refusal])

    config = shape.config
    stack = " in each stack" if config.family == "encoder_decoder" else ""
    gated = " (gated)" if config.gated else ""
    title = "of that size" if question.shape is None else "of the config"
    lines.append(
        f"{config.family} {title}: {config.layers} layers{stack}, width {config.width}, "
        f"{config.heads} heads, MLP of {config.hidden_width}{gated}: {shape.parameters:,} "
        "parameters"
    )
    tables = "token table, which is the head" if config.tied_head else "token table and head"
    if config.is_classifier:
        tables = "token table"
    share = shape.vocabulary_parameters / shape.parameters
    lines.append(
        f"  {config.vocabulary_size:,} tokens of vocabulary: {share:.1%} of the parameters in the "
        f"{tables}"
    )
    per_parameter = shape.flops_per_token / shape.parameters
    lines.append(
        f"  {shape.flops_per_token:.4g} training FLOPs per token of samples of "
        f"{describe_sample(plan)}, every product counted: {per_parameter:.2f} per parameter"
    )
    if question.is_budget and plan.exact_flops is not None:
        lines.append(
            f"  with this shape the budget pays for "
            f"{short(chosen.tokens * plan.flops / plan.exact_flops)} tokens"
        )
    return "\n".join(lines)


def describe_source(plan: Plan) -> str:
    """Return whose law has led to the plan."""
    question = plan.question
    if plan.data is not None and plan.data.epochs > 1 and question.is_budget:
        return REPEATED_DATA.law.source
    if question.parameters is not None and question.tokens is not None:
        return f"loss by {question.loss_law.source}"
    law = question.law.source
    if question.law is not question.loss_law:
        law += f"; loss by {question.loss_law.source}"
    return law


def describe_sample(plan: Plan) -> str:
    """Return the tokens of a sample in words."""
    assert plan.shape is not None
    sample = plan.shape.sample
    if sample.source_length:
        return f"{sample.source_length} + {sample.length} tokens"
    if sample.predictions < sample.length:
        return f"{sample.length} tokens, {sample.predictions} of them predicted"
    return f"{sample.length} tokens"


def format_data(plan: Plan) -> str:
    """Return what the limit on data costs."""
    data = plan.data
    if data is None:
        if plan.question.data_tokens is None:
            return ""
        return (
            f"data: {short(plan.question.data_tokens)} tokens are enough, "
            f"{plan.chosen.tokens / plan.question.data_tokens:.0%} of them are read"
        )

    tokens, loss = data.allocation.tokens, data.allocation.loss
    if data.epochs <= 1:
        return (
            f"data: {short(tokens)} of {short(data.distinct)} tokens are read "
            f"({data.epochs:.0%}), none of them twice"
        )
    assert loss is not None and data.unlimited.loss is not None
    lines = [
        f"data: {short(data.distinct)} tokens are read {data.epochs:.3g} times, which is worth "
        f"{short(data.effective_tokens)} new tokens",
        f"  loss {loss:.3f}; with as much new text as it takes {data.unlimited.loss:.3f}, from "
        f"{short(data.unlimited.parameters)} parameters on {short(data.unlimited.tokens)} tokens: "
        f"{loss - data.unlimited.loss:.3f} given up",
    ]
    if data.epochs > MOST_EPOCHS:
        lines.append(f"  beyond about {MOST_EPOCHS} epochs further compute brings next to nothing")
    return "\n".join(lines)


def format_overtraining(plan: Plan) -> str:
    """Return what models of other sizes reach with the same FLOPs, as a table."""
    lines = [["same FLOPs, other sizes", "tokens", "per parameter", "loss", "given up", "to equal"]]
    for row in plan.overtraining:
        other = row.allocation
        lines.append(
            [
                short(other.parameters),
                short(other.tokens),
                ratio(other),
                f"{other.loss:.3f}",
                f"{max(0.0, row.given_up):.3f}",
                "never" if row.compute is None else f"{row.compute:.2f} x",
            ]
        )
    note = f"(losses by {plan.question.loss_law.source}; to equal: FLOPs for the loss of the best)"
    return f"{align_columns(lines)}\n{note}"


def format_machines(plan: Plan) -> str:
    """Return GPUs, time and money."""
    machines = plan.machines
    if machines is None:
        flops = plan.flops if plan.question.is_budget else plan.exact_flops or plan.flops
        hours = []
        for name in OFFERED:
            peak = peak_flops(hardware.find_accelerator(name))
            hours.append(f"{flops / (DEFAULT_MFU * peak) / 3600:,.0f} {name}")
        return f"GPU-hours at {DEFAULT_MFU:.0%} MFU: {', '.join(hours)} (--gpus plans with one)"

    achieved = machines.mfu * peak_flops(machines.accelerator) / 1e12
    name = machines.accelerator.name
    gpus = "" if machines.gpus is None else f"{machines.gpus:,} {name}, "
    days = "" if machines.days is None else f"{machines.days:,.3g} days, "
    lines = [
        f"{gpus}{days}{machines.hours:,.0f} GPU-hours of {name} at {achieved:.3g} TFLOP/s "
        f"({machines.mfu:.1%} of the {machines.accelerator.tensor_dtype} peak)"
    ]
    if machines.cost is not None:
        lines.append(f"cost: {machines.cost:,.0f} at {plan.question.price:g} per GPU-hour")
    return "\n".join(lines)


# JSON


def build_plan_document(plan: Plan) -> dict[str, Any]:
    """Return the plan as `--json` writes it: FLOPs, tokens, days, shares of 1, nats per token."""
    question, machines = plan.question, plan.machines
    document: dict[str, Any] = {
        "family": question.family,
        "flops": plan.flops,
        "training_flops": plan.flops / question.executed,
        "exact_flops": plan.exact_flops,
        "petaflop_days": plan.flops / PETAFLOP_DAY,
        "approaches": {
            name: allocation_document(optimum) for name, optimum in plan.approaches.items()
        },
        "approach": question.approach,
        **allocation_document(plan.chosen),
        "shape": shape_document(plan),
        "overtraining": [
            allocation_document(row.allocation)
            | {"loss_given_up": row.given_up, "compute_to_equal": row.compute}
            for row in plan.overtraining
        ],
        "gpu_hours": None if machines is None else machines.hours,
    }
    if plan.data is not None:
        document["data"] = {
            "distinct_tokens": plan.data.distinct,
            "epochs": plan.data.epochs,
            "effective_tokens": plan.data.effective_tokens,
            **allocation_document(plan.data.allocation),
            "unlimited": allocation_document(plan.data.unlimited),
        }
    if machines is not None:
        document |= {
            "gpu": machines.accelerator.name,
            "gpus": machines.gpus,
            "days": machines.days,
            "mfu": machines.mfu,
            "cost": machines.cost,
        }
    return document


def allocation_document(allocation: Allocation) -> dict[str, float]:
    """Return an allocation; its loss is left out where the law has none."""
    document = {"parameters": allocation.parameters, "tokens": allocation.tokens}
    if allocation.loss is not None:
        document["loss"] = allocation.loss
    return document


def shape_document(plan: Plan) -> dict[str, Any] | None:
    """Return the shape, by the names of the config's fields."""
    if plan.shape is None:
        return None
    config = plan.shape.config
    return {
        "layers": config.layers,
        "width": config.width,
        "heads": config.heads,
        "mlp_width": config.hidden_width,
        "vocabulary_size": config.vocabulary_size,
        "tied_head": config.tied_head,
        "sequence_length": plan.question.length,
        "parameters": plan.shape.parameters,
        "vocabulary_parameters": plan.shape.vocabulary_parameters,
        "flops_per_token": plan.shape.flops_per_token,
    }
