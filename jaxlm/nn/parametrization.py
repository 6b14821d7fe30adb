"""muP, the maximal update parametrization: how a model changes with its width.

Yang et al. 2022 (arXiv 2203.03466), in the form of table 8, which tied embeddings need. With
`m` for the width divided by the base width:

    weights                       initial std    rate of AdamW    beside it
    embeddings, positions         1              1
    matrices of width to width    1 / sqrt(m)    1 / m
    head, tied or not             1              1                its inputs are divided by m
    biases, norms, bias tables    1              1

Each is a factor to what "standard" has at the base width, where both are the same model. Scores of
attention are divided by the width of a head and not by its root (definition 4.1) where heads get
wider: with "mup_wide_heads". `optim/width_rates.py` has the learning rates of all optimizers.

Logits, and scores of wide heads, start smaller in wide models, by 1 / sqrt(m). Heads that start at
0 (appendix D.2; `model.zero_head`) start alike at all widths.
"""

from typing import Literal

from jaxlm.config import ModelConfig

# What a weight is to the table of initializers.
Role = Literal["embedding", "query", "input", "residual", "transform", "head", "relative"]

# Those whose inputs and outputs both grow with the width.
HIDDEN_ROLES = ("query", "input", "residual", "transform")


def std_factor(config: ModelConfig, role: Role) -> float:
    """Return the standard deviation of initial values, relative to that at the base width."""
    return config.width_ratio**-0.5 if role in HIDDEN_ROLES else 1.0


def attention_scale(config: ModelConfig) -> float:
    """Return the factor of the scores of attention."""
    ratio = config.head_width_ratio
    base_scale = config.attention_scale or (config.width_per_head / ratio) ** -0.5
    return base_scale / ratio


def embedding_scale(config: ModelConfig) -> float:
    """Return the factor of token embeddings."""
    return (config.width / config.width_ratio) ** 0.5 if config.embedding_scaling else 1.0


def head_scale(config: ModelConfig) -> float:
    """Return the factor of the features that the head multiplies."""
    ratio = config.width_ratio
    base_scale = (config.width / ratio) ** -0.5 if config.head_scaling else 1.0
    return base_scale / ratio
