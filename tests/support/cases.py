"""A torch model beside our config of the same function, and batches for both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from jaxlm import config
from jaxlm.types import Batch, Tree
from support import model_references

VOCABULARY, BATCH, LENGTH, SOURCE = 97, 3, 17, 20
ROWS = SOURCE + 2  # of learned position tables
PAD = 1  # RoBERTa derives positions from it
LENGTHS, SOURCE_LENGTHS = np.array([LENGTH, 6, 12], np.int32), np.array([11, SOURCE, 3], np.int32)


def samples(model: config.ModelConfig, seed: int = 0) -> Batch:
    """Random tokens with targets and 0/1 weights. All but a decoder's are padded to the right, with no target there."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(PAD + 1, VOCABULARY, (BATCH, LENGTH + 1), np.int32)
    weights = (rng.random((BATCH, LENGTH)) < 0.8).astype(np.float32)
    if model.family == "decoder":
        return Batch(tokens[:, :-1], targets=tokens[:, 1:], weights=weights)
    types = (
        rng.integers(0, model.token_types, (BATCH, LENGTH), np.int32)
        if model.token_types > 1
        else None
    )
    source = rng.integers(PAD + 1, VOCABULARY, (BATCH, SOURCE), np.int32)
    source[~real(SOURCE_LENGTHS, SOURCE)] = PAD
    inputs = np.where(real(LENGTHS, LENGTH), tokens[:, :-1], PAD)
    batch = Batch(
        inputs,
        LENGTHS,
        token_types=types,
        targets=tokens[:, 1:],
        weights=weights * real(LENGTHS, LENGTH),
    )
    return (
        batch._replace(source=source, source_lengths=SOURCE_LENGTHS)
        if model.family == "encoder_decoder"
        else batch
    )


def real(lengths: Any, length: int) -> np.ndarray:
    """bool [B, L]: the positions that are not padding."""
    return (
        np.ones((BATCH, length), bool) if lengths is None else np.arange(length) < lengths[:, None]
    )


class Pair(NamedTuple):
    """A torch model and our config of the same function; `convert(state, fill)` carries its tensors over."""

    peer: Any
    model: config.ModelConfig
    convert: Callable[..., Tree]

    def logits(self, batch: Batch) -> Any:
        """The peer's, [B, L, V]."""
        own = {"input_ids": batch.tokens, "attention_mask": real(batch.lengths, LENGTH)}
        if batch.token_types is not None:
            own["token_type_ids"] = batch.token_types
        if batch.source is not None:
            own = {f"decoder_{name}": value for name, value in own.items()}
            own |= {"input_ids": batch.source, "attention_mask": real(batch.source_lengths, SOURCE)}
        out = self.peer(**{name: torch.from_numpy(value).long() for name, value in own.items()})
        return getattr(out, "logits", out)


def made(name: str, **fields) -> Any:
    """A randomly weighted `transformers` model of tiny size. The caller turns its dropout off where that isn't the default."""
    plain = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "attn_implementation": "eager",
    }
    cls = getattr(transformers, name)
    peer = cls(cls.config_class(**(plain | {"use_cache": False} | fields))).eval()
    model_references.randomise(peer, seed=1)
    return peer


class TorchStack(torch.nn.Module):
    """Two layers of torch's own, with learned positions, exact GELU and a head with a bias; a last norm where it is pre-norm."""

    def __init__(self, causal: bool, norm_first: bool):
        super().__init__()
        self.causal = causal
        self.tokens, self.positions = (
            torch.nn.Embedding(VOCABULARY, 36),
            torch.nn.Embedding(ROWS, 36),
        )
        layer = torch.nn.TransformerEncoderLayer(
            36, 3, 50, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.stack = torch.nn.TransformerEncoder(
            layer, 2, torch.nn.LayerNorm(36) if norm_first else None, enable_nested_tensor=False
        )
        self.head = torch.nn.Linear(36, VOCABULARY)
        model_references.randomise(self.eval(), seed=1)

    def forward(self, input_ids, attention_mask):
        length = input_ids.shape[1]
        future = torch.ones(length, length).triu(1).bool() if self.causal else None
        x = self.tokens(input_ids) + self.positions(torch.arange(length))
        return self.head(self.stack(x, mask=future, src_key_padding_mask=attention_mask == 0))
