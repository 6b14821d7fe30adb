"""Documents that share a row don't see each other, in any family and with any kind of positions."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.texts import END, FIRST_ORDINARY, SIZE, build_objective
from support.trees import random_params

from jaxlm import config, detection, models
from jaxlm.objectives.objective import Pieces
from jaxlm.types import Batch, Tree

LENGTH = 256  # long enough for the causal path to work in blocks of queries
SIZES: dict[str, Any] = {"vocabulary_size": SIZE, "layers": 1, "width": 16, "heads": 2}
CASES = {
    "causal, rotary": ("causal", {"positions": "rotary"}),
    "causal, ALiBi": ("causal", {"positions": "alibi"}),
    "causal, learned": ("causal", {"positions": "learned", "context_length": LENGTH}),
    "causal, sliding": ("causal", {"positions": "rotary", "sliding_window": 20}),
    "masked, learned": ("masked", {"positions": "learned", "context_length": LENGTH}),
    "masked, sinusoidal": ("masked", {"positions": "sinusoidal"}),
    "replaced tokens, learned": (
        "replaced_tokens",
        {
            "context_length": LENGTH,
            "embedding_width": 8,
            "head_transform": True,
            "generator_share": 0.5,
        },
    ),
    "span, relative": ("span", {"positions": "relative"}),
    "infilling, learned": ("infilling", {"positions": "learned", "context_length": LENGTH}),
}
FAMILIES = {"causal": "decoder", "masked": "encoder", "replaced_tokens": "encoder"}


def random_documents(*lengths: int) -> list[np.ndarray]:
    """Return documents of these lengths, each with its end of text."""
    rng = np.random.default_rng(sum(lengths))
    return [np.append(rng.integers(FIRST_ORDINARY, SIZE, n - 1), END) for n in lengths]


def build_pieces(documents: list[np.ndarray]) -> Pieces:
    """Return the documents as the pieces of one row."""
    tokens = np.concatenate(documents).astype(np.int32)
    return Pieces(
        tokens=tokens,
        previous=np.roll(tokens, 1),
        lengths=np.array([len(document) for document in documents]),
        rows=np.zeros(len(documents), np.int64),
        count=1,
    )


def pack(kind: str, *documents: np.ndarray) -> Batch:
    """Return the batch of one row that holds the documents."""
    packed = build_objective(kind, LENGTH).packed
    assert packed is not None
    return packed.make_batch(build_pieces(list(documents)), np.zeros(1, np.int64), 0)


def cut_out(batch: Batch, number: int) -> Batch:
    """Return the batch with one segment alone, at the start of its row."""
    fields = {}
    for field, value in batch._asdict().items():
        if value is not None:
            of_segment = batch.source_segments if "source" in field else batch.segments
            kept = value[of_segment == number]
            fields[field] = np.pad(kept, (0, value.shape[1] - len(kept)))[None]
    return Batch(**fields)


def network_logits(model: models.Model, params: Tree, batch: Batch) -> jax.Array:
    """Return the logits of a model, and those of its generator if it has one, [B, L, ...]."""
    networks = (model, model.generator) if model.generator else (model,)
    return jnp.concatenate([network.apply(params, batch) for network in networks], axis=-1)


@pytest.mark.parametrize("name", CASES)
def test_a_document_is_read_as_if_it_were_alone(name):
    """Another document beside it changes no bit; nor does its place, but for rounding."""
    kind, fields = CASES[name]
    first, second, third, other = random_documents(60, 90, 50, 90)
    one, changed = (
        pack(kind, first, middle, third)._replace(predict=None, targets=None, weights=None)
        for middle in (second, other)
    )
    rows = (
        np.concatenate(x)
        for x in zip(one, changed, cut_out(one, 3), strict=True)
        if x[0] is not None
    )
    names = [field for field, value in one._asdict().items() if value is not None]

    family = FAMILIES.get(kind, "encoder_decoder")
    model = models.build(config.ModelConfig(**SIZES, family=family, **fields))
    batch = Batch(**dict(zip(names, rows, strict=True)))
    logits = np.asarray(jax.jit(partial(network_logits, model))(random_params(model), batch))

    segments, is_last = batch.segments[0], np.diff(batch.segments[0], append=0) != 0
    assert np.array_equal(batch.segments[1], segments) and segments.max() == 3
    assert np.array_equal(logits[0, segments == 1], logits[1, segments == 1])
    assert np.array_equal(logits[0, segments == 3], logits[1, segments == 3])
    assert not np.allclose(
        logits[0, is_last & (segments == 2)], logits[1, is_last & (segments == 2)]
    )

    # The keys of the row are summed in another order: a few roundings of float32.
    alone = logits[2, batch.segments[2] == 3]
    np.testing.assert_allclose(logits[0, segments == 3], alone, atol=1e-5)


def test_an_evaluation_samples_in_a_document_as_if_it_were_alone():
    """Neither another document beside it nor its place in the row changes the noise."""
    first, second, third, other = random_documents(60, 90, 50, 90)
    one, changed = (pack("replaced_tokens", first, middle, third) for middle in (second, other))
    in_third = one.predict[0] >= 150
    alone = cut_out(one._replace(predict=None, targets=None, weights=None), 3)
    alone = alone._replace(predict=np.where(in_third, one.predict - 150, 0))
    assert np.array_equal(one.predict, changed.predict) and 3 < in_third.sum() < 20

    sampling_keys = jax.jit(lambda batch: jax.random.key_data(detection.sampling_keys(batch, None)))
    keys, keys_beside_other, keys_alone = (
        np.asarray(sampling_keys(batch))[0] for batch in (one, changed, alone)
    )
    in_second = (one.predict[0] >= 60) & ~in_third
    assert np.array_equal((keys == keys_beside_other).all(axis=-1), ~in_second)
    assert np.array_equal(keys[in_third], keys_alone[in_third])
    assert len(np.unique(keys[in_third], axis=0)) == in_third.sum()
