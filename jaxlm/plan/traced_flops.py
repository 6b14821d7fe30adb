"""Exact counts of the FLOPs in the products of a traced training step.

`flops.training_flops` counts what a model's own products take, by the convention that all pairs of
positions have a score. The program differs from it in known ways, which are counted here.
"""

from dataclasses import replace

from jaxlm import flops
from jaxlm.config import ModelConfig
from jaxlm.nn.dot_product import visible_blocks
from jaxlm.nn.embedding import VOCABULARY_MULTIPLE
from jaxlm.nn.mask import Mask


def traced_training_flops(
    config: ModelConfig, length: int, source_length: int = 0, predictions: int | None = None
) -> int:
    """Count the FLOPs of all matrix products in the step's jaxpr for one sample, both passes.

    The arguments are those of `flops.training_flops`. Attention takes the XLA path, and nothing is
    computed again. Against the model's own products, the vocabulary is padded, blocks of scores
    that a causal mask hides as a whole are left out, windows of encoders are not, and the scores of
    an ELECTRA's generator are computed a second time, to sample from.
    """
    padding = -config.vocabulary_size % VOCABULARY_MULTIPLE
    padded = replace(config, vocabulary_size=config.vocabulary_size + padding)
    total = flops.training_flops(padded, length, source_length, predictions)

    # The encoder of an encoder-decoder reads its source, both of ELECTRA's networks the tokens.
    stacks = [(padded, length)]
    if source_length:
        stacks.append((padded.encoder, source_length))
    if padded.generator is not None:
        stacks.append((padded.generator, length))
    for stack, positions in stacks:
        for layer in range(stack.layers):
            window = stack.windows[layer % len(stack.windows)]
            counted = positions * flops.visible_positions(stack, positions, window)
            pairs = traced_pairs(stack, positions, window)
            total += 6 * flops.score_products(stack, 1, pairs - counted)

    if padded.generator is not None:
        predicted = length if predictions is None else predictions
        total += 2 * predicted * flops.generator_head_products(padded)
    return total


def traced_pairs(config: ModelConfig, length: int, window: int | None) -> int:
    """Return the pairs of positions whose scores a layer of the XLA path computes."""
    mask = Mask(causal=config.family != "encoder", window=window)
    return sum(len(rows) * len(keys) for rows, keys in visible_blocks(mask, length, length))
