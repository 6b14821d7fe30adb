"""Encoders and the torch models that they are compared with."""

from collections.abc import Callable
from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.types import Tree
from support import model_references
from support.cases import ROWS, Pair, TorchStack
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
)
from support.parity import VOCABULARY, build_reference


def bert(
    state: State, root: str, head: dict[str, str], head_width: int, layers: int, fill: float = 7.0
) -> Tree:
    """Map transformers' BertForMaskedLM and RobertaForMaskedLM.

    `head` names the tensors between the stack and the vocabulary.
    """

    def layer(i: int) -> Tree:
        s = part(state, f"{root}.encoder.layer.{i}.")
        attention = from_heads(s, "attention.output.dense", head_width)
        for name in ("query", "key", "value"):
            attention |= to_heads(s, f"attention.self.{name}", name, head_width)
        return {
            "attention": attention,
            "attention_norm": norm(s, "attention.output.LayerNorm"),
            "mlp": dense(s, "intermediate.dense", "up") | dense(s, "output.dense", "down"),
            "mlp_norm": norm(s, "output.LayerNorm"),
        }

    s = part(state, f"{root}.embeddings.")
    transform = dense(state, head["dense"], "transform") | {
        "transform_norm": norm(state, head["norm"])
    }
    return {
        "embedding": {
            "tokens": rows(s["word_embeddings.weight"], fill),
            "positions": s["position_embeddings.weight"],
            "types": s["token_type_embeddings.weight"],
            "norm": norm(s, "LayerNorm"),
        },
        "blocks": stacked(layer, layers),
        "head": transform | {"bias": padded(state[head["bias"]], fill)},
    }


HEADS = {
    "Bert": {
        "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
    },
    "Roberta": {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"},
}


def masked_lm(cls: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Pair:
    sizes = {
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 50,
    }
    reference = build_reference(
        f"{cls}ForMaskedLM",
        **sizes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **theirs,
    )
    fields: dict[str, Any] = {
        "norm_placement": "post",
        "embedding_norm": True,
        "activation": "gelu",
        "head_bias": True,
    }
    config = encoder(
        layers=2, width=36, heads=3, mlp_width=50, head_transform=True, **fields, **ours
    )
    return Pair(
        reference, config, lambda state, fill=7.0: bert(state, cls.lower(), HEADS[cls], 12, 2, fill)
    )


def encoder(**fields) -> ModelConfig:
    return ModelConfig(family="encoder", vocabulary_size=VOCABULARY, context_length=ROWS, **fields)


def pre_norm() -> Pair:
    config = encoder(
        layers=2,
        width=36,
        heads=3,
        mlp_width=50,
        activation="gelu",
        tied_head=False,
        head_bias=True,
    )
    return Pair(
        TorchStack(causal=False, norm_first=True),
        config,
        lambda state, fill=7.0: model_references.torch_stack(state, 3, 2, fill),
    )


ENCODERS: dict[str, Callable[[], Pair]] = {
    "bert": lambda: masked_lm(
        "Bert",
        {"max_position_embeddings": ROWS, "type_vocab_size": 3},
        {"norm_epsilon": 1e-12, "token_types": 3},
    ),
    "roberta": lambda: masked_lm(
        "Roberta",
        {"max_position_embeddings": ROWS + 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        {"position_offset": 2, "token_types": 1},
    ),
    "pre-norm": pre_norm,
}
