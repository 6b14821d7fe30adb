"""Compare jaxlm with `transformers` models of random weights, by way of their directories.

What is compared, and how closely, is in parity.py.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxlm import interop, models
from jaxlm.config import ModelConfig
from jaxlm.types import Tree
from support.hf_directories import change_config
from support.parity import (
    LOGITS_TOLERANCE,
    LOSS_TOLERANCE,
    gradient_difference,
    logits_difference,
    our_loss,
    reference_logits,
    reference_loss,
    samples,
)
from support.trees import assert_same


class Differences(NamedTuple):
    """The largest differences; those of gradients are relative to the norm of a tensor."""

    logits: float
    loss: float
    gradient: float


def compare(reference: Any, model_config: ModelConfig, params: Tree, scratch: Path) -> Differences:
    """Compare logits outside of padding, the loss, and the gradient of every tensor.

    Gradients of both sides get their names and layout by being saved like weights.
    """

    def our_gradients() -> dict[str, np.ndarray]:
        interop.save(scratch / "ours", model_config, gradients)
        return load_file(scratch / "ours" / "model.safetensors")

    batch, model = samples(model_config), models.build(model_config)
    quick = {"xla_backend_optimization_level": 0}  # to compile takes much longer than to run
    loss_and_gradients = jax.jit(
        jax.value_and_grad(lambda params: our_loss(model, params, batch), has_aux=True),
        compiler_options=quick,
    )
    (loss, logits), gradients = loss_and_gradients(params)

    reference.zero_grad()
    expected = reference_logits(reference, batch)
    expected_loss = reference_loss(expected, batch)
    expected_loss.backward()
    differences = Differences(
        logits_difference(logits, expected, batch),
        abs(float(loss) - expected_loss.item()),
        gradient_difference(our_gradients(), save_gradients(reference, scratch / "theirs")),
    )
    assert differences.logits <= LOGITS_TOLERANCE, differences
    assert differences.loss <= LOSS_TOLERANCE, differences
    return differences


def save_gradients(reference: Any, scratch: Path) -> dict[str, np.ndarray]:
    """Return the reference's gradients by the names that its tensors have in files."""
    weights = {parameter: parameter.data for parameter in reference.parameters()}
    for parameter in weights:
        gradient = parameter.grad
        parameter.data = torch.zeros_like(parameter) if gradient is None else gradient.clone()
    reference.save_pretrained(scratch)
    for parameter, data in weights.items():
        parameter.data = data

    buffers = {name for name, _ in reference.named_buffers()}
    saved = load_file(scratch / "model.safetensors")
    return {name: value for name, value in saved.items() if name not in buffers}


def round_trip(reference: Any, model_config: ModelConfig, params: Tree, directory: Path) -> None:
    """Save the model and load it with `transformers` and with jaxlm: every bit is the same."""
    interop.save(directory, model_config, params)
    # Another class than the reference's may say the same.
    written_class = json.loads((directory / "config.json").read_text())["architectures"][0]
    again, report = getattr(transformers, written_class).from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report

    theirs, expected = again.state_dict(), reference.state_dict()
    assert theirs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert theirs[name].dtype == tensor.dtype and torch.equal(theirs[name], tensor), name
    # What loads need not run: some classes look at a key only then.
    batch = samples(model_config)
    with torch.no_grad():
        logits = [reference_logits(model, batch) for model in (again.eval(), reference)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)  # float32, other attention kernels
    config_again, params_again = interop.load(directory)
    assert config_again == model_config
    assert_same(params, jax.tree.map(np.asarray, params_again))


def check(
    reference: Any, directory: Path, changes: dict[str, Any] | None = None
) -> tuple[ModelConfig, Differences]:
    """Load what `transformers` saves, with `changes` to its config.json; compare; save it again."""
    reference.save_pretrained(directory / "theirs")
    change_config(directory / "theirs", changes or {})
    model_config, params = interop.load(directory / "theirs")
    differences = compare(reference, model_config, params, directory / "gradients")
    round_trip(reference, model_config, params, directory / "ours")
    return model_config, differences


def first_of_each(
    variants: Iterable[str],
    kind: Callable[[str], str] = lambda name: name.partition(",")[0],
    also: tuple[str, ...] = (),
) -> list[Any]:
    """Return parameters for pytest: the first variant of each kind, and those of `also`.

    Each of the others takes seconds, and together minutes, so they are campaign tests.
    """
    kinds: set[str] = set()
    parameters = []
    for name in variants:
        repeated = kind(name) in kinds and name not in also
        marks = [pytest.mark.campaign] if repeated else []
        parameters.append(pytest.param(name, marks=marks))
        kinds.add(kind(name))
    return parameters
