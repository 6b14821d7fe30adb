"""Replaced-token detection: its loss, what is sampled, its gradients on meshes, and its config."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny
from support.tiny_models import lively_params

from jaxlm import config, detection, flops, models, objectives, optim, step
from jaxlm.config import ConfigError, ModelConfig, ObjectiveConfig, PrecisionConfig, TrainingConfig
from jaxlm.config import mesh as mesh_rules
from jaxlm.types import Batch

ROWS, LENGTH, PREDICTED, VOCABULARY = 8, 12, 4, 300
MODEL = ModelConfig(
    family="encoder",
    vocabulary_size=VOCABULARY,
    layers=1,
    width=32,
    heads=4,
    embedding_width=16,
    context_length=LENGTH,
    norm_placement="post",
    embedding_norm=True,
    token_types=2,
    activation="gelu",
    head_bias=True,
    head_transform=True,
    generator_share=0.5,
    initializer="normal",
)
LIKELY = 6  # tokens below it are those of the text
QUICK = {"xla_backend_optimization_level": 0}  # to compile takes much longer than to run
CONFIG = replace(
    tiny.CONFIG,
    model=MODEL,
    objective=ObjectiveConfig(kind="replaced_tokens"),
    data=config.DataConfig(sequence_length=LENGTH),
    training=TrainingConfig(steps=30, batch_size=ROWS, z_loss=0.01),
)


@cache
def batch() -> Batch:
    """Rows of unequal lengths with up to 4 targets each; the last row, as padding, has none."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(LENGTH // 2, LENGTH + 1, ROWS).astype(np.int32)
    text = rng.integers(1, LIKELY, (ROWS, LENGTH)).astype(np.int32)
    predict = np.stack([rng.permutation(LENGTH // 2)[:PREDICTED] for _ in range(ROWS)])
    predict = np.sort(predict, axis=1).astype(np.int32)
    weights = np.arange(PREDICTED) < np.array([4, 4, 3, 4, 2, 4, 1, 0])[:, None]
    targets = np.where(weights, np.take_along_axis(text, predict, axis=1), 0)
    tokens = text.copy()
    for row, kept in enumerate(weights):
        tokens[row, predict[row, kept]] = 0  # the mask
    predict = np.where(weights, predict, 0)
    return Batch(
        tokens=tokens,
        lengths=lengths,
        predict=predict,
        targets=targets,
        weights=weights.astype(np.float32),
    )


@cache
def params():
    """Smaller weights than in other tests, since the loss must be smooth; a few tokens are likely.

    So some of the samples are the text's own tokens.
    """
    lively = jax.device_get(lively_params(models.build(MODEL)))
    small = jax.tree.map(lambda w: (0.3 if w.ndim > 1 else 1.0) * np.array(w), lively)
    small["generator"]["head"]["vocabulary"]["bias"][1:LIKELY] += 6
    return small


ROW_KEYS = jax.random.split(jax.random.key(3), ROWS)


@cache
def outputs():
    """Return the sums, the sampled tokens, and the gradient of the detection's loss."""
    model = models.build(MODEL)

    def detection_loss(weights):
        _, sums = detection.replaced_token_loss(
            model, weights, batch(), ROW_KEYS, PREDICTED, z_loss=0.0
        )
        return sums.detection.loss, sums

    def compute(weights):
        (_, sums), gradient = jax.value_and_grad(detection_loss, has_aux=True)(weights)
        x = model.generator.features(weights, batch())
        scores = model.generator.apply(weights, batch())
        keys = detection.sampling_keys(batch(), detection.site_key(ROW_KEYS, detection.SAMPLING))
        head = model.generator.head_weights(weights)
        samples = [detection.sample_tokens(model.generator, head, x, keys, tile) for tile in (4, 2)]
        filled, _ = detection.fill_tokens(batch(), samples[0])
        return sums, gradient, scores, samples, filled.tokens, model.apply(weights, filled)

    return jax.device_get(jax.jit(compute, compiler_options=QUICK)(params()))


def test_the_loss_is_that_of_the_paper():
    """Equations of section 2 in float64, token by token."""
    sums, _, scores, (sampled, _), filled, logits = outputs()
    nll = judged = replaced = correct = masked_nll = 0.0
    scores = scores.astype(np.float64)
    for row in range(ROWS - 1):  # the last one has no target
        text = batch().tokens[row].copy()
        labels = np.zeros(LENGTH, bool)
        for number in range(int(batch().weights[row].sum())):
            place, target = batch().predict[row, number], batch().targets[row, number]
            s = scores[row, number]
            masked_nll += np.log(np.exp(s).sum()) - s[target]
            text[place] = sampled[row, number]
            labels[place] = sampled[row, number] != target
        np.testing.assert_array_equal(filled[row], text)

        for place in range(batch().lengths[row]):
            chance = 1 / (1 + np.exp(-float(logits[row, place, 0])))
            nll -= np.log(chance if labels[place] else 1 - chance)
            correct += (chance > 0.5) == labels[place]
            replaced += labels[place]
            judged += 1

    assert sums.loss == pytest.approx(masked_nll, rel=1e-5)
    assert sums.count == 22
    assert sums.detection.loss == pytest.approx(nll, rel=1e-4)
    assert sums.detection[1:] == (correct, replaced, judged)
    assert 0 < replaced < sums.count  # some samples are the text's own tokens


def test_no_gradient_of_the_detection_reaches_the_generator():
    _, gradient, *_ = outputs()
    assert optax.tree.norm(gradient["generator"]) == 0.0
    assert np.abs(gradient["discriminator"]["embedding"]["tokens"]).max() > 0


def test_samples_follow_the_key_alone():
    *_, (whole, tiled), _, _ = outputs()
    np.testing.assert_array_equal(whole, tiled)

    class Uneven:
        """A generator of three tokens, with probabilities 0.6, 0.3 and 0.1."""

        @staticmethod
        def scores(head, x):
            return jnp.broadcast_to(jnp.log(jnp.array([0.6, 0.3, 0.1])), (*x.shape[:2], 3))

    def draw(seed):
        keys = jax.random.split(jax.random.key(seed), (500, 8))
        x = jnp.zeros((500, 8, 1))
        generator: Any = Uneven
        return np.asarray(detection.sample_tokens(generator, None, x, keys, 8))

    first = draw(0)
    # 4000 draws: a standard deviation of at most 0.008.
    np.testing.assert_allclose(np.bincount(first.ravel()) / 4000, [0.6, 0.3, 0.1], atol=0.03)
    np.testing.assert_array_equal(first, draw(0))
    assert (first != draw(1)).any()


def computed(devices: int, compute: str = "float32", **fields):
    """Return (loss sums, gradients) on a mesh, on the host."""
    training = replace(CONFIG.training, microbatches=fields.pop("microbatches", 1))
    precision = PrecisionConfig(compute=compute)
    config = replace(CONFIG, training=training, precision=precision)
    parts = tiny.parts(devices, config, **fields)
    shardings = parts.placement.tree("parameters", params())
    placed = jax.device_put(params(), shardings)
    step_gradients = jax.jit(parts.gradients, compiler_options=QUICK)
    gradients = step_gradients(placed, parts.put(batch()), jax.random.key(5))
    return jax.device_get(gradients)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(
            dict(devices=4, data=2, fsdp=2, zero=3, microbatches=2), marks=pytest.mark.slow
        ),
        dict(devices=4, fsdp=2, tensor=2, zero=2),
    ],
    ids=["ZeRO 3, microbatches", "ZeRO 2, tensor"],
)
@pytest.mark.slow
def test_samples_and_gradients_are_those_of_one_device(mesh):
    """The rows have unequal numbers of targets and tokens, so that a mean of means shows."""
    expected, one_device = one_device_gradients()
    sums, gradients = computed(**mesh)
    assert sums.detection[1:] == expected.detection[1:]
    assert sums.loss == pytest.approx(expected.loss, rel=2e-6)
    assert sums.detection.loss == pytest.approx(expected.detection.loss, rel=2e-6)

    norm = optax.tree.norm(one_device)
    difference = optax.tree.norm(jax.tree.map(np.subtract, gradients, one_device))
    assert difference <= 1e-5 * norm


@cache
def one_device_gradients():
    return computed(1)


def test_the_gradient_is_that_of_both_means():
    """Along the gradient the loss, divided by targets and judged tokens, rises by its norm."""
    _, gradients = one_device_gradients()
    parts = tiny.parts(1, CONFIG)
    counts = step.Counts(float(batch().weights.sum()), float(batch().lengths[:-1].sum()))
    keys = step.fold_rows(jax.random.key(5), jnp.arange(ROWS))

    @partial(jax.jit, compiler_options=QUICK)
    def loss_at(distance):
        moved = jax.tree.map(lambda w, g: w + distance * g, params(), gradients)
        arguments = (parts.model, parts.config.training, 1 << 20, counts)
        return step.batch_loss(*arguments, moved, batch(), keys)[0]

    norm = float(optax.tree.norm(gradients))
    distance = 1e-3  # so near that no other token is sampled
    rise = (loss_at(distance / norm) - loss_at(-distance / norm)) / (2 * distance)
    assert float(rise) == pytest.approx(norm, rel=1e-2)


@pytest.mark.slow
def test_a_bfloat16_step_is_near_a_float32_step():
    """With the same samples: a choice that rounding turned would change the loss by a percent.

    Here the losses differ by 5e-4 at most, and the gradient by 0.7% of its norm.
    """
    expected, gradients = one_device_gradients()
    sums, rounded = computed(1, "bfloat16")
    assert sums.loss != expected.loss  # it did compute in bfloat16
    assert sums.loss == pytest.approx(expected.loss, rel=2e-3)
    assert sums.detection.loss == pytest.approx(expected.detection.loss, rel=2e-3)

    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(rounded))
    norm = float(optax.tree.norm(gradients))
    assert float(optax.tree.norm(rounded)) == pytest.approx(norm, rel=1e-2)
    assert optax.tree.norm(jax.tree.map(np.subtract, rounded, gradients)) <= 2e-2 * norm


@pytest.mark.slow
def test_training_lowers_the_loss_and_evaluation_is_the_same_each_time():
    parts = tiny.parts(1, CONFIG)
    optimizer = optim.build_optimizer(
        config.OptimizerConfig(learning_rate=3e-3, warmup_steps=1), 30, parts.model.axes
    )
    arguments = (CONFIG.training, parts.placement)
    update = step.train_step(parts.model, optimizer, *arguments, seed=0, compiler_options=QUICK)
    state = step.TrainState(jnp.int32(0), *starting_point(optimizer))
    evaluate = step.eval_step(parts.model, *arguments, state.params, compiler_options=QUICK)
    before = jax.device_get(evaluate(state.params, batch()))
    assert evaluate(state.params, batch()).detection == before.detection

    # Neither the order of the rows nor the rows beside them matter.
    other = jax.tree.map(lambda rows: np.roll(rows, 3, axis=0), batch())
    assert evaluate(state.params, other).detection[1:] == before.detection[1:]

    losses = []
    for _ in range(20):
        state, metrics = update(state, batch())
        losses.append(jax.device_get(metrics))
    assert losses[-1].loss < 0.6 * losses[0].loss
    first = losses[0].detection
    assert losses[0].loss == pytest.approx(first.generator_loss + 50 * first.loss, rel=1e-6)
    assert first.replaced == pytest.approx(22 / batch().lengths[:-1].sum(), abs=0.02)


def starting_point(optimizer):
    initial = jax.jit(models.build(MODEL).init)(jax.random.key(0))
    return initial, optimizer.init(initial)


def test_padding_and_rows_without_targets_are_not_judged():
    segments = np.array([[1, 1, 2, 0], [1, 2, 0, 0]])
    packed = Batch(tokens=np.zeros((2, 4)), segments=segments, weights=np.array([[1.0], [0.0]]))
    np.testing.assert_array_equal(detection.judged_tokens(packed), [[1, 1, 1, 0], [0, 0, 0, 0]])


def test_flops_are_those_of_the_products():
    """They are counted in the program: both networks forward, the table without padding."""
    shape = replace(MODEL, vocabulary_size=384, layers=2)
    model = models.build(shape)

    def forward(params, batch):
        filled, _ = detection.fill_tokens(batch, batch.targets)
        return model.generator.apply(params, batch), model.apply(params, filled)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    counted = tiny.product_flops(jax.make_jaxpr(forward)(shapes, batch()).jaxpr)
    assert counted == ROWS * flops.forward_flops(shape, LENGTH, predictions=PREDICTED)


# The config


def test_the_hidden_tokens_are_all_masked():
    example = objectives.example(CONFIG.objective, 128, 0)
    assert (np.take_along_axis(example.tokens, example.predict, axis=1) == 2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model=dict(generator_share=0.3)), "model.generator_share: 0.3 of width (32) is 9.6"),
        (dict(model=dict(generator_share=0.125)), "of heads (4) is 0.5, which is no whole number"),
        (dict(model=dict(head_transform=False)), "model.head_transform: false"),
        (dict(model=dict(generator_share=None)), "objective.kind='replaced_tokens' needs a gener"),
        (dict(objective=dict(kind="masked")), "objective.kind: 'masked' trains no generator"),
        (
            dict(objective=dict(kind="mixture", parts=(CONFIG.objective,))),
            "objective.parts: 'replaced_tokens' can't be part of a mixture",
        ),
    ],
)
def test_a_wrong_config_is_one_line(change, message):
    with pytest.raises(ConfigError) as error:
        ((section, fields),) = change.items()
        replace(CONFIG, **{section: replace(getattr(CONFIG, section), **fields)})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mesh_that_splits_some_widths_alone_is_refused():
    sizes = mesh_rules.mesh_sizes(config.ParallelConfig(fsdp=4, zero=3), 4)
    mesh_rules.check_widths(sizes, MODEL, zero=3)
    odd = replace(MODEL, width=36, generator_share=0.5)  # 18 is no multiple of 4
    with pytest.raises(ConfigError, match=r"^parallel.fsdp: 4 divides some of the widths"):
        mesh_rules.check_widths(sizes, odd, zero=3)
