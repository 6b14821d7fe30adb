"""Logits, losses, gradients and optimizer steps against PyTorch, from the same weights.

Both sides compute in float32 and add up in different orders: logits with a standard deviation of 1 to 2 agree to about 1e-5, and
both are as far from float64. With weights as large as these small differences in the maths show too: BERT's norm epsilon in place of
RoBERTa's makes 1e-4, the other form of GELU 2e-3, ignored padding or a wrong scale 0.5 and more.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import model_references  # noqa: E402 (needs torch)
from support.cases import BATCH, LENGTH, VOCABULARY, Pair, real, samples  # noqa: E402
from support.decoder_cases import DECODERS  # noqa: E402
from support.encoder_cases import ENCODERS  # noqa: E402
from support.encoder_decoder_cases import ENCODER_DECODERS  # noqa: E402

from jaxlm import config, models, optim  # noqa: E402
from jaxlm.losses import loss_sums  # noqa: E402
from jaxlm.types import Batch, Tree, is_axes  # noqa: E402

LOGITS_TOLERANCE, LOSS_TOLERANCE = 2e-5, 5e-6
PAIRS: dict[str, Callable[[], Pair]] = DECODERS | ENCODERS | ENCODER_DECODERS


def peer_loss(logits: Any, batch: Batch) -> Any:
    """torch's mean cross-entropy over the targets that count."""
    labels = torch.from_numpy(
        np.where(np.asarray(batch.weights) > 0, np.asarray(batch.targets), -100)
    ).long()
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), labels.reshape(-1))


def our_loss(model: models.Model, params: Tree, batch: Batch) -> Any:
    sums = loss_sums(
        model.scores(model.head_weights(params), model.features(params, batch)),
        batch.targets,
        batch.weights,
    )
    return sums.loss / sums.count


def assert_same_tree(model: models.Model, params: Tree) -> None:
    """Every parameter of ours comes from the peer, with the right shape."""
    expected = jax.tree.map(lambda a: a.shape, jax.eval_shape(model.init, jax.random.key(0)))
    assert jax.tree.map(lambda a: a.shape, params) == expected


@pytest.mark.parametrize("name", PAIRS)
def test_logits_and_loss(name):
    """Logits at the positions that are not padding; what stands at the others is nobody's business."""
    pair = PAIRS[name]()
    batch, model = samples(pair.model), models.build(pair.model)
    params = pair.convert(model_references.weights(pair.peer))
    assert_same_tree(model, params)
    with torch.no_grad():
        theirs = pair.logits(batch)
        expected_loss = peer_loss(theirs, batch).item()
    ours = jax.jit(model.apply)(params, batch)
    assert ours.dtype == jnp.float32 and ours.shape == (BATCH, LENGTH, VOCABULARY)
    compared = real(batch.lengths, LENGTH)
    np.testing.assert_allclose(
        np.asarray(ours)[compared], theirs.numpy()[compared], rtol=0, atol=LOGITS_TOLERANCE
    )
    sums = loss_sums(ours, batch.targets, batch.weights)
    assert float(sums.loss / sums.count) == pytest.approx(expected_loss, rel=0, abs=LOSS_TOLERANCE)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "bert", "t5 1.0", "t5 1.1", "bart, scaled embeddings"]
)
def test_gradients(name):
    """Tensor by tensor and layer by layer, the difference is at most 1e-4 of the gradient's norm.

    Key biases have no true gradient (a softmax ignores what it adds to all scores): tensors below a thousandth of the global norm
    are compared at that scale.
    """
    pair = PAIRS[name]()
    batch, model = samples(pair.model), models.build(pair.model)
    peer_loss(pair.logits(batch), batch).backward()
    theirs = pair.convert(
        model_references.gradients(pair.peer), fill=0.0
    )  # rows that pad the vocabulary have no gradient
    params = pair.convert(model_references.weights(pair.peer))
    ours = jax.jit(jax.grad(lambda p: our_loss(model, p, batch)))(params)
    assert_same_tree(model, theirs)
    floor = 1e-3 * float(optax.tree.norm(theirs))

    def compare(path: tuple, mine: np.ndarray, other: np.ndarray) -> None:
        in_blocks = any(part.key == "blocks" for part in path)
        for layer, (a, b) in enumerate(
            zip(mine, other, strict=True) if in_blocks else [(mine, other)]
        ):
            error = np.linalg.norm(np.asarray(a) - b) / max(float(np.linalg.norm(b)), floor)
            assert error < 1e-4, f"{jax.tree_util.keystr(path)} layer {layer}: {error}"

    jax.tree_util.tree_map_with_path(compare, ours, theirs)


STEPS, WARMUP, PEAK, FINAL = 20, 5, 3e-3, 0.1


def peer_rate(index: int) -> float:
    decay = 0.5 * (1 + math.cos(math.pi * (index - WARMUP) / (STEPS - WARMUP)))
    return PEAK * (index + 1) / WARMUP if index < WARMUP else PEAK * (FINAL + (1 - FINAL) * decay)


def peer_adamw(peer: Any) -> Any:
    """Decay on everything but biases and norms, which are vectors but for T5's and BART's."""
    parameters = dict(peer.named_parameters())
    plain = {name for name, p in parameters.items() if p.ndim == 1 or "bias" in name}
    groups = [
        {"params": [p for name, p in parameters.items() if name not in plain], "weight_decay": 0.3},
        {"params": [parameters[name] for name in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.97), eps=1e-8)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5 1.1", "bart"])
def test_twenty_adamw_steps(name):
    """The same weights and batches stay together: only rounding may tell the losses apart (key biases drift: Adam makes steps of it)."""
    pair = PAIRS[name]()
    fields = {
        "learning_rate": PEAK,
        "warmup_steps": WARMUP,
        "final_learning_rate_ratio": FINAL,
        "weight_decay": 0.3,
        "beta2": 0.97,
    }
    model, params = models.build(pair.model), pair.convert(model_references.weights(pair.peer))
    optimizer = optim.build_optimizer(
        config.OptimizerConfig(**fields, schedule="cosine", gradient_clip=1.0), STEPS, model.axes
    )
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        loss, grads = jax.value_and_grad(lambda p: our_loss(model, p, batch))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, optax.tree.norm(grads)

    adamw, clipped = peer_adamw(pair.peer), 0
    for index in range(STEPS):
        batch = samples(pair.model, seed=index)
        for group in adamw.param_groups:
            group["lr"] = peer_rate(index)
        adamw.zero_grad()
        expected = peer_loss(pair.logits(batch), batch)
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(pair.peer.parameters(), 1.0).item()
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
        pair.convert(model_references.weights(pair.peer)),
        is_leaf=is_axes,
    )


def compare_weights(path: tuple, names: tuple, ours: Any, theirs: Any) -> None:
    """Without the rows that pad the vocabulary."""
    if path[-1].key == "key_bias":
        return
    if "vocabulary" in names:
        axis = names.index("vocabulary")
        ours, theirs = (np.moveaxis(np.asarray(a), axis, 0)[:VOCABULARY] for a in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=jax.tree_util.keystr(path))
