"""A torch model beside our config of the same function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from jaxlm.config import ModelConfig
from jaxlm.types import Tree
from support.parity import SOURCE, VOCABULARY, randomise

ROWS = SOURCE + 2  # of learned position tables


class Pair(NamedTuple):
    """A torch model and our config of the same function.

    `convert(state, fill)` maps its tensors to our parameters; padding rows are `fill`.
    """

    reference: Any
    config: ModelConfig
    convert: Callable[..., Tree]


class TorchStack(torch.nn.Module):
    """Two layers of torch's own, with learned positions, exact GELU and a head with a bias.

    A pre-norm stack has a last norm too.
    """

    def __init__(self, causal: bool, norm_first: bool):
        super().__init__()
        self.causal = causal
        self.tokens = torch.nn.Embedding(VOCABULARY, 36)
        self.positions = torch.nn.Embedding(ROWS, 36)
        layer = torch.nn.TransformerEncoderLayer(
            36, 3, 50, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        )
        last_norm = torch.nn.LayerNorm(36) if norm_first else None
        self.stack = torch.nn.TransformerEncoder(layer, 2, last_norm, enable_nested_tensor=False)
        self.head = torch.nn.Linear(36, VOCABULARY)
        randomise(self.eval())

    def forward(self, input_ids, attention_mask):
        length = input_ids.shape[1]
        future = torch.ones(length, length).triu(1).bool() if self.causal else None
        x = self.tokens(input_ids) + self.positions(torch.arange(length))
        return self.head(self.stack(x, mask=future, src_key_padding_mask=attention_mask == 0))
