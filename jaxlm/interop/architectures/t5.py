"""T5 1.0, 1.1 and FLAN-T5 (T5ForConditionalGeneration)."""

from dataclasses import replace
from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.config.model import Activation
from jaxlm.interop.architectures.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    aliased_scalar,
    none_if,
    refuse_unsupported,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence

# "gated-gelu" means the tanh form and "gelu" the exact one, which "gated-gelu_python" gates.
T5_FEED_FORWARD = {name: (ours, False) for name, ours in ACTIVATIONS.items()} | {
    f"gated-{name}": ("gelu_tanh" if name == "gelu" else ours, True)
    for name, ours in ACTIVATIONS.items()
}
T5_GATED_NAMES = {ours: f"gated-{name}" for ours, name in ACTIVATION_NAMES.items()} | {
    "gelu_tanh": "gated-gelu",
    "gelu": "gated-gelu_python",
}


def refuse_unsupported_stacks(hf_config: HFConfig) -> None:
    """Refuse keys of any encoder-decoder that change its function in ways that jaxlm can't."""
    hf_config.require(
        {"is_encoder_decoder": True, "is_decoder": False, "tie_encoder_decoder": False}
    )
    values = {key: value for key, value in hf_config.values.items() if key != "is_encoder_decoder"}
    refuse_unsupported(replace(hf_config, values=values))


def read_t5(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    """Return the model of a T5 config.json.

    `tie_word_embeddings` says whether features are scaled before the head, and in transformers 4
    also whether the head is tied. transformers 5 writes the scaling as `scale_decoder_outputs`, and
    a head is tied unless the file has one with numbers of its own.
    """
    refuse_unsupported_stacks(hf_config)
    width = aliased_scalar(hf_config, ("d_model", "hidden_size"), 512)
    heads = aliased_scalar(hf_config, ("num_heads", "num_attention_heads"), 8)
    encoder_layers = aliased_scalar(hf_config, ("num_layers", "num_hidden_layers"), 6)
    decoder_layers = hf_config.scalar("num_decoder_layers", None)
    layers = encoder_layers if decoder_layers is None else decoder_layers
    activation, gated = read_t5_feed_forward(hf_config)
    scaled = hf_config.scalar(
        "scale_decoder_outputs", hf_config.scalar("tie_word_embeddings", True, bool), bool
    )
    dropout = hf_config.scalar("dropout_rate", 0.1, float)

    return ModelConfig(
        family="encoder_decoder",
        vocabulary_size=hf_config.scalar("vocab_size", 32128),
        layers=layers,
        encoder_layers=none_if(encoder_layers, layers),
        heads=heads,
        head_width=none_if(
            aliased_scalar(hf_config, ("d_kv", "head_dim"), 64), width / max(1, heads)
        ),
        mlp_width=none_if(hf_config.scalar("d_ff", 2048), 4 * width),
        width=width,
        context_length=hf_config.scalar("n_positions", 512),
        norm="rmsnorm",
        norm_epsilon=hf_config.scalar("layer_norm_epsilon", 1e-6, float),
        positions="relative",
        relative_buckets=hf_config.scalar("relative_attention_num_buckets", 32),
        relative_max_distance=hf_config.scalar("relative_attention_max_distance", 128),
        activation=activation,
        gated=gated,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        attention_scale=1.0,
        head_scaling=scaled,
        tied_head=scaled or "lm_head.weight" not in tensors,
        dropout=dropout,
        attention_dropout=dropout,
        initializer="t5",
    )


def read_t5_feed_forward(hf_config: HFConfig) -> tuple[Activation, bool]:
    """Return (activation, gated).

    Files repeat both under other keys, which must agree: which one counts depends on the version
    of `transformers`.
    """
    activation, gated = hf_config.choice("feed_forward_proj", T5_FEED_FORWARD, "relu")
    hf_config.require({"is_gated_act": gated})
    if hf_config.choice("dense_act_fn", ACTIVATIONS | {None: activation}, None) != activation:
        hf_config.refuse(
            "dense_act_fn", f"{hf_config.get('dense_act_fn')!r} contradicts feed_forward_proj"
        )
    return activation, gated


def write_t5(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "d_model": model.width,
        "d_kv": model.width_per_head,
        "d_ff": model.hidden_width,
        "num_layers": model.encoder.layers,
        "num_decoder_layers": model.layers,
        "num_heads": model.heads,
        "n_positions": model.context_length,
        "relative_attention_num_buckets": model.relative_buckets,
        "relative_attention_max_distance": model.relative_max_distance,
        "layer_norm_epsilon": model.norm_epsilon,
        "feed_forward_proj": T5_GATED_NAMES[model.activation]
        if model.gated
        else ACTIVATION_NAMES[model.activation],
        "tie_word_embeddings": model.head_scaling,
        "scale_decoder_outputs": model.head_scaling,
        "dropout_rate": model.dropout,
        "is_encoder_decoder": True,
    }


def t5_attention_rules(tensor: str, parameter: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{tensor}.q.weight", "hk d", (f"{parameter}.query_kernel",), "dhk"),
        Rule(f"{tensor}.k.weight", "hk d", (f"{parameter}.key_kernel",), "dhk"),
        Rule(f"{tensor}.v.weight", "hk d", (f"{parameter}.value_kernel",), "dhk"),
        Rule(f"{tensor}.o.weight", "d hk", (f"{parameter}.output_kernel",), "hkd"),
    )


def t5_stack_rules(name: str, mlp: int) -> tuple[Rule, ...]:
    """Return the rules of one stack without cross attention.

    Sublayers are numbered, and `mlp` is the number of the MLP. The first layer has the relative
    bias of all.
    """
    block, blocks, gate = (
        f"{name}.block.{{}}.layer",
        f"{name}.blocks",
        f"{name}.blocks.mlp.gate_kernel",
    )
    dense = f"{block}.{mlp}.DenseReluDense"
    bias = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

    return (
        Rule(bias, "b h", (f"{name}.relative_bias.table",), "bh"),
        Rule(f"{block}.0.layer_norm.weight", "d", (f"{blocks}.attention_norm.scale",), "d"),
        *t5_attention_rules(f"{block}.0.SelfAttention", f"{blocks}.attention"),
        Rule(f"{block}.{mlp}.layer_norm.weight", "d", (f"{blocks}.mlp_norm.scale",), "d"),
        Rule(f"{dense}.wi.weight", "f d", (f"{blocks}.mlp.up_kernel",), "df", when=f"!{gate}"),
        Rule(f"{dense}.wi_0.weight", "f d", (gate,), "df"),
        Rule(f"{dense}.wi_1.weight", "f d", (f"{blocks}.mlp.up_kernel",), "df", when=gate),
        Rule(f"{dense}.wo.weight", "d f", (f"{blocks}.mlp.down_kernel",), "fd"),
        Rule(f"{name}.final_layer_norm.weight", "d", (f"{name}.final_norm.scale",), "d"),
    )


T5_CROSS_ATTENTION = "decoder.block.{}.layer.1"
T5 = Architecture(
    model_type="t5",
    classes=("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    family="encoder_decoder",
    read=read_t5,
    write=write_t5,
    rules=(
        Rule("shared.weight", "v d", ("encoder.embedding.tokens",), "vd"),
        *t5_stack_rules("encoder", 1),
        *t5_stack_rules("decoder", 2),
        Rule(
            f"{T5_CROSS_ATTENTION}.layer_norm.weight",
            "d",
            ("decoder.blocks.cross_attention_norm.scale",),
            "d",
        ),
        *t5_attention_rules(
            f"{T5_CROSS_ATTENTION}.EncDecAttention", "decoder.blocks.cross_attention"
        ),
        Rule("lm_head.weight", "v d", ("decoder.head.kernel",), "dv"),
    ),
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    aliases=dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
        "shared.weight",
    ),
)
