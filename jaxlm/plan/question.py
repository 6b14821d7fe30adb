"""A question about a compute budget, and the plan that answers it, as data."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxlm.accelerators import Accelerator
from jaxlm.config.model import Family
from jaxlm.plan.scaling_laws import LAWS, REFIT, Allocation, ParametricLaw, PowerLaw
from jaxlm.plan.shapes import Shape

# A backward pass costs two forward passes. Recomputation adds a third one to the three.
RECOMPUTATION = 4 / 3
SEQUENCE_LENGTHS: dict[str, int] = {"decoder": 2048, "encoder": 512, "encoder_decoder": 512}


@dataclass(frozen=True, kw_only=True)
class Question:
    """The numbers of a question that are known. None: asked for, or not of interest."""

    # A budget, as all FLOPs that are computed; with none, the others decide what it takes.
    flops: float | None = None
    parameters: float | None = None
    tokens: float | None = None
    loss: float | None = None  # nats per token
    data_tokens: float | None = None  # distinct tokens that there are

    family: Family = "decoder"
    vocabulary_size: int = 32_768
    sequence_length: int | None = None  # None: the usual one of the family
    shape: Shape | None = None  # of the model, where it is known; None: one is found
    recompute: bool = False  # the backward pass computes the forward pass again
    approach: str = "refit"  # whose optimum gets a shape

    accelerator: Accelerator | None = None
    gpus: int | None = None
    days: float | None = None
    # Share of the accelerator's 16-bit peak that all FLOPs reach, recomputed ones included
    mfu: float | None = None
    price: float | None = None  # of a GPU-hour

    @property
    def law(self) -> PowerLaw | ParametricLaw:
        """Return the law of the approach."""
        return LAWS[self.approach]

    @property
    def loss_law(self) -> ParametricLaw:
        """Return the law of the approach if it predicts losses, else the corrected fit."""
        return self.law if isinstance(self.law, ParametricLaw) else REFIT

    @property
    def is_budget(self) -> bool:
        """Return whether the FLOPs are known beforehand."""
        return self.flops is not None

    @property
    def training_flops(self) -> float:
        """Return the FLOPs of the budget that train, without those of recomputation."""
        assert self.flops is not None
        return self.flops / self.executed

    @property
    def length(self) -> int:
        """Return the tokens of a sample; the source's, of an encoder-decoder."""
        return self.sequence_length or SEQUENCE_LENGTHS[self.family]

    @property
    def executed(self) -> float:
        """Return how many FLOPs are computed for one of the training's own."""
        return RECOMPUTATION if self.recompute else 1.0


class Overtraining(NamedTuple):
    """A model of another size than the optimum, trained with the same FLOPs."""

    allocation: Allocation
    given_up: float  # nats per token, against the optimum
    compute: float | None  # FLOPs for the optimum's loss, as a multiple. None: no number of tokens


class DataPlan(NamedTuple):
    """A model trained on a limited number of distinct tokens."""

    distinct: float  # tokens that there are
    allocation: Allocation  # the loss is that of repeated text
    effective_tokens: float  # new tokens that are worth as much
    unlimited: Allocation  # with as much new text as it takes

    @property
    def epochs(self) -> float:
        """Return how often the text is read."""
        return self.allocation.tokens / self.distinct


class Machines(NamedTuple):
    """GPUs, time and money."""

    accelerator: Accelerator
    gpus: int | None  # None: any number
    days: float | None  # None: as the number of GPUs decides
    mfu: float
    hours: float  # of all GPUs together
    cost: float | None  # None: no price is known


class Plan(NamedTuple):
    """The answer to a question."""

    question: Question
    flops: float  # all that are computed
    approaches: dict[str, Allocation]  # the optimum of each law
    chosen: Allocation
    shape: Shape | None
    shape_refusal: str  # why there is no shape
    overtraining: list[Overtraining]
    data: DataPlan | None
    machines: Machines | None

    @property
    def exact_flops(self) -> float | None:
        """Return the FLOPs of the shape on the chosen tokens, counted product by product.

        Recomputed ones are included. None where there is no shape.
        """
        if self.shape is None:
            return None
        per_token = self.shape.flops_per_token * self.chosen.parameters / self.shape.parameters
        return self.question.executed * per_token * self.chosen.tokens
