"""BLOOM: ALiBi and a norm after the embeddings.

Query, key and value are one tensor, head by head.
"""

from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.architectures.common import aliased_scalar, check_heads, refuse_unsupported
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence


def read_bloom(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    """Return the model of a BLOOM config.json.

    The model has no context length; `seq_length` is the one that it was trained with.
    """
    refuse_unsupported(hf_config)
    width = aliased_scalar(hf_config, ("n_embed", "hidden_size"), 64)
    heads = aliased_scalar(hf_config, ("n_head", "num_attention_heads"), 8)
    check_heads(hf_config, width, heads)

    return ModelConfig(
        family="decoder",
        vocabulary_size=hf_config.scalar("vocab_size", 250880),
        layers=aliased_scalar(hf_config, ("n_layer", "num_hidden_layers"), 2),
        heads=heads,
        width=width,
        context_length=hf_config.scalar("seq_length", 2048),
        norm_epsilon=hf_config.scalar("layer_norm_epsilon", 1e-5, float),
        residual=hf_config.choice(
            "apply_residual_connection_post_layernorm", {False: "serial", True: "normed"}, False
        ),
        embedding_norm=True,
        positions="alibi",
        activation="gelu_tanh",
        tied_head=hf_config.scalar("tie_word_embeddings", True, bool),
        dropout=hf_config.scalar("hidden_dropout", 0.0, float),
        attention_dropout=hf_config.scalar("attention_dropout", 0.0, float),
        initializer="normal",
        initializer_std=hf_config.scalar("initializer_range", 0.02, float),
    )


def write_bloom(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "n_layer": model.layers,
        "n_head": model.heads,
        "seq_length": model.context_length,
        "layer_norm_epsilon": model.norm_epsilon,
        "apply_residual_connection_post_layernorm": model.residual == "normed",
        "tie_word_embeddings": model.tied_head,
        "hidden_dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.initializer_std,
    }


BLOOM_BLOCK = "transformer.h.{}"
BLOOM_RULES = (
    Rule("transformer.word_embeddings.weight", "v d", ("embedding.tokens",), "vd"),
    Rule("transformer.word_embeddings_layernorm.weight", "d", ("embedding.norm.scale",), "d"),
    Rule("transformer.word_embeddings_layernorm.bias", "d", ("embedding.norm.bias",), "d"),
    Rule(f"{BLOOM_BLOCK}.input_layernorm.weight", "d", ("blocks.attention_norm.scale",), "d"),
    Rule(f"{BLOOM_BLOCK}.input_layernorm.bias", "d", ("blocks.attention_norm.bias",), "d"),
    Rule(
        f"{BLOOM_BLOCK}.self_attention.query_key_value.weight",
        "h3k d",
        (
            "blocks.attention.query_kernel",
            "blocks.attention.key_kernel",
            "blocks.attention.value_kernel",
        ),
        "dhk",
    ),
    Rule(
        f"{BLOOM_BLOCK}.self_attention.query_key_value.bias",
        "h3k",
        ("blocks.attention.query_bias", "blocks.attention.key_bias", "blocks.attention.value_bias"),
        "hk",
    ),
    Rule(
        f"{BLOOM_BLOCK}.self_attention.dense.weight",
        "d hk",
        ("blocks.attention.output_kernel",),
        "hkd",
    ),
    Rule(f"{BLOOM_BLOCK}.self_attention.dense.bias", "d", ("blocks.attention.output_bias",), "d"),
    Rule(f"{BLOOM_BLOCK}.post_attention_layernorm.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    Rule(f"{BLOOM_BLOCK}.post_attention_layernorm.bias", "d", ("blocks.mlp_norm.bias",), "d"),
    Rule(f"{BLOOM_BLOCK}.mlp.dense_h_to_4h.weight", "f d", ("blocks.mlp.up_kernel",), "df"),
    Rule(f"{BLOOM_BLOCK}.mlp.dense_h_to_4h.bias", "f", ("blocks.mlp.up_bias",), "f"),
    Rule(f"{BLOOM_BLOCK}.mlp.dense_4h_to_h.weight", "d f", ("blocks.mlp.down_kernel",), "fd"),
    Rule(f"{BLOOM_BLOCK}.mlp.dense_4h_to_h.bias", "d", ("blocks.mlp.down_bias",), "d"),
    Rule("transformer.ln_f.weight", "d", ("final_norm.scale",), "d"),
    Rule("transformer.ln_f.bias", "d", ("final_norm.bias",), "d"),
    Rule("lm_head.weight", "v d", ("head.kernel",), "dv"),
)

BLOOM = Architecture(
    model_type="bloom",
    classes=("BloomForCausalLM", "BloomModel"),
    family="decoder",
    read=read_bloom,
    write=write_bloom,
    rules=BLOOM_RULES,
    root="transformer.",
    aliases={"lm_head.weight": "transformer.word_embeddings.weight"},
)
