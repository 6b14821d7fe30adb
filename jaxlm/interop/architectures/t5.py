"""T5 1.0, 1.1 and FLAN-T5 (T5ForConditionalGeneration)."""

from dataclasses import replace
from typing import Any

from jaxlm import config
from jaxlm.config.model import Activation
from jaxlm.interop.architectures.common import ACTIVATIONS, NAMES, known, refuse_extras, unless
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, Weights

# "gated-gelu" means the tanh form, "gelu" the exact one; another name of the exact one has it gated.
FEED_FORWARD = {name: (ours, False) for name, ours in ACTIVATIONS.items()} | {
    f"gated-{name}": ("gelu_tanh" if name == "gelu" else ours, True)
    for name, ours in ACTIVATIONS.items()
}
GATED = {name: f"gated-{theirs}" for name, theirs in NAMES.items()} | {
    "gelu_tanh": "gated-gelu",
    "gelu": "gated-gelu_python",
}


def refuse_decoder_extras(settings: HFConfig) -> None:
    """What no encoder-decoder may have."""
    settings.fixed({"is_encoder_decoder": True, "is_decoder": False, "tie_encoder_decoder": False})
    refuse_extras(
        replace(
            settings,
            values={
                key: value for key, value in settings.values.items() if key != "is_encoder_decoder"
            },
        )
    )


def read(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    """`tie_word_embeddings` says whether features are scaled before the head, in transformers 4 also whether that is tied.

    transformers 5 writes the first as `scale_decoder_outputs`, and unties a head that is in the file with numbers of its own.
    """
    refuse_decoder_extras(settings)
    width, heads = (
        known(settings, ("d_model", "hidden_size"), 512),
        known(settings, ("num_heads", "num_attention_heads"), 8),
    )
    encoder_layers = known(settings, ("num_layers", "num_hidden_layers"), 6)
    decoder_layers = settings.number("num_decoder_layers", None)
    layers = encoder_layers if decoder_layers is None else decoder_layers
    activation, gated = read_feed_forward(settings)
    scaled = settings.number(
        "scale_decoder_outputs", settings.number("tie_word_embeddings", True, bool), bool
    )
    dropout = settings.number("dropout_rate", 0.1, float)
    return config.ModelConfig(
        family="encoder_decoder",
        vocabulary_size=settings.number("vocab_size", 32128),
        layers=layers,
        encoder_layers=unless(encoder_layers, layers),
        heads=heads,
        head_width=unless(known(settings, ("d_kv", "head_dim"), 64), width / max(1, heads)),
        mlp_width=unless(settings.number("d_ff", 2048), 4 * width),
        width=width,
        context_length=settings.number("n_positions", 512),
        norm="rmsnorm",
        norm_epsilon=settings.number("layer_norm_epsilon", 1e-6, float),
        positions="relative",
        relative_buckets=settings.number("relative_attention_num_buckets", 32),
        relative_max_distance=settings.number("relative_attention_max_distance", 128),
        activation=activation,
        gated=gated,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        attention_scale=1.0,
        head_scaling=scaled,
        tied_head=scaled or "lm_head.weight" not in weights,
        dropout=dropout,
        attention_dropout=dropout,
        initializer="t5",
    )


def read_feed_forward(settings: HFConfig) -> tuple[Activation, bool]:
    """(activation, gated). What files repeat of it must agree: which one counts is up to the version of `transformers`."""
    activation, gated = settings.choice("feed_forward_proj", FEED_FORWARD, "relu")
    settings.fixed({"is_gated_act": gated})
    if settings.choice("dense_act_fn", ACTIVATIONS | {None: activation}, None) != activation:
        settings.refuse(
            "dense_act_fn", f"{settings.get('dense_act_fn')!r} contradicts feed_forward_proj"
        )
    return activation, gated


def write(model: config.ModelConfig) -> dict[str, Any]:
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
        "feed_forward_proj": GATED[model.activation] if model.gated else NAMES[model.activation],
        "tie_word_embeddings": model.head_scaling,
        "scale_decoder_outputs": model.head_scaling,
        "dropout_rate": model.dropout,
        "is_encoder_decoder": True,
    }


def attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.q.weight", "hk d", (f"{ours}.query_kernel",), "dhk"),
        Rule(f"{theirs}.k.weight", "hk d", (f"{ours}.key_kernel",), "dhk"),
        Rule(f"{theirs}.v.weight", "hk d", (f"{ours}.value_kernel",), "dhk"),
        Rule(f"{theirs}.o.weight", "d hk", (f"{ours}.output_kernel",), "hkd"),
    )


def stack(name: str, mlp: int) -> tuple[Rule, ...]:
    """One of the two stacks. Sublayers have numbers: the MLP's is `mlp`. The first layer owns the bias of all."""
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
        *attention(f"{block}.0.SelfAttention", f"{blocks}.attention"),
        Rule(f"{block}.{mlp}.layer_norm.weight", "d", (f"{blocks}.mlp_norm.scale",), "d"),
        Rule(f"{dense}.wi.weight", "f d", (f"{blocks}.mlp.up_kernel",), "df", when=f"!{gate}"),
        Rule(f"{dense}.wi_0.weight", "f d", (gate,), "df"),
        Rule(f"{dense}.wi_1.weight", "f d", (f"{blocks}.mlp.up_kernel",), "df", when=gate),
        Rule(f"{dense}.wo.weight", "d f", (f"{blocks}.mlp.down_kernel",), "fd"),
        Rule(f"{name}.final_layer_norm.weight", "d", (f"{name}.final_norm.scale",), "d"),
    )


CROSS = "decoder.block.{}.layer.1"
T5 = Architecture(
    model_type="t5",
    classes=("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    family="encoder_decoder",
    read=read,
    write=write,
    rules=(
        Rule("shared.weight", "v d", ("encoder.embedding.tokens",), "vd"),
        *stack("encoder", 1),
        *stack("decoder", 2),
        Rule(
            f"{CROSS}.layer_norm.weight", "d", ("decoder.blocks.cross_attention_norm.scale",), "d"
        ),
        *attention(f"{CROSS}.EncDecAttention", "decoder.blocks.cross_attention"),
        Rule("lm_head.weight", "v d", ("decoder.head.kernel",), "dv"),
    ),
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    aliases=dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
        "shared.weight",
    ),
)
