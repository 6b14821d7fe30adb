"""BERT, RoBERTa and DistilBERT (...ForMaskedLM): post-norm encoders.

Their head has a dense layer before the vocabulary.
"""

from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.architectures.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    aliased_scalar,
    check_heads,
    none_if,
    refuse_unsupported,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence

BERT_FIELDS: dict[str, Any] = {
    "family": "encoder",
    "norm_placement": "post",
    "embedding_norm": True,
    "head_transform": True,
    "head_bias": True,
}


def read_bert_fields(hf_config: HFConfig) -> dict[str, Any]:
    """Return the fields that BERT and RoBERTa have under the same keys."""
    refuse_unsupported(hf_config)
    hf_config.require({"is_decoder": False, "position_embedding_type": "absolute"})
    width = hf_config.scalar("hidden_size", 768)
    heads = hf_config.scalar("num_attention_heads", 12)
    check_heads(hf_config, width, heads)

    return BERT_FIELDS | {
        "layers": hf_config.scalar("num_hidden_layers", 12),
        "heads": heads,
        "mlp_width": none_if(hf_config.scalar("intermediate_size", 3072), 4 * width),
        "width": width,
        "norm_epsilon": hf_config.scalar("layer_norm_eps", 1e-12, float),
        "token_types": hf_config.scalar("type_vocab_size", 2),
        "activation": hf_config.choice("hidden_act", ACTIVATIONS, "gelu"),
        "tied_head": hf_config.scalar("tie_word_embeddings", True, bool),
        "dropout": hf_config.scalar("hidden_dropout_prob", 0.1, float),
        "attention_dropout": hf_config.scalar("attention_probs_dropout_prob", 0.1, float),
        "initializer": "normal",
        "initializer_std": hf_config.scalar("initializer_range", 0.02, float),
    }


def read_bert(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    return ModelConfig(
        **read_bert_fields(hf_config),
        vocabulary_size=hf_config.scalar("vocab_size", 30522),
        context_length=hf_config.scalar("max_position_embeddings", 512),
    )


def read_roberta(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    """Return the model of a RoBERTa config.json.

    Positions are counted from the id of the padding token, plus one. The head has the exact GELU
    whatever the blocks have.
    """
    fields = read_bert_fields(hf_config)
    pad = hf_config.scalar("pad_token_id", 1)
    rows = hf_config.scalar("max_position_embeddings", 512)
    if pad < 0:
        hf_config.refuse(
            "pad_token_id", f"must be 0 or more, since positions are counted from it; got {pad}"
        )
    if rows <= pad + 1:
        hf_config.refuse(
            "max_position_embeddings", f"{rows} leaves no position after that of padding ({pad})"
        )

    return ModelConfig(
        **fields,
        vocabulary_size=hf_config.scalar("vocab_size", 50265),
        context_length=rows - pad - 1,
        position_offset=pad + 1,
        head_activation=none_if("gelu", fields["activation"]),
    )


def write_bert(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.hidden_width,
        "hidden_act": ACTIVATION_NAMES[model.activation],
        "max_position_embeddings": model.context_length,
        "type_vocab_size": max(1, model.token_types),  # the class needs at least one
        "layer_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tied_head,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "initializer_range": model.initializer_std,
    }


def write_roberta(model: ModelConfig) -> dict[str, Any]:
    offset = max(1, model.position_offset)  # one more than an id of a token
    return write_bert(model) | {
        "max_position_embeddings": model.context_length + offset,
        "pad_token_id": offset - 1,
    }


def read_distilbert(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    refuse_unsupported(hf_config)
    width = aliased_scalar(hf_config, ("dim", "hidden_size"), 768)
    heads = aliased_scalar(hf_config, ("n_heads", "num_attention_heads"), 12)
    if heads > 0 and width % heads:
        hf_config.refuse("dim", f"{width} is not a multiple of n_heads ({heads})")

    return ModelConfig(
        **BERT_FIELDS,
        vocabulary_size=hf_config.scalar("vocab_size", 30522),
        layers=aliased_scalar(hf_config, ("n_layers", "num_hidden_layers"), 6),
        heads=heads,
        mlp_width=none_if(hf_config.scalar("hidden_dim", 3072), 4 * width),
        width=width,
        context_length=hf_config.scalar("max_position_embeddings", 512),
        norm_epsilon=1e-12,
        activation=hf_config.choice("activation", ACTIVATIONS, "gelu"),
        tied_head=hf_config.scalar("tie_word_embeddings", True, bool),
        dropout=hf_config.scalar("dropout", 0.1, float),
        attention_dropout=hf_config.scalar("attention_dropout", 0.1, float),
        initializer="normal",
        initializer_std=hf_config.scalar("initializer_range", 0.02, float),
    )


def write_distilbert(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "dim": model.width,
        "n_layers": model.layers,
        "n_heads": model.heads,
        "hidden_dim": model.hidden_width,
        "activation": ACTIVATION_NAMES[model.activation],
        "max_position_embeddings": model.context_length,
        "sinusoidal_pos_embds": False,  # only the initial values; the table is written
        "tie_word_embeddings": model.tied_head,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.initializer_std,
    }


def norm_rules(tensor: str, parameter: str) -> tuple[Rule, ...]:
    """Return the rules of a norm's scale and bias."""
    return (
        Rule(f"{tensor}.weight", "d", (f"{parameter}.scale",), "d"),
        Rule(f"{tensor}.bias", "d", (f"{parameter}.bias",), "d"),
    )


def dense_rules(
    tensor: str, parameter: str, layout: str, dims: str, bias: tuple[str, str]
) -> tuple[Rule, ...]:
    """Return the rules of a kernel and its bias.

    `layout` and `dims` are those of the kernel, `bias` has both of the bias.
    """
    kernel = Rule(f"{tensor}.weight", layout, (f"{parameter}_kernel",), dims)
    return kernel, Rule(f"{tensor}.bias", bias[0], (f"{parameter}_bias",), bias[1])


def input_projection_rules(tensor: str, parameter: str) -> tuple[Rule, ...]:
    """Return the rules of a projection from the width to the heads."""
    return dense_rules(tensor, parameter, "hk d", "dhk", ("hk", "hk"))


def output_projection_rules(tensor: str, parameter: str) -> tuple[Rule, ...]:
    """Return the rules of a projection from the heads to the width."""
    return dense_rules(tensor, parameter, "d hk", "hkd", ("d", "d"))


def mlp_rules(up: str, down: str, parameter: str) -> tuple[Rule, ...]:
    return (
        *dense_rules(up, f"{parameter}.up", "f d", "df", ("f", "f")),
        *dense_rules(down, f"{parameter}.down", "d f", "fd", ("d", "d")),
    )


def head_transform_rules(dense: str, norm: str) -> tuple[Rule, ...]:
    """Return the rules of the dense layer before the vocabulary; `e` is its output's width."""
    return (
        *dense_rules(dense, "head.transform", "e d", "de", ("e", "e")),
        *norm_rules(norm, "head.transform_norm"),
    )


def vocabulary_rules(decoder: str, bias: str) -> tuple[Rule, ...]:
    """Return the rules of the last layer: its kernel, and its bias under two names.

    `transformers` adds the decoder's bias, which is the head's own only while the decoder is tied.
    Both are written: without the decoder's, releases of transformers 4 replace RoBERTa's bias by
    zeros.
    """
    return (
        Rule(f"{decoder}.weight", "v d", ("head.kernel",), "dv"),
        Rule(bias, "v", ("head.bias",), "v", when="!head.kernel", copies=(f"{decoder}.bias",)),
        Rule(f"{decoder}.bias", "v", ("head.bias",), "v", when="head.kernel", copies=(bias,)),
    )


def bert_body_rules(root: str) -> tuple[Rule, ...]:
    """Return the rules of BERT and RoBERTa without the head, in which alone they differ."""
    layer, attention = f"{root}.encoder.layer.{{}}", f"{root}.encoder.layer.{{}}.attention"
    return (
        Rule(f"{root}.embeddings.word_embeddings.weight", "v d", ("embedding.tokens",), "vd"),
        Rule(
            f"{root}.embeddings.position_embeddings.weight", "p d", ("embedding.positions",), "pd"
        ),
        Rule(f"{root}.embeddings.token_type_embeddings.weight", "t d", ("embedding.types",), "td"),
        *norm_rules(f"{root}.embeddings.LayerNorm", "embedding.norm"),
        *input_projection_rules(f"{attention}.self.query", "blocks.attention.query"),
        *input_projection_rules(f"{attention}.self.key", "blocks.attention.key"),
        *input_projection_rules(f"{attention}.self.value", "blocks.attention.value"),
        *output_projection_rules(f"{attention}.output.dense", "blocks.attention.output"),
        *norm_rules(f"{attention}.output.LayerNorm", "blocks.attention_norm"),
        *mlp_rules(f"{layer}.intermediate.dense", f"{layer}.output.dense", "blocks.mlp"),
        *norm_rules(f"{layer}.output.LayerNorm", "blocks.mlp_norm"),
    )


BERT_OLD_NAMES = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
# Buffers, and the layer that classifies whole sequences.
BERT_UNUSED_TENSORS = (
    r"(\w+\.)?embeddings\.(position_ids|token_type_ids)",
    r"(\w+\.)?pooler\..*",
)

BERT_HEAD = "cls.predictions"
BERT = Architecture(
    model_type="bert",
    classes=("BertForMaskedLM", "BertForPreTraining"),
    family="encoder",
    read=read_bert,
    write=write_bert,
    rules=(
        *bert_body_rules("bert"),
        *head_transform_rules(f"{BERT_HEAD}.transform.dense", f"{BERT_HEAD}.transform.LayerNorm"),
        *vocabulary_rules(f"{BERT_HEAD}.decoder", f"{BERT_HEAD}.bias"),
    ),
    root="bert.",
    ignored=(*BERT_UNUSED_TENSORS, r"cls\.seq_relationship\..*"),
    aliases={
        f"{BERT_HEAD}.decoder.weight": "bert.embeddings.word_embeddings.weight",
        f"{BERT_HEAD}.decoder.bias": f"{BERT_HEAD}.bias",
    },
    renamed=BERT_OLD_NAMES,
)

ROBERTA = Architecture(
    model_type="roberta",
    classes=("RobertaForMaskedLM",),
    family="encoder",
    read=read_roberta,
    write=write_roberta,
    rules=(
        *bert_body_rules("roberta"),
        *head_transform_rules("lm_head.dense", "lm_head.layer_norm"),
        *vocabulary_rules("lm_head.decoder", "lm_head.bias"),
    ),
    root="roberta.",
    ignored=BERT_UNUSED_TENSORS,
    aliases={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    renamed=BERT_OLD_NAMES,
)

DISTILBERT_LAYER = "distilbert.transformer.layer.{}"
DISTILBERT = Architecture(
    model_type="distilbert",
    classes=("DistilBertForMaskedLM",),
    family="encoder",
    read=read_distilbert,
    write=write_distilbert,
    rules=(
        Rule("distilbert.embeddings.word_embeddings.weight", "v d", ("embedding.tokens",), "vd"),
        Rule(
            "distilbert.embeddings.position_embeddings.weight",
            "p d",
            ("embedding.positions",),
            "pd",
        ),
        *norm_rules("distilbert.embeddings.LayerNorm", "embedding.norm"),
        *input_projection_rules(f"{DISTILBERT_LAYER}.attention.q_lin", "blocks.attention.query"),
        *input_projection_rules(f"{DISTILBERT_LAYER}.attention.k_lin", "blocks.attention.key"),
        *input_projection_rules(f"{DISTILBERT_LAYER}.attention.v_lin", "blocks.attention.value"),
        *output_projection_rules(
            f"{DISTILBERT_LAYER}.attention.out_lin", "blocks.attention.output"
        ),
        *norm_rules(f"{DISTILBERT_LAYER}.sa_layer_norm", "blocks.attention_norm"),
        *mlp_rules(f"{DISTILBERT_LAYER}.ffn.lin1", f"{DISTILBERT_LAYER}.ffn.lin2", "blocks.mlp"),
        *norm_rules(f"{DISTILBERT_LAYER}.output_layer_norm", "blocks.mlp_norm"),
        *head_transform_rules("vocab_transform", "vocab_layer_norm"),
        Rule("vocab_projector.weight", "v d", ("head.kernel",), "dv"),
        Rule("vocab_projector.bias", "v", ("head.bias",), "v"),
    ),
    root="distilbert.",
    ignored=BERT_UNUSED_TENSORS,
    aliases={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    renamed=BERT_OLD_NAMES,
)
