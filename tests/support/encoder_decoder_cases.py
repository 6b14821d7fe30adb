"""Encoder-decoders and the torch models that they are compared with."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jaxlm.config import ModelConfig
from jaxlm.types import Tree
from support.cases import ROWS, Pair
from support.model_references import (
    State,
    dense,
    from_heads,
    norm,
    padded,
    part,
    rows,
    stacked,
    to_heads,
    torch_layers,
)
from support.parity import VOCABULARY, build_reference, randomise


def model_of(**fields) -> ModelConfig:
    return ModelConfig(family="encoder_decoder", vocabulary_size=VOCABULARY, width=36, **fields)


def attention(state: State, names: dict[str, str], head_width: int) -> Tree:
    """Map the projections, given {our name: theirs}."""
    out = from_heads(state, names["output"], head_width)
    for name in ("query", "key", "value"):
        out |= to_heads(state, names[name], name, head_width)
    return out


def t5_stack(state: State, head_width: int, layers: int) -> Tree:
    """Map transformers' T5Stack.

    Its sublayers are numbered. The first layer owns the bias of all of them.
    """

    def layer(i: int) -> Tree:
        s = part(state, f"block.{i}.layer.")
        last = 2 if "2.layer_norm.weight" in s else 1
        projections = {"query": "q", "key": "k", "value": "v", "output": "o"}
        inner = f"{last}.DenseReluDense"
        names = {"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"}
        mlp = [
            dense(s, f"{inner}.{theirs}", ours)
            for theirs, ours in names.items()
            if f"{inner}.{theirs}.weight" in s
        ]
        block = {
            "attention_norm": norm(s, "0.layer_norm"),
            "attention": attention(part(s, "0.SelfAttention."), projections, head_width),
            "mlp_norm": norm(s, f"{last}.layer_norm"),
            "mlp": {name: value for tree in mlp for name, value in tree.items()},
        }
        if last == 1:
            return block
        cross = attention(part(s, "1.EncDecAttention."), projections, head_width)
        return block | {"cross_attention_norm": norm(s, "1.layer_norm"), "cross_attention": cross}

    return {
        "blocks": stacked(layer, layers),
        "relative_bias": {
            "table": state["block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        },
        "final_norm": norm(state, "final_layer_norm"),
    }


def t5(theirs: dict[str, Any], ours: dict[str, Any]) -> Pair:
    """Return a T5 with one encoder layer and two decoder layers.

    It has so few buckets that the last ones are used.
    """
    sizes = {
        "d_model": 36,
        "d_kv": 10,
        "num_heads": 3,
        "d_ff": 50,
        "num_layers": 1,
        "num_decoder_layers": 2,
    }
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    reference = build_reference(
        "T5ForConditionalGeneration",
        **sizes,
        **buckets,
        dropout_rate=0.0,
        **theirs,
    )
    bare = {
        "attention_bias": False,
        "attention_output_bias": False,
        "mlp_bias": False,
        "norm": "rmsnorm",
        "norm_epsilon": 1e-6,
    }
    positions = {
        "positions": "relative",
        "relative_buckets": 8,
        "relative_max_distance": 12,
        "attention_scale": 1.0,
    }
    config = model_of(
        layers=2,
        encoder_layers=1,
        heads=3,
        head_width=10,
        mlp_width=50,
        **bare,
        **positions,
        **ours,
    )
    if not config.tied_head:
        # transformers 5 ties the head of every T5 that it builds, and unties it only when a
        # checkpoint has one.
        reference.lm_head.weight = torch.nn.Parameter(torch.empty(VOCABULARY, 36))
        randomise(reference)
    for weight in (w for name, w in reference.named_parameters() if name.endswith(".q.weight")):
        # T5 has this in place of scaled scores. Without it attention is nearly one-hot.
        weight.data *= 10**-0.5

    def convert(state: State, fill: float = 7.0) -> Tree:
        encoder, decoder = (
            t5_stack(part(state, "encoder."), 10, 1),
            t5_stack(part(state, "decoder."), 10, 2),
        )
        if not config.tied_head:
            decoder["head"] = {"kernel": rows(state["lm_head.weight"], fill).T}
        return {
            "encoder": {"embedding": {"tokens": rows(state["shared.weight"], fill)}} | encoder,
            "decoder": decoder,
        }

    return Pair(reference, config, convert)


def bart_stack(state: State, heads: int, layers: int) -> Tree:
    """Map transformers' BartEncoder and BartDecoder without the shared token table."""

    def projections(name: str) -> dict[str, str]:
        return {
            "query": f"{name}.q_proj",
            "key": f"{name}.k_proj",
            "value": f"{name}.v_proj",
            "output": f"{name}.out_proj",
        }

    def layer(i: int) -> Tree:
        s = part(state, f"layers.{i}.")
        head_width = s["fc2.bias"].size // heads
        block = {
            "attention": attention(s, projections("self_attn"), head_width),
            "attention_norm": norm(s, "self_attn_layer_norm"),
            "mlp": dense(s, "fc1", "up") | dense(s, "fc2", "down"),
            "mlp_norm": norm(s, "final_layer_norm"),
        }
        if "encoder_attn_layer_norm.weight" not in s:
            return block
        cross = attention(s, projections("encoder_attn"), head_width)
        return block | {
            "cross_attention": cross,
            "cross_attention_norm": norm(s, "encoder_attn_layer_norm"),
        }

    embedding = {
        "positions": state["embed_positions.weight"],
        "norm": norm(state, "layernorm_embedding"),
    }
    return {"embedding": embedding, "blocks": stacked(layer, layers)}


def bart(scaled: bool) -> Pair:
    """Return a BART whose stacks differ in layers, heads and widths of the MLP."""
    sizes = {
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 6,
        "decoder_attention_heads": 3,
    }
    widths = {
        "d_model": 36,
        "encoder_ffn_dim": 50,
        "decoder_ffn_dim": 30,
        "max_position_embeddings": ROWS,
    }
    reference = build_reference(
        "BartForConditionalGeneration",
        **sizes,
        **widths,
        dropout=0.0,
        scale_embedding=scaled,
    )
    # A buffer of zeros there: as a parameter it gets values and a gradient.
    del reference.final_logits_bias
    reference.final_logits_bias = torch.nn.Parameter(torch.empty(1, VOCABULARY))
    randomise(reference)
    fields: dict[str, Any] = {
        "norm_placement": "post",
        "embedding_norm": True,
        "activation": "gelu",
        "head_bias": True,
    }
    encoder = {"encoder_layers": 1, "encoder_heads": 6, "encoder_mlp_width": 50}
    places = {"context_length": ROWS, "position_offset": 2, "embedding_scaling": scaled}
    config = model_of(layers=2, heads=3, mlp_width=30, **encoder, **places, **fields)

    def convert(state: State, fill: float = 7.0) -> Tree:
        encoder, decoder = (
            bart_stack(part(state, "model.encoder."), 6, 1),
            bart_stack(part(state, "model.decoder."), 3, 2),
        )
        encoder["embedding"]["tokens"] = rows(state["model.shared.weight"], fill)
        return {
            "encoder": encoder,
            "decoder": decoder | {"head": {"bias": padded(state["final_logits_bias"][0], fill)}},
        }

    return Pair(reference, config, convert)


class OriginalTransformer(torch.nn.Module):
    """Vaswani et al. 2017 from torch's layers.

    Post-norm, ReLU, sinusoidal positions, one table for both stacks and the head.
    """

    def __init__(self):
        super().__init__()
        layer = {
            "d_model": 36,
            "nhead": 3,
            "dim_feedforward": 50,
            "dropout": 0.0,
            "batch_first": True,
        }
        self.table = torch.nn.Embedding(VOCABULARY, 36)
        self.encoder = torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(**layer), 2, enable_nested_tensor=False
        )
        self.decoder = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(**layer), 2)
        randomise(self.eval())

    def embed(self, ids):
        """Embed with sines before cosines, tensor2tensor's layout of section 3.5."""
        angles = np.arange(ids.shape[1])[:, None] / 10000.0 ** (np.arange(18) / 18)
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return self.table(ids) * math.sqrt(36) + torch.from_numpy(waves).float()

    def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask):
        length, hidden = decoder_input_ids.shape[1], attention_mask == 0
        memory = self.encoder(self.embed(input_ids), src_key_padding_mask=hidden)
        masks = {
            "tgt_key_padding_mask": decoder_attention_mask == 0,
            "memory_key_padding_mask": hidden,
        }
        future = torch.ones(length, length).triu(1).bool()
        return (
            self.decoder(self.embed(decoder_input_ids), memory, tgt_mask=future, **masks)
            @ self.table.weight.T
        )


def original() -> Pair:
    fields: dict[str, Any] = {
        "norm_placement": "post",
        "positions": "sinusoidal",
        "embedding_scaling": True,
        "activation": "relu",
    }

    def convert(state: State, fill: float = 7.0) -> Tree:
        encoder, decoder = (
            {"blocks": torch_layers(part(state, f"{name}."), 3, 2)}
            for name in ("encoder", "decoder")
        )
        return {
            "encoder": encoder | {"embedding": {"tokens": rows(state["table.weight"], fill)}},
            "decoder": decoder,
        }

    return Pair(OriginalTransformer(), model_of(layers=2, heads=3, mlp_width=50, **fields), convert)


ENCODER_DECODERS: dict[str, Callable[[], Pair]] = {
    "t5 1.0": lambda: t5(
        {"feed_forward_proj": "relu"}, {"activation": "relu", "head_scaling": True}
    ),
    "t5 1.1": lambda: t5(
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"activation": "gelu_tanh", "gated": True, "tied_head": False},
    ),
    "bart": lambda: bart(scaled=False),
    "bart, scaled embeddings": lambda: bart(scaled=True),
    "original transformer": original,
}
