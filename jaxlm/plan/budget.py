"""Plan a compute budget: the parameters, tokens and loss that it buys, and what a model costs.

Answers come from the laws of `scaling_laws`. They are measured on decoders, where C = 6 N D. The
FLOPs of encoders and encoder-decoders are counted for their shape; parameters and tokens stand in
the law's ratio. Nothing here imports jax.
"""

import math
from dataclasses import replace
from functools import lru_cache

from jaxlm.accelerators import Accelerator
from jaxlm.config import UserError
from jaxlm.config.model import Family
from jaxlm.plan.question import DataPlan, Machines, Overtraining, Plan, Question
from jaxlm.plan.scaling_laws import (
    FLOPS_PER_PARAMETER,
    LAWS,
    REPEATED_DATA,
    Allocation,
    ParametricLaw,
    PowerLaw,
)
from jaxlm.plan.shapes import Shape, find_shape

PETAFLOP_DAY = 1e15 * 86_400  # FLOPs
DEFAULT_MFU = 0.4
SIZES = (2, 1, 1 / 2, 1 / 4, 1 / 8)  # of the optimal parameters, in the table of overtraining


def plan_budget(question: Question) -> Plan:
    """Answer a question about a budget, a model or a loss.

    Raises UserError where the numbers contradict each other or have no answer.
    """
    question = settle_flops(question)
    data = limit_data(question)
    try:
        chosen = choose(question, data)
        approaches = find_optima(question, chosen)
    except ValueError as error:  # of a law
        raise UserError(f"--loss: {error}") from error
    if question.data_tokens is not None and data is None:
        data = repeat_data(chosen, question.data_tokens)

    flops = question.flops
    if flops is None:
        flops = question.executed * count_flops(question, chosen)
    shape, refusal = find_question_shape(question, chosen.parameters)
    plan = Plan(
        question=question,
        flops=flops,
        approaches=approaches,
        chosen=chosen,
        shape=shape,
        shape_refusal=refusal,
        overtraining=overtrain(question, chosen),
        data=data,
        machines=None,
    )

    needed = flops if question.is_budget else plan.exact_flops or flops
    return plan._replace(machines=plan_machines(question, needed))


def settle_flops(question: Question) -> Question:
    """Return the question with the FLOPs of its GPUs and days, where these are the budget.

    They are where nothing else decides how much is computed.
    """
    sizes = (question.parameters, question.tokens, question.loss)
    known = sum(size is not None for size in sizes)
    check_contradictions(question, known)
    if question.is_budget or question.loss is not None or known == 2:
        return question

    if question.days is not None and question.accelerator is not None:
        gpus, mfu = question.gpus or 1, question.mfu or DEFAULT_MFU
        flops = gpus * question.days * 86_400 * mfu * peak_flops(question.accelerator)
        return replace(question, flops=flops, gpus=gpus, mfu=mfu)
    if not known:
        raise UserError(
            "nothing to plan from: give --flops, --pf-days, --gpus with --days, --parameters, "
            "--tokens or --loss"
        )
    return question


def check_contradictions(question: Question, known: int) -> None:
    """Raise UserError for more numbers than a plan has freedom for; `known` are sizes and loss."""
    if known == 3:
        raise UserError(
            "--loss: --parameters and --tokens decide it already; leave one of them out"
        )
    if question.is_budget and question.loss is not None:
        raise UserError("--loss: the budget decides it already; leave one of them out")
    if question.is_budget and known == 2:
        raise UserError(
            "--tokens: the budget and --parameters decide them already; leave one of them out"
        )

    if question.accelerator is None:
        for name in ("days", "mfu", "price"):
            if getattr(question, name) is not None:
                raise UserError(f"--{name}: needs --gpus, such as --gpus 8xh100")
    if question.loss is not None and not isinstance(question.law, ParametricLaw):
        raise UserError(f"--approach {question.approach}: predicts no loss; take 3 or refit")


# Parameters, tokens and FLOPs


@lru_cache(maxsize=256)
def family_ratio(parameters: float, family: Family, vocabulary_size: int, length: int) -> float:
    """Return the training FLOPs per parameter and token of a family's shape of this size."""
    shape = find_shape(
        parameters, family=family, vocabulary_size=vocabulary_size, sequence_length=length
    )
    return shape.flops_per_token / shape.parameters


def flops_per_parameter(question: Question, parameters: float) -> float:
    """Return the training FLOPs per parameter and token: 6 for decoders, else as counted."""
    if question.family == "decoder":
        return FLOPS_PER_PARAMETER
    if question.shape is not None:
        return question.shape.flops_per_token / question.shape.parameters
    rounded = float(f"{parameters:.1e}")  # shapes move in steps, which would not let roots settle
    return family_ratio(rounded, question.family, question.vocabulary_size, question.length)


def count_flops(question: Question, allocation: Allocation) -> float:
    """Return the FLOPs that train an allocation, without recomputation."""
    ratio = flops_per_parameter(question, allocation.parameters)
    return ratio * allocation.parameters * allocation.tokens


def optimum(question: Question, law: PowerLaw | ParametricLaw, flops: float) -> Allocation:
    """Return what training FLOPs are best spent on."""
    allocation = law.optimum(flops)
    if question.family == "decoder":
        return allocation

    # The ratio depends on the size and the size on the ratio. It changes slowly.
    for _ in range(4):
        ratio = flops_per_parameter(question, allocation.parameters)
        allocation = law.optimum(flops * FLOPS_PER_PARAMETER / ratio)
    return allocation


def parameters_for(question: Question, flops: float, tokens: float) -> float:
    """Return the parameters that training FLOPs pay for on this many tokens."""
    parameters = flops / FLOPS_PER_PARAMETER / tokens
    for _ in range(4):
        parameters = flops / flops_per_parameter(question, parameters) / tokens
    return parameters


def choose(question: Question, data: DataPlan | None) -> Allocation:
    """Return the parameters and tokens of the plan, with their loss.

    Raises ValueError for a loss out of reach.
    """
    law, loss_law = question.law, question.loss_law
    parameters, tokens, loss = question.parameters, question.tokens, question.loss
    if data is not None:
        return data.allocation

    if question.is_budget:
        flops = question.training_flops
        if parameters is not None:
            tokens = flops / flops_per_parameter(question, parameters) / parameters
        elif tokens is not None:
            parameters = parameters_for(question, flops, tokens)
        else:
            parameters, tokens, _ = optimum(question, law, flops)
    elif loss is not None:
        if parameters is not None:
            tokens = loss_law.tokens_for_loss(parameters, loss)
        elif tokens is not None:
            parameters = loss_law.parameters_for_loss(tokens, loss)
        else:
            parameters, tokens, _ = loss_law.optimum_for_loss(loss)
    elif tokens is None and parameters is not None:
        parameters, tokens, _ = law.optimum_for_parameters(parameters)
    elif parameters is None and tokens is not None:
        parameters, tokens, _ = law.optimum_for_tokens(tokens)

    assert parameters is not None and tokens is not None
    return loss_law.allocation(parameters, tokens)


def find_optima(question: Question, chosen: Allocation) -> dict[str, Allocation]:
    """Return the optimum of each law that has an answer.

    It is that of the budget, else of the loss, of the size or of the tokens that are asked about,
    else of the FLOPs of the plan.
    """
    optima = {}
    for name, law in LAWS.items():
        if question.is_budget:
            optima[name] = optimum(question, law, question.training_flops)
        elif question.loss is not None:
            if isinstance(law, ParametricLaw) and question.loss > law.E:
                optima[name] = law.optimum_for_loss(question.loss)
        elif question.tokens is None and question.parameters is not None:
            optima[name] = law.optimum_for_parameters(question.parameters)
        elif question.parameters is None and question.tokens is not None:
            optima[name] = law.optimum_for_tokens(question.tokens)
        else:
            optima[name] = optimum(question, law, count_flops(question, chosen))
    return optima


def find_question_shape(question: Question, parameters: float) -> tuple[Shape | None, str]:
    """Return the shape and '', or None and the reason why there is none."""
    if question.shape is not None:
        return question.shape, ""
    try:
        shape = find_shape(
            parameters,
            family=question.family,
            vocabulary_size=question.vocabulary_size,
            sequence_length=question.length,
        )
    except UserError as error:
        return None, str(error)
    return shape, ""


# Models that are smaller than the optimum, or short of data


def overtrain(question: Question, chosen: Allocation) -> list[Overtraining]:
    """Return what models of other sizes than the optimum reach with the FLOPs of the plan."""
    law, flops = question.loss_law, count_flops(question, chosen)
    best = optimum(question, law, flops)
    assert best.loss is not None

    rows = []
    for size in SIZES:
        parameters = size * best.parameters
        per_token = flops_per_parameter(question, parameters) * parameters
        other = law.allocation(parameters, flops / per_token)
        assert other.loss is not None
        try:
            compute = per_token * law.tokens_for_loss(parameters, best.loss) / flops
        except ValueError:
            compute = None
        rows.append(Overtraining(other, other.loss - best.loss, compute))
    return rows


def limit_data(question: Question) -> DataPlan | None:
    """Return the plan of a budget whose optimum reads more tokens than there are, else None."""
    sizes = (question.parameters, question.tokens)
    if question.data_tokens is None or not question.is_budget or any(sizes):
        return None

    # The law counts 6 N D. Its own FLOPs are those whose optimum costs the budget.
    flops = question.training_flops
    law_flops = optimum(question, REPEATED_DATA.law, flops).flops
    best = REPEATED_DATA.optimum(law_flops, question.data_tokens)
    if best.tokens <= question.data_tokens:
        return None
    return repeat_data(best, question.data_tokens, REPEATED_DATA.law.optimum(law_flops))


def repeat_data(
    chosen: Allocation, distinct: float, unlimited: Allocation | None = None
) -> DataPlan:
    """Return the data plan of a model; `unlimited` is None for the same model on new text."""
    loss = REPEATED_DATA.loss(chosen.parameters, chosen.tokens, distinct)
    if unlimited is None:
        unlimited = REPEATED_DATA.law.allocation(chosen.parameters, chosen.tokens)
    return DataPlan(
        distinct=distinct,
        allocation=chosen._replace(loss=loss),
        effective_tokens=REPEATED_DATA.effective_tokens(chosen.tokens, distinct),
        unlimited=unlimited,
    )


# GPUs, time and money


def peak_flops(accelerator: Accelerator) -> float:
    """Return the peak FLOP/s in the 16-bit dtype of the tensor cores."""
    return accelerator.peak_flops[accelerator.tensor_dtype]


def plan_machines(question: Question, flops: float) -> Machines | None:
    """Return how long GPUs take for `flops`, or how many it takes; None where none are named.

    With days and a number of GPUs the MFU is what is asked for. Raises UserError where that is
    above 1.
    """
    accelerator, gpus, days, mfu = (
        question.accelerator,
        question.gpus,
        question.days,
        question.mfu,
    )
    if accelerator is None:
        return None

    peak = peak_flops(accelerator)
    if gpus is not None and days is not None:
        needed = flops / (gpus * days * 86_400 * peak)
        if mfu is not None and abs(mfu / needed - 1) > 1e-9:
            raise UserError(
                f"--mfu: the FLOPs, --gpus and --days decide it already ({needed:.3g}); "
                "leave one of them out"
            )
        mfu = needed
    mfu = DEFAULT_MFU if mfu is None else mfu
    if mfu > 1:
        raise UserError(
            f"--days: {gpus:,} {accelerator.name} compute at most {flops / mfu:.3g} FLOPs in "
            f"that time, at their peak, but this takes {flops:.3g}"
        )

    hours = flops / (peak * mfu) / 3600
    if gpus is not None:
        days = hours / 24 / gpus
    elif days is not None:
        gpus = math.ceil(hours / 24 / days)
    cost = None if question.price is None else question.price * hours
    return Machines(accelerator, gpus, days, mfu, hours, cost)
