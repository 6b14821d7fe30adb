"""Training on pairs of answers against a loop in torch, from the same weights."""

import copy
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import tiny
from support.parity import VOCABULARY, build_reference
from support.torch_adamw import OUR_ADAMW, STEPS, reference_adamw, reference_rate

from jaxlm import interop
from jaxlm.config import (
    DataConfig,
    ObjectiveConfig,
    SourceConfig,
    TokenizerConfig,
    TrainingConfig,
)
from jaxlm.losses import PreferenceLoss
from jaxlm.preference import answer_log_probabilities
from jaxlm.state import state_from_params
from jaxlm.types import Batch

PAIRS, LENGTH, BETA = 4, 12, 0.2
SOURCE = SourceConfig(name="answers", path="answers.jsonl", format="preferences")  # never read

# Both sides sum in float32, in different orders. Losses are of the order of 1.
TOLERANCE = 1e-5

MODELS = {
    "GPT2LMHeadModel": {
        "n_embd": 36,
        "n_layer": 2,
        "n_head": 3,
        "n_positions": 16,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "LlamaForCausalLM": {
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 50,
    },
}


def draw_pairs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens [PAIRS, 2, LENGTH + 1], and which of the last LENGTH are of an answer."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCABULARY, (PAIRS, 2, LENGTH + 1)).astype(np.int32)
    counted = np.zeros((PAIRS, 2, LENGTH), np.float32)
    for row in range(PAIRS):
        prompt = rng.integers(1, LENGTH - 3)
        tokens[row, 1, : prompt + 1] = tokens[row, 0, : prompt + 1]
        for answer in range(2):
            counted[row, answer, prompt : rng.integers(prompt + 1, LENGTH)] = 1
    return tokens, counted


def as_batch(tokens: np.ndarray, counted: np.ndarray) -> Batch:
    """Return the pairs as a batch, whose reference is still to come."""
    rows = (PAIRS, 2 * LENGTH)
    return Batch(
        tokens=tokens[..., :-1].reshape(rows),
        segments=np.tile(np.repeat([1, 2], LENGTH).astype(np.int32), (PAIRS, 1)),
        positions=np.tile(np.tile(np.arange(LENGTH, dtype=np.int32), 2), (PAIRS, 1)),
        targets=tokens[..., 1:].reshape(rows),
        weights=counted.reshape(rows),
    )


def torch_answers(model: Any, tokens: np.ndarray, counted: np.ndarray) -> Any:
    """Return the log-probability of each answer by a torch model, [PAIRS, 2]."""
    rows = torch.tensor(tokens.reshape(2 * PAIRS, -1)).long()
    scores = torch.log_softmax(model(rows[:, :-1]).logits, -1)
    chosen = scores.gather(-1, rows[:, 1:, None])[..., 0]
    return (chosen * torch.tensor(counted).reshape(chosen.shape)).sum(-1).reshape(PAIRS, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("GPT2LMHeadModel", "dpo"),
        ("LlamaForCausalLM", "dpo"),
        ("GPT2LMHeadModel", "ipo"),
        ("GPT2LMHeadModel", "dpo_mean"),
    ],
)
def test_twenty_steps(name, kind, tmp_path):
    policy = build_reference(name, **MODELS[name])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.3)  # log-probabilities of a few nats a token, as of a trained model
    frozen = copy.deepcopy(policy)
    policy.save_pretrained(tmp_path)
    model_config, params = interop.load(tmp_path)

    config = replace(
        tiny.CONFIG,
        model=model_config,
        objective=ObjectiveConfig(kind="preference", preference_loss=kind, beta=BETA),
        tokenizer=TokenizerConfig(kind="file", path="tokenizer.json"),  # nothing reads it
        data=DataConfig(sequence_length=LENGTH, sources=(SOURCE,)),
        optimizer=OUR_ADAMW,
        training=TrainingConfig(steps=STEPS, batch_size=PAIRS),
    )
    parts = tiny.parts(1, config)
    parts = parts._replace(model=parts.model._replace(preference=PreferenceLoss(kind, BETA)))
    step, adamw = parts.step(), reference_adamw(policy)
    score = jax.jit(
        lambda params, batch: answer_log_probabilities(parts.model, params, batch, None, LENGTH)
    )

    pairs = [draw_pairs(seed) for seed in range(4)]
    batches = [as_batch(*pair) for pair in pairs]
    batches = [batch._replace(reference=np.asarray(score(params, batch))) for batch in batches]
    state = state_from_params(parts.model, parts.optimizer, parts.placement, params)
    margins = []
    for index in range(STEPS):
        for group in adamw.param_groups:
            group["lr"] = reference_rate(index)
        tokens, counted = pairs[index % 4]
        with torch.no_grad():
            reference = torch_answers(frozen, tokens, counted)
        ratios = torch_answers(policy, tokens, counted) - reference
        if kind == "dpo_mean":
            ratios = ratios / torch.tensor(counted).sum(-1)
        margin = ratios[:, 0] - ratios[:, 1]
        losses = (margin - 1 / (2 * BETA)) ** 2
        if kind != "ipo":
            losses = -torch.nn.functional.logsigmoid(BETA * margin)

        adamw.zero_grad()
        losses.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0).item()
        adamw.step()

        state, metrics = step(state, batches[index % 4])
        # Clipping and AdamW hide a factor of the gradient. It is of sums over thousands of terms.
        np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-4)
        rewards = (BETA * ratios).mean(0).tolist()
        ours = [metrics.rewards.chosen, metrics.rewards.rejected]
        np.testing.assert_allclose(
            metrics.loss, losses.mean().item(), rtol=TOLERANCE, atol=TOLERANCE
        )
        np.testing.assert_allclose(ours, rewards, rtol=0, atol=TOLERANCE)
        margins.append(margin.mean().item())
    assert margins[-1] > 0.3 and margins[0] == pytest.approx(0, abs=1e-4)
