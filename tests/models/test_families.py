"""Predicted positions, packing and padding in all families; and one token table or two."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.trees import random_params

from jaxlm import config, models
from jaxlm.losses import loss_sums
from jaxlm.types import Batch, Tree

VOCABULARY, LENGTH, SOURCE = 61, 9, 12
SIZES: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "layers": 1,
    "width": 24,
    "heads": 2,
    "context_length": SOURCE,
}
DECODER = config.ModelConfig(**SIZES, positions="rotary", norm="rmsnorm")
ENCODER = config.ModelConfig(
    **SIZES,
    family="encoder",
    norm_placement="post",
    token_types=2,
    head_transform=True,
    head_bias=True,
)
BOTH = config.ModelConfig(
    **SIZES, family="encoder_decoder", norm_placement="post", embedding_norm=True, head_scaling=True
)
FAMILIES = {model.family: model for model in (DECODER, ENCODER, BOTH)}


def random_batch(model: config.ModelConfig, rows: int = 2) -> Batch:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (rows, LENGTH), np.int32)
    types = rng.integers(0, 2, tokens.shape, np.int32) if model.token_types else None
    source = (
        rng.integers(0, VOCABULARY, (rows, SOURCE), np.int32)
        if model.family == "encoder_decoder"
        else None
    )
    return Batch(tokens, token_types=types, source=source)


@pytest.mark.parametrize("name", FAMILIES)
def test_predicted_positions_are_those_of_the_full_logits(name):
    """The second row predicts one position less and is filled up with position 0."""
    model = models.build(FAMILIES[name])
    params, batch = random_params(model), random_batch(FAMILIES[name])
    predict = np.array([[1, 4, 8], [2, 3, 0]], np.int32)
    targets, weights = (
        np.array([[5, 9, 60], [0, 7, 0]], np.int32),
        np.array([[1, 1, 1], [1, 1, 0]], np.float32),
    )
    everywhere, counted = np.zeros((2, LENGTH), np.int32), np.zeros((2, LENGTH), np.float32)
    np.put_along_axis(everywhere, predict, targets, axis=1)
    np.put_along_axis(counted, predict, weights, axis=1)

    def loss(params: Tree, batch: Batch) -> tuple[Any, Any]:
        logits = model.apply(params, batch)
        return loss_sums(logits, batch.targets, batch.weights).loss, logits

    def run(batch: Batch) -> tuple[Tree, np.ndarray]:
        gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params, batch)
        return gradients, np.asarray(logits)

    gradients, logits = run(batch._replace(predict=predict, targets=targets, weights=weights))
    full_gradients, full_logits = run(batch._replace(targets=everywhere, weights=counted))
    assert logits.shape == (2, 3, VOCABULARY)
    # The same sums over fewer rows at a time: a few roundings of float32.
    np.testing.assert_allclose(
        logits, np.take_along_axis(full_logits, predict[:, :, None], axis=1), atol=1e-5
    )
    scale = max(float(np.linalg.norm(g)) for g in jax.tree.leaves(full_gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), gradients, full_gradients
    )


def test_an_encoder_sees_all_of_its_text_and_nothing_of_the_padding():
    model = models.build(ENCODER)
    changed = np.tile(random_batch(ENCODER, rows=1).tokens, (LENGTH + 1, 1))
    changed[1:] = (changed[1:] + np.eye(LENGTH, dtype=np.int32)) % VOCABULARY
    lengths = np.full(LENGTH + 1, 6, np.int32)
    logits = np.asarray(
        jax.jit(model.apply)(
            random_params(model), Batch(changed, lengths, token_types=np.ones_like(changed))
        )
    )
    # What can't be seen contributes exact zeros, what can be seen more than rounding (1e-6).
    seen = np.abs(logits[1:, :6] - logits[0, :6]).max(-1).T > 1e-5
    np.testing.assert_array_equal(seen, np.tile(np.arange(LENGTH) < 6, (6, 1)))


@pytest.mark.parametrize("positions", ["learned", "relative"])
def test_packed_pairs_equal_separate_ones(positions):
    """Row 0 is two pairs in one; rows 1 and 2 are each of them, with padding behind it."""
    model = models.build(replace(BOTH, positions=positions))
    batch = random_batch(BOTH, rows=3)
    tokens, source, cut, source_cut = batch.tokens, batch.source, 4, 7
    assert source is not None
    tokens[1, :cut], tokens[2, : LENGTH - cut] = tokens[0, :cut], tokens[0, cut:]
    source[1, :source_cut], source[2, : SOURCE - source_cut] = (
        source[0, :source_cut],
        source[0, source_cut:],
    )

    def packed(length: int, at: int) -> tuple[np.ndarray, np.ndarray]:
        """Return segments and positions [3, length], two of them in row 0."""
        segments, within = (
            np.zeros((3, length), np.int32),
            np.tile(np.arange(length, dtype=np.int32), (3, 1)),
        )
        segments[0, at:], within[0, at:] = 1, np.arange(length - at)
        return segments, within

    (segments, within), (source_segments, source_within) = (
        packed(LENGTH, cut),
        packed(SOURCE, source_cut),
    )
    lengths, source_lengths = (
        np.array([LENGTH, cut, LENGTH - cut]),
        np.array([SOURCE, source_cut, SOURCE - source_cut]),
    )
    own = Batch(tokens, lengths, segments, within)
    batch = own._replace(
        source=source,
        source_lengths=source_lengths,
        source_segments=source_segments,
        source_positions=source_within,
    )
    both, first, second = np.asarray(jax.jit(model.apply)(random_params(model), batch))
    np.testing.assert_allclose(
        both, np.concatenate([first[:cut], second[: LENGTH - cut]]), atol=1e-5
    )


def test_two_equal_token_tables_are_one():
    """The same logits; the gradient of the one table is the sum of theirs."""
    shared, separate = models.build(BOTH), models.build(replace(BOTH, shared_embedding=False))
    params, batch = random_params(shared), random_batch(BOTH)
    table = params["encoder"]["embedding"]["tokens"]
    decoder = params["decoder"] | {"embedding": params["decoder"]["embedding"] | {"tokens": table}}
    direction = np.random.default_rng(1).normal(size=(2, LENGTH, VOCABULARY)).astype(np.float32)

    def run(model: models.Model, params: Tree) -> tuple[np.ndarray, Tree]:
        def dot(params: Tree) -> tuple[Any, Any]:
            logits = model.apply(params, batch)
            return (logits * direction).sum(), logits

        gradients, logits = jax.jit(jax.grad(dot, has_aux=True))(params)
        return np.asarray(logits), gradients

    logits, gradients = run(shared, params)
    two_logits, two = run(separate, params | {"decoder": decoder})
    np.testing.assert_array_equal(logits, two_logits)
    theirs = [np.asarray(two[stack]["embedding"]["tokens"]) for stack in ("encoder", "decoder")]
    assert all(np.abs(gradient).max() > 0.1 for gradient in theirs)
    np.testing.assert_allclose(
        gradients["encoder"]["embedding"]["tokens"], sum(theirs), rtol=1e-4, atol=1e-4
    )
    assert separate.parameter_count() - shared.parameter_count() == VOCABULARY * BOTH.width


def test_an_encoder_decoder_without_a_source_is_an_error():
    model = models.build(BOTH)
    with pytest.raises(ValueError, match=r"reads Batch\.source"):
        jax.eval_shape(
            model.apply,
            jax.eval_shape(model.init, jax.random.key(0)),
            Batch(np.zeros((1, LENGTH), np.int32)),
        )


def test_encoder_sizes_of_its_own():
    """Layers, heads and the MLP's width of each stack; what is not said is the decoder's."""
    sizes = {
        "layers": 3,
        "encoder_layers": 2,
        "heads": 4,
        "encoder_heads": 2,
        "encoder_mlp_width": 10,
    }
    shapes = jax.eval_shape(models.build(replace(BOTH, **sizes)).init, jax.random.key(0))
    encoder, decoder = (shapes[stack]["blocks"] for stack in ("encoder", "decoder"))
    assert encoder["attention"]["query_kernel"].shape == (2, 24, 2, 12) and encoder["mlp"][
        "up_kernel"
    ].shape == (2, 24, 10)
    assert decoder["attention"]["query_kernel"].shape == (3, 24, 4, 6) and decoder["mlp"][
        "up_kernel"
    ].shape == (3, 24, 96)
    assert (
        decoder["cross_attention"]["key_kernel"].shape == (3, 24, 4, 6)
        and "cross_attention" not in encoder
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_forms_of_gpus_compute_the_same(name, monkeypatch):
    """Products, sums, activations and losses that `platform_dependent` chooses off CPUs."""
    model = models.build(
        replace(FAMILIES[name], activation="gelu_tanh"), config.PrecisionConfig(compute="bfloat16")
    )
    params, batch = random_params(model), random_batch(FAMILIES[name])
    targets = np.random.default_rng(2).integers(0, VOCABULARY, (2, LENGTH), np.int32)

    def loss(params: Tree) -> Any:
        sums = loss_sums(model.apply(params, batch), targets, np.ones_like(targets, np.float32))
        return sums.loss / targets.size

    here = jax.jit(jax.value_and_grad(loss))(params)
    chosen = []

    def on_gpus(*operands: Any, default: Any, **_: Any) -> Any:
        chosen.append(default)
        return default(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", on_gpus)
    there = jax.jit(jax.value_and_grad(lambda p: loss(p)))(params)
    assert len(chosen) > 20

    # GELU is rounded after each operation there on CPUs, which GPUs leave out.
    np.testing.assert_allclose(here[0], there[0], rtol=2**-8)
    norms = [optax.tree_utils.tree_norm(gradients) for gradients in (here[1], there[1])]
    difference = optax.tree_utils.tree_norm(jax.tree.map(jnp.subtract, here[1], there[1]))
    assert difference < 2**-5 * norms[0] and norms[0] > 0
