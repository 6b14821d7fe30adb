"""A torch model of random weights against ours: inputs, logits, loss and gradients of both.

Both sides compute in float32 and add up in different orders: logits with a standard deviation of 1
to 2 agree to about 1e-5, and both are as far from float64. With weights as large as these, small
differences in the maths show too: BERT's norm epsilon in place of RoBERTa's makes 1e-4, the other
form of GELU 2e-3, ignored padding or a wrong scale 0.5 and more.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import transformers

from jaxlm.config import ModelConfig
from jaxlm.losses import loss_sums
from jaxlm.models import Model
from jaxlm.types import Batch, Tree

VOCABULARY, BATCH, LENGTH, SOURCE = 97, 3, 17, 20
PAD = 1  # no real token is it: RoBERTa derives positions from it
LENGTHS, SOURCE_LENGTHS = np.array([LENGTH, 6, 12], np.int32), np.array([11, SOURCE, 3], np.int32)

LOGITS_TOLERANCE, LOSS_TOLERANCE = 2e-5, 5e-6
GRADIENT_TOLERANCE = 1e-4  # of the norm of a tensor's gradient ...
GRADIENT_FLOOR = 1e-3  # ... or of this share of the norm of all of them, if that is more


# The references


def build_reference(name: str, **fields) -> Any:
    """Return a tiny `transformers` model of the class `name` with random values in every tensor.

    `fields` are those of its config. The caller turns dropout off where that isn't the default.
    """
    defaults = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": PAD,
        "attn_implementation": "eager",
        "use_cache": False,
    }
    cls = getattr(transformers, name)
    reference = cls(cls.config_class(**(defaults | fields))).eval()
    randomise(reference)
    return reference


def randomise(reference: Any, seed: int = 1) -> None:
    """Write random values to every tensor, so that none can be left out or swapped unnoticed.

    Norms, biases and float buffers get them too. Norms stay around the values that they have.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in reference.state_dict().items():  # shares its memory with the model
        if tensor.is_floating_point():
            start = tensor.clone() if tensor.ndim == 1 and name.endswith("weight") else 0.0
            tensor.copy_(0.25 * torch.randn(tensor.shape, generator=generator) + start)


# Inputs


def samples(config: ModelConfig, seed: int = 0) -> Batch:
    """Return random tokens, padded to the right, with targets and 0/1 weights (0 at padding)."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(PAD + 1, config.vocabulary_size, (BATCH, LENGTH + 1), np.int32)
    real = real_positions(LENGTHS, LENGTH)
    weights = (rng.random((BATCH, LENGTH)) < 0.8) * real
    batch = Batch(
        tokens=np.where(real, tokens[:, :-1], PAD),
        lengths=LENGTHS,
        targets=tokens[:, 1:],
        weights=weights.astype(np.float32),
    )

    if config.token_types > 1:
        types = rng.integers(0, config.token_types, (BATCH, LENGTH), np.int32)
        batch = batch._replace(token_types=types)
    if config.family != "encoder_decoder":
        return batch
    source = rng.integers(PAD + 1, config.vocabulary_size, (BATCH, SOURCE), np.int32)
    source = np.where(real_positions(SOURCE_LENGTHS, SOURCE), source, PAD)
    return batch._replace(source=source, source_lengths=SOURCE_LENGTHS)


def real_positions(lengths: Any, length: int) -> np.ndarray:
    """Return bool [B, length]: the positions that are not padding."""
    return np.arange(length) < np.asarray(lengths)[:, None]


# Both models on a batch


def reference_logits(reference: Any, batch: Batch) -> Any:
    """Return the reference's logits [B, L, V], a torch tensor with gradients."""
    inputs = {"input_ids": batch.tokens, "attention_mask": real_positions(batch.lengths, LENGTH)}
    if batch.token_types is not None:
        inputs["token_type_ids"] = batch.token_types
    if batch.source is not None:
        inputs = {f"decoder_{name}": value for name, value in inputs.items()}
        inputs["input_ids"] = batch.source
        inputs["attention_mask"] = real_positions(batch.source_lengths, SOURCE)

    tensors = {name: torch.from_numpy(np.asarray(value)).long() for name, value in inputs.items()}
    output = reference(**tensors)
    return getattr(output, "logits", output)


def reference_loss(logits: Any, batch: Batch) -> Any:
    """Return torch's mean cross-entropy over the targets that count."""
    labels = np.where(np.asarray(batch.weights) > 0, np.asarray(batch.targets), -100)
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.from_numpy(labels).long().reshape(-1)
    )


def our_loss(model: Model, params: Tree, batch: Batch) -> tuple[Any, Any]:
    """Return our mean cross-entropy over the targets that count, and the logits."""
    logits = model.apply(params, batch)
    sums = loss_sums(logits, batch.targets, batch.weights)
    return sums.loss / sums.count, logits


# Comparisons


def logits_difference(ours: Any, theirs: Any, batch: Batch) -> float:
    """Return the largest difference of logits at positions that are not padding."""
    real = real_positions(batch.lengths, LENGTH)
    return float(np.abs(np.asarray(ours)[real] - theirs.detach().numpy()[real]).max())


def gradient_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Return the largest difference of the tensors' gradients, relative to their norms.

    Key biases have no true gradient (a softmax ignores what it adds to all scores): tensors below a
    thousandth of the global norm are compared at that scale.
    """
    floor = GRADIENT_FLOOR * np.sqrt(sum(float(np.square(g).sum()) for g in theirs.values()))
    errors = {}
    for name, gradient in theirs.items():
        norm = max(float(np.linalg.norm(gradient)), floor)
        errors[name] = float(np.linalg.norm(np.asarray(ours[name]) - gradient)) / norm

    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= GRADIENT_TOLERANCE, f"{worst}: {errors[worst]}"
    return errors[worst]


def assert_same_shapes(model: Model, params: Tree) -> None:
    """Assert that the tree has every parameter of the model, with the right shape."""
    expected = jax.tree.map(lambda a: a.shape, jax.eval_shape(model.init, jax.random.key(0)))
    assert jax.tree.map(lambda a: a.shape, params) == expected
