"""Relatives of BART whose tensors have the same names: Blenderbot and mBART (pre-norm), Marian (the original Transformer)."""

from collections.abc import Callable
from typing import Any

from jaxlm import config
from jaxlm.interop.architectures import bart
from jaxlm.interop.architectures.bart import CROSS, TABLES, attention, read_stacks, stack
from jaxlm.interop.architectures.bert import norm
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, Weights

BLENDERBOT_SIZES = {
    "vocabulary_size": 8008,
    "width": 2560,
    "heads": 32,
    "layers": 24,
    "encoder_layers": 2,
    "mlp_width": 10240,
    "context_length": 128,
}
# What very old files say of variants that were dropped.
PRE_NORM = {
    "normalize_before": True,
    "add_final_layer_norm": True,
    "static_position_embeddings": False,
}
POST_NORM = {
    "normalize_before": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}


def read_blenderbot(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    settings.fixed(PRE_NORM | {"normalize_embedding": False, "extra_pos_embeddings": 0})
    return config.ModelConfig(
        **read_stacks(settings, weights, BLENDERBOT_SIZES), tied_head=read_tied(settings)
    )


def read_mbart(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    settings.fixed(PRE_NORM | {"normalize_embedding": True, "extra_pos_embeddings": bart.OFFSET})
    fields = read_stacks(settings, weights, bart.SIZES)
    return config.ModelConfig(
        **fields, embedding_norm=True, position_offset=bart.OFFSET, tied_head=read_tied(settings)
    )


def read_marian(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    """Its tables of positions are computed; files that have them repeat what every Marian has."""
    settings.fixed(POST_NORM | {"normalize_embedding": False, "extra_pos_embeddings": 0})
    fields = read_stacks(settings, weights, bart.SIZES | {"vocabulary_size": 58101})
    settings.fixed({"decoder_vocab_size": fields["vocabulary_size"]})
    shared = settings.number("share_encoder_decoder_embeddings", True, bool)
    return config.ModelConfig(
        **fields,
        norm_placement="post",
        positions="sinusoidal",
        shared_embedding=shared,
        tied_head=read_tied(settings),
    )


def read_tied(settings: HFConfig) -> bool:
    return settings.number("tie_word_embeddings", True, bool)


def write(model: config.ModelConfig) -> dict[str, Any]:
    return bart.write(model) | {"tie_word_embeddings": model.tied_head}


def write_marian(model: config.ModelConfig) -> dict[str, Any]:
    return write(model) | {
        "decoder_vocab_size": model.vocabulary_size,
        "share_encoder_decoder_embeddings": model.shared_embedding,
        "pad_token_id": None,  # the class's own is no token of a smaller vocabulary, and fails then
    }


SHARED, OWN, HEAD = "encoder.embedding.tokens", "decoder.embedding.tokens", "decoder.head.kernel"
RULES = (
    Rule("model.shared.weight", "v d", (SHARED,), "vd", when=f"!{OWN} !{HEAD}"),
    # transformers 5 unties the stacks' tables too where the head is not tied: each is written, with the same numbers.
    Rule("model.shared.weight", "v d", (SHARED,), "vd", when=f"!{OWN} {HEAD}", copies=TABLES),
    Rule(TABLES[0], "v d", (SHARED,), "vd", when=OWN),
    Rule(TABLES[1], "v d", (OWN,), "vd"),
    *stack("encoder"),
    *norm("model.encoder.layer_norm", "encoder.final_norm"),
    *stack("decoder"),
    *norm("model.decoder.layer_norm", "decoder.final_norm"),
    *attention(CROSS, "decoder.blocks.cross_attention"),
    *norm(f"{CROSS}_layer_norm", "decoder.blocks.cross_attention_norm"),
    Rule("lm_head.weight", "v d", (HEAD,), "dv"),
    Rule("final_logits_bias", "o v", ("decoder.head.bias",), "v", zeros=True),
)


def architecture(
    model_type: str,
    classes: tuple[str, ...],
    read: Callable[[HFConfig, Weights], config.ModelConfig],
    write: Callable[[config.ModelConfig], dict[str, Any]],
    ignored: tuple[str, ...] = (),
) -> Architecture:
    return Architecture(
        model_type,
        classes,
        "encoder_decoder",
        read,
        write,
        RULES,
        root="model.",
        ignored=ignored,
        aliases=bart.BART.aliases,
    )


POSITIONS = (r"(model\.)?(encoder|decoder)\.embed_positions\.weight",)
BLENDERBOT = architecture(
    "blenderbot", ("BlenderbotForConditionalGeneration", "BlenderbotModel"), read_blenderbot, write
)
MBART = architecture("mbart", ("MBartForConditionalGeneration", "MBartModel"), read_mbart, write)
MARIAN = architecture(
    "marian", ("MarianMTModel", "MarianModel"), read_marian, write_marian, POSITIONS
)
