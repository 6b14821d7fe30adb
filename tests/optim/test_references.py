"""The first 20 steps of each optimizer beside an implementation that was not written here.

The references hold a matrix or a vector for each layer, as models without stacks do.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm import config, optim

STEPS = 20
RATE = 0.02

# {path: (shape, logical axes)}: heads to merge before and behind the width, and vectors.
TENSORS = {
    "embedding": {"tokens": ((30, 16), ("vocabulary", "embed"))},
    "blocks": {
        "query_kernel": ((3, 16, 2, 6), ("layers", "embed", "heads", "head")),
        "output_kernel": ((3, 2, 6, 16), ("layers", "heads", "head", "embed")),
        "up_kernel": ((3, 16, 40), ("layers", "embed", "mlp")),
        "query_bias": ((3, 2, 6), ("layers", "heads", "head")),
        "norm": {"scale": ((3, 16), ("layers", "norm"))},
    },
    "final_norm": {"scale": ((16,), ("norm",))},
}
IS_TENSOR = dict(is_leaf=lambda x: isinstance(x, tuple))
AXES = jax.tree.map(lambda t: t[1], TENSORS, **IS_TENSOR)
SHAPES = jax.tree.map(lambda t: t[0], TENSORS, **IS_TENSOR)
MATRICES = ("query_kernel", "output_kernel", "up_kernel")


def random_tree(seed: int, size: float) -> Any:
    random = np.random.default_rng(seed)

    def draw(shape: tuple) -> np.ndarray:
        # Columns of unequal size: what treats a matrix as a whole differs from what does not.
        values = random.normal(size=shape) * np.linspace(0.2, 2, shape[-1])
        return (values * size).astype(np.float32)

    return jax.tree.map(draw, SHAPES, **IS_TENSOR)


PARAMS = random_tree(0, 0.3)
GRADIENTS = [random_tree(1 + n, 0.1) for n in range(STEPS)]


def unstack(tree: Any) -> dict[str, np.ndarray]:
    """Return the matrices [rows, columns] and vectors of a tree, each layer's by itself."""
    unstacked = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        layers = leaf if name.startswith("blocks") else [leaf]
        for number, layer in enumerate(layers):
            if "query_kernel" in name:
                layer = layer.reshape(16, 12)
            elif "output_kernel" in name:
                layer = layer.reshape(12, 16)
            elif "query_bias" in name:
                layer = layer.reshape(12)
            unstacked[f"{name}.{number}"] = np.asarray(layer)
    return unstacked


def optimizer_config(**fields) -> config.OptimizerConfig:
    plain = {
        "learning_rate": RATE,
        "warmup_steps": 5,
        "schedule": "linear",
        "weight_decay": 0.1,
        "weight_decay_exclude": (),
        "gradient_clip": None,
    }
    return config.OptimizerConfig(**(plain | fields))


def train(**fields) -> dict[str, np.ndarray]:
    """Return the parameters after the gradients, as the references hold them."""
    optimizer = optim.build_optimizer(optimizer_config(**fields), STEPS, AXES)

    @jax.jit
    def step(gradients, state, params):
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for gradients in GRADIENTS:
        params, state = step(gradients, state, params)
    return unstack(optim.evaluation_params(optimizer_config(**fields), params, state))


def schedule(**fields) -> optax.Schedule:
    return optim.learning_rate_schedule(optimizer_config(**fields), STEPS)


def train_optax(optimizer: optax.GradientTransformation, result=lambda params, state: params):
    params = unstack(PARAMS)
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for gradients in GRADIENTS:
        changes, state = step(unstack(gradients), state, params)
        params = optax.apply_updates(params, changes)
    return result(params, state)


def assert_same_steps(ours: dict, theirs: dict, tolerance: float = 1e-5) -> None:
    """Compare the movement of each matrix and vector by its norm."""
    first = unstack(PARAMS)
    assert set(ours) == set(theirs) == set(first)
    for name, start in first.items():
        moved = np.linalg.norm(np.asarray(theirs[name]) - start)
        assert moved > 1e-3, name
        error = np.linalg.norm(ours[name] - np.asarray(theirs[name])) / moved
        # float32 in another order: 1e-6 of the movement.
        assert error < tolerance, (name, error)


def is_matrix(name: str) -> bool:
    return any(matrix in name for matrix in MATRICES)


@pytest.mark.parametrize("nesterov", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_muon_beside_optax(nesterov):
    """Matrices by optax's Muon, all others by its AdamW."""
    rate, other = schedule(), schedule(learning_rate=0.01)
    labels = {name: "muon" if is_matrix(name) else "adamw" for name in unstack(PARAMS)}
    reference = optax.partition(
        {
            "muon": optax.contrib.muon(
                rate, consistent_rms=0.2, weight_decay=0.1, nesterov=nesterov
            ),
            "adamw": optax.adamw(other, 0.9, 0.95, weight_decay=0.1),
        },
        labels,
    )
    ours = train(kind="muon", nesterov=nesterov, rest_learning_rate=0.01)
    assert_same_steps(ours, train_optax(reference))


def test_muon_beside_torch(monkeypatch):
    """PyTorch's own computes in bfloat16, which is replaced by float32 here.

    It does without the correction of the first steps, which the orthogonalisation takes out, but
    not from Nesterov's.
    """
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    first = unstack(PARAMS)
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in first.items()}
    muon = torch.optim.Muon(
        [p for name, p in parameters.items() if is_matrix(name)],
        nesterov=False,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        [p for name, p in parameters.items() if not is_matrix(name)], betas=(0.9, 0.95)
    )
    for number, gradients in enumerate(GRADIENTS):
        for name, gradient in unstack(gradients).items():
            parameters[name].grad = torch.tensor(gradient)
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]["lr"] = float(np.asarray(schedule()(number)))
            optimizer.param_groups[0]["weight_decay"] = 0.1
            optimizer.step()

    theirs = {name: p.detach().numpy() for name, p in parameters.items()}
    assert_same_steps(train(kind="muon", nesterov=False, epsilon=1e-8), theirs)


def test_adamw_and_its_bfloat16_first_moment_beside_optax():
    for dtype in ("float32", "bfloat16"):
        reference = optax.adamw(schedule(), 0.9, 0.95, weight_decay=0.1, mu_dtype=dtype)
        assert_same_steps(train(first_moment=dtype), train_optax(reference))


def test_bfloat16_second_moments_keep_their_mean():
    """Rounded to the nearest, an average of beta2 = 0.999 would never fall again."""
    fields = {"kind": "adamw", "beta2": 0.999, "second_moment": "bfloat16", "gradient_clip": None}
    optimizer = optim.build_optimizer(
        config.OptimizerConfig(**fields), 1000, {"blocks": {"w": ("layers", "embed")}}
    )
    params = {"blocks": {"w": jnp.zeros((1, 4096))}}
    step = jax.jit(optimizer.update)
    _, state = step({"blocks": {"w": jnp.ones((1, 4096))}}, optimizer.init(params), params)
    for _ in range(400):
        _, state = step({"blocks": {"w": jnp.zeros((1, 4096))}}, state, params)

    moment = optax.tree.get(state, "nu")["blocks"]["w"]
    assert moment.dtype == jnp.bfloat16
    # 400 roundings of up to 2^-8 each, over 4,096 numbers: 0.05% by chance.
    expected = 0.001 * 0.999**400
    assert float(jnp.mean(moment.astype(jnp.float32))) == pytest.approx(expected, rel=3e-3)


@pytest.mark.slow
def test_bfloat16_second_moments_move_the_parameters_alike():
    reference = optax.adamw(schedule(), 0.9, 0.95, weight_decay=0.1, mu_dtype="bfloat16")
    ours = train(first_moment="bfloat16", second_moment="bfloat16")
    # A number is rounded by up to 2^-8 in each step, its square root by half of it.
    assert_same_steps(ours, train_optax(reference), tolerance=5e-3)


def test_lion_beside_optax():
    reference = optax.lion(schedule(), 0.9, 0.95, weight_decay=0.1)
    assert_same_steps(train(kind="lion"), train_optax(reference))


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_beside_torch(nesterov):
    torch = pytest.importorskip("torch")
    first = unstack(PARAMS)
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in first.items()}
    sgd = torch.optim.SGD(parameters.values(), momentum=0.9, nesterov=nesterov, lr=1.0)
    for number, gradients in enumerate(GRADIENTS):
        for name, gradient in unstack(gradients).items():
            parameters[name].grad = torch.tensor(gradient)
        sgd.param_groups[0]["lr"] = float(np.asarray(schedule()(number)))
        sgd.step()

    theirs = {name: p.detach().numpy() for name, p in parameters.items()}
    assert_same_steps(train(kind="sgd", nesterov=nesterov, weight_decay=0.0), theirs)


def test_adafactor_with_momentum_beside_optax():
    reference = optax.adafactor(schedule(), momentum=0.9)
    ours = train(kind="adafactor", momentum=0.9, weight_decay=0.0)
    assert_same_steps(ours, train_optax(reference))


def test_schedule_free_beside_optax():
    """The averaged parameters, which are evaluated."""
    fields = {"schedule": "constant", "weight_decay": 0.1}
    steps = optax.chain(
        optax.scale_by_rms(0.95, 1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(schedule(**fields)),
    )
    reference = optax.contrib.schedule_free(steps, schedule(**fields), b1=0.9)

    def averaged(params, state):
        return optax.contrib.schedule_free_eval_params(state, params)

    assert_same_steps(train(kind="schedule_free", **fields), train_optax(reference, averaged))


def fractional_power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """Return a power of a positive matrix in float64."""
    values, vectors = np.linalg.eigh(matrix)
    damped = np.maximum(values, 0) + 1e-4 * values[-1]
    return (vectors * damped**exponent) @ vectors.T


def test_shampoo_by_the_formula_in_float64():
    """Both sides of 16 x 12 have a root, of 16 x 40 the shorter: no library here has Shampoo.

    The norm of each matrix's step is that of optax's Adam.
    """
    first, beta1, beta2 = unstack(PARAMS), 0.9, 0.95
    rest = optax.adamw(schedule(), beta1, beta2, weight_decay=0.1)
    expected = dict(train_optax(rest))
    adam = optax.scale_by_adam(beta1, beta2)
    for name in filter(is_matrix, first):
        transposed = "output" in name
        param = first[name].astype(np.float64).T if transposed else first[name].astype(np.float64)
        state, moment, left, right = adam.init(param), 0.0, 0.0, 0.0
        roots: list[np.ndarray] = []
        for number, gradients in enumerate(GRADIENTS):
            gradient = unstack(gradients)[name].astype(np.float64)
            gradient = gradient.T if transposed else gradient
            moment = beta1 * moment + (1 - beta1) * gradient
            left = beta2 * left + (1 - beta2) * gradient @ gradient.T
            right = beta2 * right + (1 - beta2) * gradient.T @ gradient
            if number % 10 == 0 and gradient.shape[1] <= 16:
                roots = [fractional_power(left, -0.25), fractional_power(right, -0.25)]
            elif number % 10 == 0:
                roots = [fractional_power(left, -0.5), np.eye(gradient.shape[1])]

            change, state = adam.update(gradient, state)
            direction = roots[0] @ moment @ roots[1]
            direction *= np.linalg.norm(change) / np.linalg.norm(direction)
            param = param - float(np.asarray(schedule()(number))) * (direction + 0.1 * param)
        expected[name] = param.T if transposed else param

    # The eigenvalues of float32 matrices are exact to 1e-7 of the largest, 1e-3 of the damping.
    assert_same_steps(train(kind="shampoo"), expected, tolerance=1e-4)
