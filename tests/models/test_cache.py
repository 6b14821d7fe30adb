"""Reading a text chunk by chunk into a cache gives the scores of reading it whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import config, models
from jaxlm.types import Batch

LENGTHS = np.array([9, 4, 7], np.int32)  # of the prompts
CHUNKS = (9, 2)

# Each a decoder with something that attention over a cache could get wrong.
DECODERS = {
    "learned": {},
    "rotary, groups, part of the channels": {
        "positions": "rotary",
        "kv_heads": 2,
        "rotary_share": 0.5,
    },
    "alibi, norm after the embedding": {"positions": "alibi", "embedding_norm": True},
    "relative": {"positions": "relative", "relative_buckets": 8, "relative_max_distance": 6},
    "windows": {
        "positions": "rotary",
        "sliding_window": 4,
        "attention_pattern": ("sliding", "full"),
    },
    "norms on both sides": {
        "norm": "rmsnorm",
        "norm_placement": "both",
        "norm_offset": True,
        "query_key_norm": True,
    },
    "post-norm": {"norm_placement": "post"},
    "parallel": {"residual": "parallel", "tied_head": False},
    "residual behind the norm, no first norm": {"residual": "normed", "first_norm": False},
    "narrow table": {"embedding_width": 8, "norm_placement": "post"},
}
ENCODER_DECODERS = {
    "t5": {
        "positions": "relative",
        "relative_buckets": 8,
        "relative_max_distance": 6,
        "encoder_layers": 1,
        "tied_head": False,
    },
    "bart": {
        "norm_placement": "post",
        "embedding_norm": True,
        "position_offset": 2,
        "encoder_heads": 2,
        "head_bias": True,
    },
}
CASES = {name: ("decoder", fields, False) for name, fields in DECODERS.items()}
CASES |= {name: ("encoder_decoder", fields, False) for name, fields in ENCODER_DECODERS.items()}
CASES |= {
    "rotary, as a list of layers": ("decoder", {"positions": "rotary"}, True),
    "bart, too": ("encoder_decoder", {}, True),
}


def build(family, fields):
    model = models.build(
        config.ModelConfig(
            family=family,
            vocabulary_size=61,
            layers=2,
            width=32,
            heads=4,
            context_length=24,
            **fields,
        )
    )
    params = model.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    # Values that make attention and every norm matter.
    noisy = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return model, jax.tree.unflatten(tree, noisy)


ALWAYS = (
    "learned",
    "relative",
    "windows",
    "bart",
    "rotary, as a list of layers",
)  # each takes seconds
CELLS = [
    pytest.param(*case, id=name, marks=[] if name in ALWAYS else [pytest.mark.campaign])
    for name, case in CASES.items()
]


@pytest.mark.parametrize(("family", "fields", "listed"), CELLS)
def test_chunks_score_as_the_whole(family, fields, listed):
    """Prompts of unequal length, padded to the right; then more tokens.

    Float32 sums in another order: 1e-4 of scores around 10.
    """
    model, params = build(family, fields)
    random = np.random.default_rng(0)
    totals = LENGTHS + sum(CHUNKS[1:])
    tokens = random.integers(0, 61, (3, max(totals))).astype(np.int32)
    source = {}
    if family == "encoder_decoder":
        source = {
            "source": random.integers(0, 61, (3, 11)).astype(np.int32),
            "source_lengths": np.array([11, 5, 8], np.int32),
        }
    whole = np.asarray(jax.jit(model.apply)(params, Batch(tokens, **source)))
    cache, done = model.cache(3, sum(CHUNKS) + 2), np.zeros(3, int)
    read_from = models.unstacked(params) if listed else params
    for number, size in enumerate(CHUNKS):
        lengths = LENGTHS if number == 0 else np.full(3, size, np.int32)
        chunk = np.zeros((3, size), np.int32)
        for row in range(3):
            chunk[row, : lengths[row]] = tokens[row, done[row] : done[row] + lengths[row]]
        scores, cache = jax.jit(model.decode)(
            read_from, cache, Batch(chunk, jnp.asarray(lengths), **(source if number == 0 else {}))
        )
        for row in range(3):
            expected = whole[row, done[row] : done[row] + lengths[row]]
            np.testing.assert_allclose(scores[row, : lengths[row]], expected, rtol=0, atol=1e-4)
        done += lengths
    np.testing.assert_array_equal(cache.filled_B, totals)


def test_rows_change_places():
    """A beam goes on from another beam's row."""
    model, params = build("decoder", {"positions": "rotary"})
    tokens = np.random.default_rng(0).integers(0, 61, (2, 6)).astype(np.int32)
    decode = jax.jit(model.decode)
    _, cache = decode(params, model.cache(2, 8), Batch(tokens[:, :5]))
    swapped, _ = decode(params, cache.take(jnp.array([1, 1])), Batch(tokens[[1, 1], 5:]))
    straight, _ = decode(params, cache, Batch(tokens[:, 5:]))
    np.testing.assert_array_equal(swapped[0], straight[1])
    np.testing.assert_array_equal(swapped[1], straight[1])


def test_the_scores_of_chosen_columns():
    model, params = build("decoder", {})
    tokens = np.random.default_rng(0).integers(0, 61, (3, 9)).astype(np.int32)
    decode = jax.jit(model.decode)
    last, _ = decode(
        params, model.cache(3, 9), Batch(tokens, LENGTHS, predict=LENGTHS[:, None] - 1)
    )
    every, _ = decode(params, model.cache(3, 9), Batch(tokens, LENGTHS))
    np.testing.assert_allclose(
        last[:, 0], every[np.arange(3), LENGTHS - 1], rtol=0, atol=1e-5
    )  # a product of another shape


def test_mistakes_are_named():
    decoder, params = build("decoder", {})
    with pytest.raises(ValueError, match="9 tokens, but the cache has room for 8"):
        decoder.decode(params, decoder.cache(3, 8), Batch(np.zeros((3, 9), np.int32)))
    both, params = build("encoder_decoder", {})
    with pytest.raises(ValueError, match=r"Batch\.source"):
        both.decode(params, both.cache(1, 8), Batch(np.zeros((1, 1), np.int32)))
    encoder = models.build(
        config.ModelConfig(family="encoder", vocabulary_size=61, layers=1, width=32, heads=4)
    )
    with pytest.raises(ValueError, match="no cache"):
        encoder.cache(1, 8)
