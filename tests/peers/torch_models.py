"""The models in PyTorch: our own GPT in the manner of nanoGPT, else those of `transformers`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jaxlm.config import ModelConfig
from jaxlm.types import Batch, Tree

IGNORED = -100  # target of a position that is not predicted
VOCABULARY_MULTIPLE = 64


# --- a GPT ---


class Attention(nn.Module):
    """Causal self-attention; one product makes query, key and value."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.attention_bias)
        self.output = nn.Linear(config.width, config.width, bias=config.attention_output_bias)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        heads = [
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x_BLD).chunk(3, dim=2)
        ]
        mixed_BHLK = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.output(mixed_BHLK.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A layer with its norms before attention and MLP."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = layer_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = layer_norm(config)
        self.up = nn.Linear(config.width, config.hidden_width, bias=config.mlp_bias)
        self.gelu = nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")
        self.down = nn.Linear(config.hidden_width, config.width, bias=config.mlp_bias)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD))
        return x_BLD + self.down(self.gelu(self.up(self.mlp_norm(x_BLD))))


class GPT(nn.Module):
    """GPT-2 with learned positions; the head is the token table."""

    def __init__(self, config: ModelConfig, vocabulary_size: int):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, config.width)
        self.positions = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = layer_norm(config)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                # What is added to the residual stream starts smaller, as in GPT-2.
                adds = name.endswith(("output.weight", "down.weight"))
                std = config.initializer_std * ((2 * config.layers) ** -0.5 if adds else 1.0)
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, L, V]."""
        positions_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        x_BLD = self.tokens(tokens_BL) + self.positions(positions_L)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return F.linear(self.final_norm(x_BLD), self.tokens.weight)


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    """Return a LayerNorm over the width."""
    return nn.LayerNorm(config.width, eps=config.norm_epsilon, bias=config.norm_bias)


def copy_params(model: GPT, params: Tree) -> None:
    """Copy jaxlm's parameters, as numpy arrays, into a GPT of the same config."""
    state: dict[str, np.ndarray] = {
        # jaxlm pads the table with rows of its own.
        "tokens.weight": params["embedding"]["tokens"][: model.tokens.num_embeddings],
        "positions.weight": params["embedding"]["positions"],
        **norm_tensors("final_norm", params["final_norm"]),
    }
    for layer in range(len(model.blocks)):
        block = layer_of(params["blocks"], layer)
        attention, mlp, name = block["attention"], block["mlp"], f"blocks.{layer}"
        width = attention["output_kernel"].shape[-1]

        parts = ("query", "key", "value")
        kernels = [attention[f"{part}_kernel"].reshape(width, -1) for part in parts]
        state[f"{name}.attention.qkv.weight"] = np.concatenate(kernels, axis=1).T
        state[f"{name}.attention.output.weight"] = attention["output_kernel"].reshape(-1, width).T
        state[f"{name}.up.weight"] = mlp["up_kernel"].T
        state[f"{name}.down.weight"] = mlp["down_kernel"].T

        if "query_bias" in attention:
            biases = [attention[f"{part}_bias"].reshape(-1) for part in parts]
            state[f"{name}.attention.qkv.bias"] = np.concatenate(biases)
            state[f"{name}.attention.output.bias"] = attention["output_bias"]
            state[f"{name}.up.bias"], state[f"{name}.down.bias"] = mlp["up_bias"], mlp["down_bias"]
        for norm in ("attention_norm", "mlp_norm"):
            state |= norm_tensors(f"{name}.{norm}", block[norm])

    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    model.load_state_dict(tensors)


def norm_tensors(name: str, norm: Tree) -> dict[str, np.ndarray]:
    """Return the tensors of a LayerNorm by their names in torch."""
    bias = {f"{name}.bias": norm["bias"]} if "bias" in norm else {}
    return {f"{name}.weight": norm["scale"], **bias}


def layer_of(tree: Tree, layer: int) -> Tree:
    """Return one layer of parameters [layers, ...]."""
    if isinstance(tree, Mapping):
        return {name: layer_of(value, layer) for name, value in tree.items()}
    return tree[layer]


# --- all of them, with their loss ---


class TrainedModel(nn.Module):
    """A model and the mean cross-entropy of its targets."""

    def __init__(self, config: ModelConfig, vocabulary_size: int):
        super().__init__()
        self.model: Any = build_model(config, vocabulary_size)
        self.is_gpt = isinstance(self.model, GPT)
        # Else a decoder would keep its keys and values.
        self.options = {} if config.family == "encoder" else {"use_cache": False}

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        source: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.is_gpt:
            logits = self.model(tokens)
        elif source is None:
            logits = self.model(input_ids=tokens, **self.options).logits
        else:
            output = self.model(input_ids=source, decoder_input_ids=tokens, **self.options)
            logits = output.logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def build_model(config: ModelConfig, vocabulary_size: int) -> nn.Module:
    """Return the model with random weights: of the class and the config that jaxlm exports it as.

    GPT-2 is ours. `vocabulary_size` may be larger than the config's: rows that are never read.
    """
    if config.positions == "learned" and config.family == "decoder":
        return GPT(config, vocabulary_size)

    # GPT needs neither of them, and they take seconds.
    import transformers

    from jaxlm import interop

    architecture, values = interop.match_architecture(config)
    model_class = getattr(transformers, architecture.classes[0])
    # No token of these random texts is padding or an end.
    no_tokens = {"pad_token_id": None, "eos_token_id": None, "bos_token_id": None}
    values = values | {"vocab_size": vocabulary_size} | no_tokens
    model = model_class(model_class.config_class(**values))
    head, tokens = model.get_output_embeddings(), model.get_input_embeddings()
    if not config.tied_head and head.weight is tokens.weight:
        # transformers 5 ties T5's head whatever its config says, until weights are loaded.
        head.weight = nn.Parameter(config.width**-0.5 * torch.randn_like(tokens.weight))
    return model


def padded_size(vocabulary_size: int) -> int:
    """Return the size to which nanoGPT pads GPT-2's vocabulary: GPUs multiply it faster."""
    return -(-vocabulary_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def count_parameters(config: ModelConfig) -> int:
    """Count the parameters of the model without making them."""
    with torch.device("meta"):
        model = build_model(config, config.vocabulary_size)
    return sum(parameter.numel() for parameter in model.parameters())


def batch_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """Return a batch of jaxlm's objectives as the arguments of a `TrainedModel`."""
    tokens, weights = np.asarray(batch.tokens), np.asarray(batch.weights)
    targets = np.where(weights > 0, np.asarray(batch.targets), IGNORED)
    if batch.predict is not None:
        # The model scores all positions, and those that were not hidden have no target.
        chosen = weights > 0
        rows = np.broadcast_to(np.arange(len(tokens))[:, None], chosen.shape)
        spread = np.full_like(tokens, IGNORED)
        spread[rows[chosen], np.asarray(batch.predict)[chosen]] = targets[chosen]
        targets = spread

    arrays: dict[str, Any] = {"tokens": tokens, "targets": targets}
    if batch.source is not None:
        arrays["source"] = np.asarray(batch.source)
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
