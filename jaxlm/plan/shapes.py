"""Concrete shapes for a number of parameters: layers, width and heads of each family.

Parameters are all weights, the token table and an untied head included, as Chinchilla counts them.
Nothing here imports jax.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from jaxlm import communication, flops
from jaxlm.config import ConfigError, ModelConfig, ObjectiveConfig, UserError
from jaxlm.config.model import Family
from jaxlm.objectives.masked import target_budget
from jaxlm.objectives.span import fit_sizes

# Width per layer. Chinchilla's models (arXiv 2203.15556, table A9) go from 64 at 44M parameters
# over 69 at 1.1B and 90 at 6.8B to 102 at 70B.
ASPECT, ASPECT_PARAMETERS, ASPECT_POWER = 64.0, 1e8, 0.08
LEAST_ASPECT, MOST_ASPECT = 32.0, 128.0
ASPECT_TOLERANCE = 0.2  # of the logarithm of width / layers; as bad as
SIZE_TOLERANCE = 0.02  # of the logarithm of the parameters
WIDE = 1024  # from here on heads have 128 channels instead of 64
WIDTH_STEPS = ((8192, 1024), (4096, 512), (2048, 256), (WIDE, 128), (0, 64))  # from a width on
SMALLEST_WIDTH = 64
MOST_LAYERS = 512
MOST_PARAMETERS = 1e15
TIED_FROM = 0.1  # share of the parameters from which a head of its own is left out


class Sample(NamedTuple):
    """Tokens of one sample in training."""

    length: int  # of the stack with the head
    source_length: int  # of an encoder-decoder's encoder; 0: none
    predictions: int  # positions that the head sees

    @property
    def tokens(self) -> int:
        """Return the tokens that the model reads, both stacks together."""
        return self.length + self.source_length


class Shape(NamedTuple):
    """A model, and the samples that it is trained on."""

    config: ModelConfig
    sample: Sample
    parameters: int  # all of them, the vocabulary's included

    @property
    def vocabulary_parameters(self) -> int:
        """Return the parameters of the token table, and of the head where that is another."""
        tables = 1 if self.config.tied_head or self.config.is_classifier else 2
        return tables * self.config.vocabulary_size * self.config.token_width

    @property
    def flops_per_token(self) -> float:
        """Return the exact training FLOPs per token read, without recomputation."""
        return flops.training_flops(self.config, *self.sample) / self.sample.tokens


def find_shape(
    parameters: float, *, family: Family, vocabulary_size: int, sequence_length: int
) -> Shape:
    """Return the shape nearest to this many parameters, with a usual ratio of width to layers.

    Decoders are built as Llama, encoders as ModernBERT without windows, encoder-decoders as T5 1.1
    with as many layers in both stacks. The source of an encoder-decoder has `sequence_length`
    tokens. Raises UserError where the vocabulary alone has more parameters, and for
    sizes out of all proportion.
    """
    if parameters > MOST_PARAMETERS:
        raise UserError(f"no shape has {parameters:.3g} parameters: at most {MOST_PARAMETERS:g}")
    aspect = ASPECT * (parameters / ASPECT_PARAMETERS) ** ASPECT_POWER
    aspect = min(max(aspect, LEAST_ASPECT), MOST_ASPECT)
    best, least = None, math.inf
    for width in widths(around=usual_width(parameters, aspect)):
        for layers in layers_near(width, parameters, family, vocabulary_size, sequence_length):
            config = build_config(
                family,
                layers=layers,
                width=width,
                vocabulary_size=vocabulary_size,
                sequence_length=sequence_length,
                parameters=parameters,
            )
            size = math.log(count_parameters(config) / parameters) / SIZE_TOLERANCE
            ratio = math.log(width / layers / aspect) / ASPECT_TOLERANCE
            error = size**2 + ratio**2
            if error < least:
                best, least = config, error

    if best is None:
        raise UserError(
            f"no shape has {parameters:.3g} parameters: a vocabulary of {vocabulary_size:,} takes "
            f"{vocabulary_size * SMALLEST_WIDTH:,} at a width of {SMALLEST_WIDTH}"
        )
    return Shape(best, build_sample(family, sequence_length), count_parameters(best))


def usual_width(parameters: float, aspect: float) -> float:
    """Return the width of a stack of 12 L W^2 parameters whose width is `aspect` times L."""
    return (parameters * aspect / 12) ** (1 / 3)


def widths(around: float) -> Iterator[int]:
    """Yield the widths that are tried, from a fifth of a usual one to twice as much.

    The heads of wide models are even in number, those of very wide ones multiples of 8, so that
    tensor parallelism can split them.
    """
    width = SMALLEST_WIDTH
    while width <= max(2 * around, SMALLEST_WIDTH):
        if width >= around / 5:
            yield width
        width += next(step for least, step in WIDTH_STEPS if width >= least)


def layers_near(
    width: int, parameters: float, family: Family, vocabulary_size: int, sequence_length: int
) -> list[int]:
    """Return the numbers of layers at this width that come nearest; empty where none does."""

    def count(layers: int) -> int:
        config = build_config(
            family,
            layers=layers,
            width=width,
            vocabulary_size=vocabulary_size,
            sequence_length=sequence_length,
            parameters=parameters,
        )
        return count_parameters(config)

    one, two = count(1), count(2)
    layers = 1 + (parameters - one) / (two - one)
    if not 0.5 <= layers <= MOST_LAYERS:
        return []
    return [max(1, round(layers))]


def build_config(
    family: Family,
    *,
    layers: int,
    width: int,
    vocabulary_size: int,
    sequence_length: int,
    parameters: float,
) -> ModelConfig:
    """Return the config of a shape. Norms have no biases, and no matrix has one."""
    unit = 256 if width >= WIDE else 128
    mlp_width = -(-8 * width // (3 * unit)) * unit  # 8/3 of the width, rounded up
    return ModelConfig(
        family=family,
        vocabulary_size=vocabulary_size,
        layers=layers,
        width=width,
        heads=width // (128 if width >= WIDE else 64),
        mlp_width=mlp_width,
        context_length=sequence_length,
        norm="rmsnorm",
        positions="relative" if family == "encoder_decoder" else "rotary",
        activation="silu" if family == "decoder" else "gelu_tanh",
        gated=True,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        tied_head=family == "encoder" or vocabulary_size * width > TIED_FROM * parameters,
        head_transform=family == "encoder",
        head_transform_bias=False,
        attention_scale=1.0 if family == "encoder_decoder" else None,
        initializer="t5" if family == "encoder_decoder" else "normal",
    )


def count_parameters(config: ModelConfig) -> int:
    """Return the parameters of a config that `build_config` has made."""
    matrices = sum(weights.total for weights in communication.model_weights(config))

    norms = 0
    for stack in config.stacks.values():
        sublayers = 3 if stack.family == "encoder_decoder" else 2
        norms += (sublayers * stack.layers + 1) * stack.width
        if stack.positions == "relative":
            norms += stack.relative_buckets * stack.heads
    if config.head_transform:
        norms += config.width
    return matrices + norms


def build_sample(family: Family, sequence_length: int) -> Sample:
    """Return the sizes of a sample under the family's usual objective.

    Decoders predict every token, encoders 15% of them (BERT), encoder-decoders the spans that were
    cut out of their source (T5: 114 tokens for a source of 512). Raises UserError for a length that
    is too short for one.
    """
    if family == "encoder":
        predictions = int(target_budget(sequence_length, ObjectiveConfig(kind="masked").noise))
        return Sample(sequence_length, 0, predictions)
    if family == "encoder_decoder":
        try:
            sizes = fit_sizes(sequence_length, ObjectiveConfig(kind="span"))
        except ConfigError as error:
            raise UserError(f"--sequence-length: {error.reason}") from error
        return Sample(sizes.target, sizes.source, sizes.target)
    return Sample(sequence_length, 0, sequence_length)
