"""Logits, losses, gradients and optimizer steps against PyTorch, from the same weights.

`support/parity.py` compares, and gives the reasons of its tolerances.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import model_references, parity
from support.cases import Pair
from support.decoder_cases import DECODERS
from support.encoder_cases import ENCODERS
from support.encoder_decoder_cases import ENCODER_DECODERS
from support.parity import VOCABULARY, our_loss, reference_logits, reference_loss
from support.torch_adamw import OUR_ADAMW, STEPS, reference_adamw, reference_rate

from jaxlm import models, optim
from jaxlm.types import Tree, is_axes

PAIRS: dict[str, Callable[[], Pair]] = DECODERS | ENCODERS | ENCODER_DECODERS


@pytest.mark.parametrize("name", PAIRS)
def test_logits_and_loss(name):
    """Logits at the positions that are not padding; those at padding are never read."""
    pair = PAIRS[name]()
    batch, model = parity.samples(pair.config), models.build(pair.config)
    params = pair.convert(model_references.weights(pair.reference))
    parity.assert_same_shapes(model, params)

    with torch.no_grad():
        theirs = reference_logits(pair.reference, batch)
    loss, ours = jax.jit(lambda p: our_loss(model, p, batch))(params)
    assert ours.dtype == jnp.float32 and ours.shape == (*batch.tokens.shape, VOCABULARY)
    assert parity.logits_difference(ours, theirs, batch) <= parity.LOGITS_TOLERANCE
    expected = reference_loss(theirs, batch).item()
    assert float(loss) == pytest.approx(expected, rel=0, abs=parity.LOSS_TOLERANCE)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "bert", "t5 1.0", "t5 1.1", "bart, scaled embeddings"]
)
def test_gradients(name):
    """Tensor by tensor and layer by layer."""
    pair = PAIRS[name]()
    batch, model = parity.samples(pair.config), models.build(pair.config)
    reference_loss(reference_logits(pair.reference, batch), batch).backward()
    # Rows that pad the vocabulary have no gradient.
    theirs = pair.convert(model_references.gradients(pair.reference), fill=0.0)
    parity.assert_same_shapes(model, theirs)

    params = pair.convert(model_references.weights(pair.reference))
    ours = jax.jit(jax.grad(lambda p: our_loss(model, p, batch)[0]))(params)
    difference = parity.gradient_difference(by_layer(ours), by_layer(theirs))
    assert difference <= parity.GRADIENT_TOLERANCE


def by_layer(tree: Tree) -> dict[str, np.ndarray]:
    """Return the tensors by their paths, those of the blocks layer by layer."""
    tensors = {}
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if not any(part.key == "blocks" for part in path):
            tensors[name] = np.asarray(array)
            continue
        for layer, values in enumerate(np.asarray(array)):
            tensors[f"{name} layer {layer}"] = values
    return tensors


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        pytest.param("bert", marks=pytest.mark.slow),
        "t5 1.1",
        pytest.param("bart", marks=pytest.mark.slow),
    ],
)
def test_twenty_adamw_steps(name):
    """From the same weights and on the same batches only rounding may tell the losses apart.

    Key biases drift: Adam makes steps of their rounding errors.
    """
    pair = PAIRS[name]()
    model, params = (
        models.build(pair.config),
        pair.convert(model_references.weights(pair.reference)),
    )
    optimizer = optim.build_optimizer(OUR_ADAMW, STEPS, model.axes)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        loss, grads = jax.value_and_grad(lambda p: our_loss(model, p, batch)[0])(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, optax.tree.norm(grads)

    adamw, clipped = reference_adamw(pair.reference), 0
    for index in range(STEPS):
        batch = parity.samples(pair.config, seed=index)
        for group in adamw.param_groups:
            group["lr"] = reference_rate(index)
        adamw.zero_grad()
        expected = reference_loss(reference_logits(pair.reference, batch), batch)
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(pair.reference.parameters(), 1.0).item()
        adamw.step()
        params, state, loss, our_norm = step(params, state, batch)
        clipped += norm > 1.0
        assert float(loss) == pytest.approx(expected.item(), rel=0, abs=1e-5), f"step {index}"
        assert float(our_norm) == pytest.approx(norm, rel=1e-4), f"step {index}"
    assert clipped > 0
    jax.tree_util.tree_map_with_path(
        compare_weights,
        model.axes,
        params,
        pair.convert(model_references.weights(pair.reference)),
        is_leaf=is_axes,
    )


def compare_weights(path: tuple, names: tuple, ours: Any, theirs: Any) -> None:
    """Compare one parameter without the rows that pad the vocabulary."""
    if path[-1].key == "key_bias":
        return
    if "vocabulary" in names:
        axis = names.index("vocabulary")
        ours, theirs = (np.moveaxis(np.asarray(a), axis, 0)[:VOCABULARY] for a in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=jax.tree_util.keystr(path))
