"""Compare jaxlm with `transformers` models of random weights, by way of their directories.

Both sides compute in float32 and add up in different orders, so the tolerances are those of
tests/models/test_parity.py.
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

from jaxlm import config, interop, models
from jaxlm.losses import loss_sums
from jaxlm.types import Batch, Tree
from support.hf_directories import assert_same, change_config

VOCABULARY, BATCH, LENGTH, SOURCE = 97, 3, 17, 20
PAD = 1  # no real token is it: RoBERTa derives positions from it
LENGTHS, SOURCE_LENGTHS = np.array([LENGTH, 6, 12], np.int32), np.array([11, SOURCE, 3], np.int32)
LOGITS_TOLERANCE, LOSS_TOLERANCE, GRADIENT_TOLERANCE, GRADIENT_FLOOR = 2e-5, 5e-6, 1e-4, 1e-3


class Differences(NamedTuple):
    """The largest differences; those of gradients are relative to the norm of a tensor."""

    logits: float
    loss: float
    gradient: float


def made(name: str, **fields) -> Any:
    """Return a `transformers` model of the class `name` with random numbers in every tensor.

    `fields` are those of its config.
    """
    plain = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": PAD,
        "attn_implementation": "eager",
    }
    cls = getattr(transformers, name)
    peer = cls(cls.config_class(**(plain | {"use_cache": False} | fields))).eval()
    randomise(peer)
    return peer


def randomise(peer: Any, seed: int = 1) -> None:
    """Fill norms, biases and buffers too, so that none can be left out or swapped unseen.

    Norms stay around their initial values.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in peer.state_dict().items():  # shares its memory with the model
        if tensor.is_floating_point():
            start = tensor.clone() if tensor.ndim == 1 and name.endswith("weight") else 0.0
            tensor.copy_(0.25 * torch.randn(tensor.shape, generator=generator) + start)


def real(lengths: Any, length: int) -> np.ndarray:
    """Return the positions that are not padding: bool [B, L]."""
    return np.arange(length) < lengths[:, None]


def samples(model: config.ModelConfig, seed: int = 0) -> Batch:
    """Return random tokens, padded to the right, with targets and weights 0 or 1 (0 at padding)."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(PAD + 1, model.vocabulary_size, (BATCH, LENGTH + 1), np.int32)
    here = real(LENGTHS, LENGTH)
    weights = (rng.random((BATCH, LENGTH)) < 0.8) * here
    batch = Batch(
        np.where(here, tokens[:, :-1], PAD),
        LENGTHS,
        targets=tokens[:, 1:],
        weights=weights.astype(np.float32),
    )
    if model.token_types > 1:
        batch = batch._replace(
            token_types=rng.integers(0, model.token_types, (BATCH, LENGTH), np.int32)
        )
    if model.family != "encoder_decoder":
        return batch
    source = rng.integers(PAD + 1, model.vocabulary_size, (BATCH, SOURCE), np.int32)
    return batch._replace(
        source=np.where(real(SOURCE_LENGTHS, SOURCE), source, PAD), source_lengths=SOURCE_LENGTHS
    )


def their_logits(peer: Any, batch: Batch) -> Any:
    """Return the logits of a `transformers` model: torch [B, L, V], with gradients."""
    inputs = {"input_ids": batch.tokens, "attention_mask": real(batch.lengths, LENGTH)}
    if batch.token_types is not None:
        inputs["token_type_ids"] = batch.token_types
    if batch.source is not None:
        inputs = {f"decoder_{name}": value for name, value in inputs.items()}
        inputs |= {"input_ids": batch.source, "attention_mask": real(batch.source_lengths, SOURCE)}
    return peer(
        **{name: torch.from_numpy(np.asarray(value)).long() for name, value in inputs.items()}
    ).logits


def their_loss(logits: Any, batch: Batch) -> Any:
    labels = torch.from_numpy(
        np.where(np.asarray(batch.weights) > 0, np.asarray(batch.targets), -100)
    ).long()
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    )


def compared(
    peer: Any, model_config: config.ModelConfig, params: Tree, scratch: Path
) -> Differences:
    """Compare logits outside of padding, the loss, and the gradient of every tensor.

    Our gradients get names and layout of `transformers` by being saved like weights. Key biases
    have no true gradient (a softmax ignores what it adds to all scores): tensors below a thousandth
    of the global norm are compared at that scale.
    """
    batch, model = samples(model_config), models.build(model_config)

    def ours(params: Tree) -> Any:
        logits = model.apply(params, batch)
        sums = loss_sums(logits, batch.targets, batch.weights)
        return sums.loss / sums.count, logits

    quick = {"xla_backend_optimization_level": 0}  # to compile takes much longer than to run
    (loss, logits), gradients = jax.jit(
        jax.value_and_grad(ours, has_aux=True), compiler_options=quick
    )(params)
    peer.zero_grad()
    expected = their_logits(peer, batch)
    expected_loss = their_loss(expected, batch)
    expected_loss.backward()
    here = real(batch.lengths, LENGTH)
    logits_difference = np.abs(np.asarray(logits)[here] - expected.detach().numpy()[here]).max()
    interop.save(scratch / "ours", model_config, gradients)
    gradient_difference = largest_gradient_difference(
        peer, scratch / "theirs", load_file(scratch / "ours" / "model.safetensors")
    )
    out = Differences(
        float(logits_difference), abs(float(loss) - expected_loss.item()), gradient_difference
    )
    assert (
        out.logits <= LOGITS_TOLERANCE
        and out.loss <= LOSS_TOLERANCE
        and out.gradient <= GRADIENT_TOLERANCE
    ), out
    return out


def largest_gradient_difference(peer: Any, scratch: Path, ours: dict[str, np.ndarray]) -> float:
    """Return the largest difference over all tensors of a file of gradients."""
    weights = {parameter: parameter.data for parameter in peer.parameters()}
    for parameter in weights:
        parameter.data = (
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        )
    peer.save_pretrained(scratch)
    for parameter, data in weights.items():
        parameter.data = data
    buffers = {name for name, _ in peer.named_buffers()}
    theirs = {
        name: value
        for name, value in load_file(scratch / "model.safetensors").items()
        if name not in buffers
    }
    floor = GRADIENT_FLOOR * np.sqrt(sum(float(np.square(g).sum()) for g in theirs.values()))
    errors = {
        name: np.linalg.norm(ours[name] - g) / max(float(np.linalg.norm(g)), floor)
        for name, g in theirs.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= GRADIENT_TOLERANCE, f"{worst}: {errors[worst]}"
    return float(errors[worst])


def round_trip(peer: Any, model_config: config.ModelConfig, params: Tree, directory: Path) -> None:
    """Save the model and load it with `transformers` and with jaxlm: every bit is the same."""
    interop.save(directory, model_config, params)
    written = json.loads((directory / "config.json").read_text())["architectures"][
        0
    ]  # another class may say the same
    again, report = getattr(transformers, written).from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    theirs, expected = again.state_dict(), peer.state_dict()
    assert theirs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert theirs[name].dtype == tensor.dtype and torch.equal(theirs[name], tensor), name
    config_again, params_again = interop.load(directory)
    assert config_again == model_config
    assert_same(params, params_again)


def check(
    peer: Any, directory: Path, changes: dict[str, Any] | None = None
) -> tuple[config.ModelConfig, Differences]:
    """Load what `transformers` saves, with `changes` to its config.json; compare; save it again."""
    peer.save_pretrained(directory / "theirs")
    change_config(directory / "theirs", changes or {})
    model_config, params = interop.load(directory / "theirs")
    differences = compared(peer, model_config, params, directory / "gradients")
    round_trip(peer, model_config, params, directory / "ours")
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
    found = []
    for name in variants:
        found.append(
            pytest.param(
                name,
                marks=[pytest.mark.campaign] if kind(name) in kinds and name not in also else [],
            )
        )
        kinds.add(kind(name))
    return found
