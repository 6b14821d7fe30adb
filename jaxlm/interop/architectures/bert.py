"""BERT, RoBERTa and DistilBERT (...ForMaskedLM): post-norm encoders whose head is a dense layer before the vocabulary."""

from typing import Any

from jaxlm import config
from jaxlm.interop.architectures.common import (
    ACTIVATIONS,
    NAMES,
    check_heads,
    known,
    refuse_extras,
    unless,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, Weights

SHAPE: dict[str, Any] = {
    "family": "encoder",
    "norm_placement": "post",
    "embedding_norm": True,
    "head_transform": True,
    "head_bias": True,
}


def sizes(settings: HFConfig) -> dict[str, Any]:
    """What BERT and RoBERTa call the same."""
    refuse_extras(settings)
    settings.fixed({"is_decoder": False, "position_embedding_type": "absolute"})
    width, heads = settings.number("hidden_size", 768), settings.number("num_attention_heads", 12)
    check_heads(settings, width, heads)
    return SHAPE | {
        "layers": settings.number("num_hidden_layers", 12),
        "heads": heads,
        "mlp_width": unless(settings.number("intermediate_size", 3072), 4 * width),
        "width": width,
        "norm_epsilon": settings.number("layer_norm_eps", 1e-12, float),
        "token_types": settings.number("type_vocab_size", 2),
        "activation": settings.choice("hidden_act", ACTIVATIONS, "gelu"),
        "tied_head": settings.number("tie_word_embeddings", True, bool),
        "dropout": settings.number("hidden_dropout_prob", 0.1, float),
        "attention_dropout": settings.number("attention_probs_dropout_prob", 0.1, float),
        "initializer": "normal",
        "initializer_std": settings.number("initializer_range", 0.02, float),
    }


def read_bert(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    vocabulary, rows = (
        settings.number("vocab_size", 30522),
        settings.number("max_position_embeddings", 512),
    )
    return config.ModelConfig(**sizes(settings), vocabulary_size=vocabulary, context_length=rows)


def read_roberta(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    """Its positions are counted from the number of its padding token, plus one. Its head has exact GELU whatever the blocks have."""
    fields, pad = sizes(settings), settings.number("pad_token_id", 1)
    rows = settings.number("max_position_embeddings", 512)
    if pad < 0:
        settings.refuse("pad_token_id", f"{pad} is no token, and positions are counted from it")
    if rows <= pad + 1:
        settings.refuse(
            "max_position_embeddings", f"{rows} leaves no position behind the padding's ({pad})"
        )
    return config.ModelConfig(
        **fields,
        vocabulary_size=settings.number("vocab_size", 50265),
        context_length=rows - pad - 1,
        position_offset=pad + 1,
        head_activation=unless("gelu", fields["activation"]),
    )


def write_bert(model: config.ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.hidden_width,
        "hidden_act": NAMES[model.activation],
        "max_position_embeddings": model.context_length,
        "type_vocab_size": max(1, model.token_types),  # there is no model without
        "layer_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tied_head,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "initializer_range": model.initializer_std,
    }


def write_roberta(model: config.ModelConfig) -> dict[str, Any]:
    offset = max(1, model.position_offset)  # what follows a token's number is never 0
    return write_bert(model) | {
        "max_position_embeddings": model.context_length + offset,
        "pad_token_id": offset - 1,
    }


def read_distilbert(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    refuse_extras(settings)
    width, heads = (
        known(settings, ("dim", "hidden_size"), 768),
        known(settings, ("n_heads", "num_attention_heads"), 12),
    )
    if heads > 0 and width % heads:
        settings.refuse("dim", f"{width} is not a multiple of n_heads ({heads})")
    return config.ModelConfig(
        **SHAPE,
        vocabulary_size=settings.number("vocab_size", 30522),
        layers=known(settings, ("n_layers", "num_hidden_layers"), 6),
        heads=heads,
        mlp_width=unless(settings.number("hidden_dim", 3072), 4 * width),
        width=width,
        context_length=settings.number("max_position_embeddings", 512),
        norm_epsilon=1e-12,
        activation=settings.choice("activation", ACTIVATIONS, "gelu"),
        tied_head=settings.number("tie_word_embeddings", True, bool),
        dropout=settings.number("dropout", 0.1, float),
        attention_dropout=settings.number("attention_dropout", 0.1, float),
        initializer="normal",
        initializer_std=settings.number("initializer_range", 0.02, float),
    )


def write_distilbert(model: config.ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "dim": model.width,
        "n_layers": model.layers,
        "n_heads": model.heads,
        "hidden_dim": model.hidden_width,
        "activation": NAMES[model.activation],
        "max_position_embeddings": model.context_length,
        "sinusoidal_pos_embds": False,  # of the first values of a table that is written anyway
        "tie_word_embeddings": model.tied_head,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.initializer_std,
    }


def norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f"{theirs}.weight", "d", (f"{ours}.scale",), "d"), Rule(
        f"{theirs}.bias", "d", (f"{ours}.bias",), "d"
    )


def dense(
    theirs: str, ours: str, layout: str, dims: str, bias: tuple[str, str]
) -> tuple[Rule, ...]:
    """A kernel and its bias, each with the layout of theirs and the dimensions of ours."""
    kernel = Rule(f"{theirs}.weight", layout, (f"{ours}_kernel",), dims)
    return kernel, Rule(f"{theirs}.bias", bias[0], (f"{ours}_bias",), bias[1])


def to_heads(theirs: str, ours: str) -> tuple[Rule, ...]:
    return dense(theirs, ours, "hk d", "dhk", ("hk", "hk"))


def from_heads(theirs: str, ours: str) -> tuple[Rule, ...]:
    return dense(theirs, ours, "d hk", "hkd", ("d", "d"))


def mlp(up: str, down: str, ours: str) -> tuple[Rule, ...]:
    return (
        *dense(up, f"{ours}.up", "f d", "df", ("f", "f")),
        *dense(down, f"{ours}.down", "d f", "fd", ("d", "d")),
    )


def transform(theirs: str, its_norm: str) -> tuple[Rule, ...]:
    """The dense layer before the vocabulary; `e` is its output, as wide as its input."""
    return *dense(theirs, "head.transform", "e d", "de", ("e", "e")), *norm(
        its_norm, "head.transform_norm"
    )


def vocabulary(decoder: str, bias: str) -> tuple[Rule, ...]:
    """`transformers` adds the decoder's bias, which is the head's own only as long as the decoder is tied: both are written.

    Without the decoder's, releases of transformers 4 replace RoBERTa's bias by zeros.
    """
    return (
        Rule(f"{decoder}.weight", "v d", ("head.kernel",), "dv"),
        Rule(bias, "v", ("head.bias",), "v", when="!head.kernel", copies=(f"{decoder}.bias",)),
        Rule(f"{decoder}.bias", "v", ("head.bias",), "v", when="head.kernel", copies=(bias,)),
    )


def body(root: str) -> tuple[Rule, ...]:
    """BERT's and RoBERTa's, which differ in the head alone."""
    layer, attention = f"{root}.encoder.layer.{{}}", f"{root}.encoder.layer.{{}}.attention"
    return (
        Rule(f"{root}.embeddings.word_embeddings.weight", "v d", ("embedding.tokens",), "vd"),
        Rule(
            f"{root}.embeddings.position_embeddings.weight", "p d", ("embedding.positions",), "pd"
        ),
        Rule(f"{root}.embeddings.token_type_embeddings.weight", "t d", ("embedding.types",), "td"),
        *norm(f"{root}.embeddings.LayerNorm", "embedding.norm"),
        *to_heads(f"{attention}.self.query", "blocks.attention.query"),
        *to_heads(f"{attention}.self.key", "blocks.attention.key"),
        *to_heads(f"{attention}.self.value", "blocks.attention.value"),
        *from_heads(f"{attention}.output.dense", "blocks.attention.output"),
        *norm(f"{attention}.output.LayerNorm", "blocks.attention_norm"),
        *mlp(f"{layer}.intermediate.dense", f"{layer}.output.dense", "blocks.mlp"),
        *norm(f"{layer}.output.LayerNorm", "blocks.mlp_norm"),
    )


OLD_NAMES = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
UNUSED = (
    r"(\w+\.)?embeddings\.(position_ids|token_type_ids)",
    r"(\w+\.)?pooler\..*",
)  # buffers, and what classifies whole sequences

HEAD = "cls.predictions"
BERT = Architecture(
    model_type="bert",
    classes=("BertForMaskedLM", "BertForPreTraining"),
    family="encoder",
    read=read_bert,
    write=write_bert,
    rules=(
        *body("bert"),
        *transform(f"{HEAD}.transform.dense", f"{HEAD}.transform.LayerNorm"),
        *vocabulary(f"{HEAD}.decoder", f"{HEAD}.bias"),
    ),
    root="bert.",
    ignored=(*UNUSED, r"cls\.seq_relationship\..*"),
    aliases={
        f"{HEAD}.decoder.weight": "bert.embeddings.word_embeddings.weight",
        f"{HEAD}.decoder.bias": f"{HEAD}.bias",
    },
    renamed=OLD_NAMES,
)

ROBERTA = Architecture(
    model_type="roberta",
    classes=("RobertaForMaskedLM",),
    family="encoder",
    read=read_roberta,
    write=write_roberta,
    rules=(
        *body("roberta"),
        *transform("lm_head.dense", "lm_head.layer_norm"),
        *vocabulary("lm_head.decoder", "lm_head.bias"),
    ),
    root="roberta.",
    ignored=UNUSED,
    aliases={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    renamed=OLD_NAMES,
)

LAYER = "distilbert.transformer.layer.{}"
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
        *norm("distilbert.embeddings.LayerNorm", "embedding.norm"),
        *to_heads(f"{LAYER}.attention.q_lin", "blocks.attention.query"),
        *to_heads(f"{LAYER}.attention.k_lin", "blocks.attention.key"),
        *to_heads(f"{LAYER}.attention.v_lin", "blocks.attention.value"),
        *from_heads(f"{LAYER}.attention.out_lin", "blocks.attention.output"),
        *norm(f"{LAYER}.sa_layer_norm", "blocks.attention_norm"),
        *mlp(f"{LAYER}.ffn.lin1", f"{LAYER}.ffn.lin2", "blocks.mlp"),
        *norm(f"{LAYER}.output_layer_norm", "blocks.mlp_norm"),
        *transform("vocab_transform", "vocab_layer_norm"),
        Rule("vocab_projector.weight", "v d", ("head.kernel",), "dv"),
        Rule("vocab_projector.bias", "v", ("head.bias",), "v"),
    ),
    root="distilbert.",
    ignored=UNUSED,
    aliases={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    renamed=OLD_NAMES,
)
