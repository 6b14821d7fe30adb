"""Relatives of BART whose tensors have the same names.

Blenderbot and mBART are pre-norm, Marian is the original Transformer.
"""

from collections.abc import Callable
from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.architectures import bart
from jaxlm.interop.architectures.bart import (
    BART_CROSS_ATTENTION,
    BART_TOKEN_TABLES,
    bart_attention_rules,
    bart_stack_rules,
    read_bart_stacks,
)
from jaxlm.interop.architectures.bert import norm_rules
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence

BLENDERBOT_DEFAULTS = {
    "vocabulary_size": 8008,
    "width": 2560,
    "heads": 32,
    "layers": 24,
    "encoder_layers": 2,
    "mlp_width": 10240,
    "context_length": 128,
}
# Keys of variants that old files still have. Only the values of the class itself are read.
PRE_NORM_DROPPED_KEYS = {
    "normalize_before": True,
    "add_final_layer_norm": True,
    "static_position_embeddings": False,
}
POST_NORM_DROPPED_KEYS = {
    "normalize_before": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}


def read_blenderbot(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    hf_config.require(
        PRE_NORM_DROPPED_KEYS | {"normalize_embedding": False, "extra_pos_embeddings": 0}
    )
    return ModelConfig(
        **read_bart_stacks(hf_config, tensors, BLENDERBOT_DEFAULTS),
        tied_head=read_tied_head(hf_config),
    )


def read_mbart(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    hf_config.require(
        PRE_NORM_DROPPED_KEYS
        | {"normalize_embedding": True, "extra_pos_embeddings": bart.BART_POSITION_OFFSET}
    )
    fields = read_bart_stacks(hf_config, tensors, bart.BART_DEFAULTS)
    return ModelConfig(
        **fields,
        embedding_norm=True,
        position_offset=bart.BART_POSITION_OFFSET,
        tied_head=read_tied_head(hf_config),
    )


def read_marian(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    """Return the model of a Marian config.json.

    Its tables of positions are computed; files may have them, but they are the same in each.
    """
    hf_config.require(
        POST_NORM_DROPPED_KEYS | {"normalize_embedding": False, "extra_pos_embeddings": 0}
    )
    fields = read_bart_stacks(hf_config, tensors, bart.BART_DEFAULTS | {"vocabulary_size": 58101})
    hf_config.require({"decoder_vocab_size": fields["vocabulary_size"]})
    shared = hf_config.scalar("share_encoder_decoder_embeddings", True, bool)

    return ModelConfig(
        **fields,
        norm_placement="post",
        positions="sinusoidal",
        shared_embedding=shared,
        tied_head=read_tied_head(hf_config),
    )


def read_tied_head(hf_config: HFConfig) -> bool:
    """Return whether the head is the table of tokens."""
    return hf_config.scalar("tie_word_embeddings", True, bool)


def write_bart_relative(model: ModelConfig) -> dict[str, Any]:
    return bart.write_bart(model) | {"tie_word_embeddings": model.tied_head}


def write_marian(model: ModelConfig) -> dict[str, Any]:
    return write_bart_relative(model) | {
        "decoder_vocab_size": model.vocabulary_size,
        "share_encoder_decoder_embeddings": model.shared_embedding,
        "pad_token_id": None,  # the default of the class fails in a smaller vocabulary
    }


SHARED_TABLE = "encoder.embedding.tokens"
DECODER_TABLE = "decoder.embedding.tokens"
DECODER_HEAD = "decoder.head.kernel"
BART_RELATIVE_RULES = (
    Rule(
        "model.shared.weight",
        "v d",
        (SHARED_TABLE,),
        "vd",
        when=f"!{DECODER_TABLE} !{DECODER_HEAD}",
    ),
    # Where the head is not tied, transformers 5 unties the tables of the stacks too: each of them
    # is written, with the same numbers.
    Rule(
        "model.shared.weight",
        "v d",
        (SHARED_TABLE,),
        "vd",
        when=f"!{DECODER_TABLE} {DECODER_HEAD}",
        copies=BART_TOKEN_TABLES,
    ),
    Rule(BART_TOKEN_TABLES[0], "v d", (SHARED_TABLE,), "vd", when=DECODER_TABLE),
    Rule(BART_TOKEN_TABLES[1], "v d", (DECODER_TABLE,), "vd"),
    *bart_stack_rules("encoder"),
    *norm_rules("model.encoder.layer_norm", "encoder.final_norm"),
    *bart_stack_rules("decoder"),
    *norm_rules("model.decoder.layer_norm", "decoder.final_norm"),
    *bart_attention_rules(BART_CROSS_ATTENTION, "decoder.blocks.cross_attention"),
    *norm_rules(f"{BART_CROSS_ATTENTION}_layer_norm", "decoder.blocks.cross_attention_norm"),
    Rule("lm_head.weight", "v d", (DECODER_HEAD,), "dv"),
    Rule("final_logits_bias", "o v", ("decoder.head.bias",), "v", zeros=True),
)


def bart_relative(
    model_type: str,
    classes: tuple[str, ...],
    read: Callable[[HFConfig, TensorPresence], ModelConfig],
    write: Callable[[ModelConfig], dict[str, Any]],
    ignored: tuple[str, ...] = (),
) -> Architecture:
    """Return an architecture with BART's names of tensors."""
    return Architecture(
        model_type,
        classes,
        "encoder_decoder",
        read,
        write,
        BART_RELATIVE_RULES,
        root="model.",
        ignored=ignored,
        aliases=bart.BART.aliases,
    )


MARIAN_POSITION_TABLES = (r"(model\.)?(encoder|decoder)\.embed_positions\.weight",)
BLENDERBOT = bart_relative(
    "blenderbot",
    ("BlenderbotForConditionalGeneration", "BlenderbotModel"),
    read_blenderbot,
    write_bart_relative,
)
MBART = bart_relative(
    "mbart", ("MBartForConditionalGeneration", "MBartModel"), read_mbart, write_bart_relative
)
MARIAN = bart_relative(
    "marian", ("MarianMTModel", "MarianModel"), read_marian, write_marian, MARIAN_POSITION_TABLES
)
