"""The section `adapter`: small matrices that are trained in place of the weights."""

import math
from typing import Literal

from jaxlm.config.fields import Count, PositiveFloat, ShareBelowOne, refuser, section

# The matrices of a block that can have adapters, by their part in it. qkv: query, key and value as
# one matrix, whose adapter has one A (GPT-2's c_attn in PEFT).
AdapterTarget = Literal["query", "key", "value", "qkv", "output", "gate", "up", "down"]


@section("adapter")
class AdapterConfig:
    """LoRA (arXiv 2106.09685): W + scale * A B is used in place of W, and A and B are trained.

    All other parameters are frozen, but for a classifier's. The scale is alpha / rank.
    """

    rank: Count = 0  # 0: no adapters
    alpha: PositiveFloat = 16.0
    dropout: ShareBelowOne = 0.0  # on the input of A
    targets: tuple[AdapterTarget, ...] = ("query", "value")
    rank_stabilised: bool = False  # the scale is alpha / sqrt(rank) (arXiv 2312.03732)
    # A trained norm of each output channel beside the direction W + scale * A B (arXiv 2402.09353)
    dora: bool = False
    # How the frozen matrices are kept. int8: those of the blocks are, and the tables are bfloat16
    base: Literal["float32", "bfloat16", "int8"] = "bfloat16"

    @property
    def scale(self) -> float:
        """Return the factor of A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def __post_init__(self):
        refuse = refuser("adapter")
        if not self.rank:
            return
        if not self.targets:
            refuse("targets", "names no matrix")
        if len(set(self.targets)) < len(self.targets):
            refuse("targets", f"names a matrix twice: {', '.join(self.targets)}")
        if "qkv" in self.targets and {"query", "key", "value"} & set(self.targets):
            refuse("targets", "'qkv' has query, key and value already")
