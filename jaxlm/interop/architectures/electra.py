"""ELECTRA: the discriminator (ElectraForPreTraining), with its generator in a folder of its own.

The folder `generator` holds an ElectraForMaskedLM. Its embeddings are those of the discriminator.
An ElectraForMaskedLM alone, with embeddings of its own width, is an encoder like BERT.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from jaxlm.config import ModelConfig, UserError
from jaxlm.interop.architectures.bert import (
    BERT_OLD_NAMES,
    BERT_UNUSED_TENSORS,
    bert_body_rules,
    dense_rules,
    head_transform_rules,
    read_bert_fields,
    write_bert,
)
from jaxlm.interop.architectures.common import none_if
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence

GENERATOR = "generator"  # the folder, and the key of its config.json among the values
# The class has other defaults than BERT's.
DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
# What the two networks may differ in.
OWN_KEYS = ("hidden_size", "num_attention_heads", "intermediate_size")
TRAINING_KEYS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")


def read_electra(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    hf_config = dataclasses.replace(hf_config, values=DEFAULTS | dict(hf_config.values))
    fields = read_bert_fields(hf_config)
    width = fields["width"]

    generator, share = hf_config.nested(GENERATOR), 0.0
    if generator is not None:
        generator.require({"model_type": "electra"})
        classes = generator.strings("architectures")
        if classes and "ElectraForMaskedLM" not in classes:
            generator.refuse("architectures", f"{', '.join(classes)} is not ElectraForMaskedLM")
        share = generator.scalar("hidden_size", 256) / max(1, width)

    model = ModelConfig(
        **fields,
        vocabulary_size=hf_config.scalar("vocab_size", 30522),
        context_length=hf_config.scalar("max_position_embeddings", 512),
        embedding_width=none_if(hf_config.scalar("embedding_size", 128), width),
        # The head of the class has the exact GELU whatever the blocks have.
        head_activation=none_if("gelu", fields["activation"]),
        generator_share=share,
    )
    if generator is not None:
        expected = write_network(model, model.generator)
        generator.require({k: v for k, v in expected.items() if k not in TRAINING_KEYS})
    return model


def write_electra(model: ModelConfig) -> dict[str, Any]:
    if model.generator_share is None:
        raise UserError("ELECTRA has a model.generator_share")
    values = write_network(model, model)
    if model.generator is not None:
        values[GENERATOR] = write_network(model, model.generator)
    return values


def write_network(model: ModelConfig, network: ModelConfig | None) -> dict[str, Any]:
    """Return the values of one network's config.json; they differ in `OWN_KEYS` alone."""
    assert network is not None
    values, own = write_bert(model), write_bert(network)
    values |= {key: own[key] for key in OWN_KEYS}
    return values | {"embedding_size": model.token_width}


def read_encoder(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    """Return the model of an ElectraForMaskedLM alone.

    No encoder projects embeddings after their norm, as a generator does whose width is another.
    """
    hf_config = dataclasses.replace(hf_config, values=DEFAULTS | dict(hf_config.values))
    fields = read_bert_fields(hf_config)
    width, token_width = fields["width"], hf_config.scalar("embedding_size", 128)
    if token_width != width:
        hf_config.refuse(
            "embedding_size",
            f"{token_width} is not hidden_size ({width}): such an ElectraForMaskedLM is read with "
            "its discriminator only; copy the directory of the ElectraForPreTraining and put this "
            f"one into it as the folder {GENERATOR}",
        )
    return ModelConfig(
        **fields,
        vocabulary_size=hf_config.scalar("vocab_size", 30522),
        context_length=hf_config.scalar("max_position_embeddings", 512),
        # The head of the class has the exact GELU whatever the blocks have.
        head_activation=none_if("gelu", fields["activation"]),
    )


def write_encoder(model: ModelConfig) -> dict[str, Any]:
    return write_network(model, model)


def rules_of(network: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return rules whose parameters are those of a network; the embeddings are shared."""

    def full_path(path: str) -> str:
        negation, path = path[: path.startswith("!")], path.removeprefix("!")
        owner = "discriminator" if path.startswith("embedding.") else network
        return f"{negation}{owner}.{path}"

    return tuple(
        rule._replace(
            parameters=tuple(map(full_path, rule.parameters)),
            when=" ".join(map(full_path, rule.when.split())),
        )
        for rule in rules
    )


BODY = (
    *bert_body_rules("electra"),
    Rule("electra.embeddings_project.weight", "d e", ("projection.kernel",), "ed"),
    Rule("electra.embeddings_project.bias", "d", ("projection.bias",), "d"),
)
PREDICTIONS = "discriminator_predictions"

LM_HEAD = "generator_lm_head"
HEAD_TRANSFORM = head_transform_rules(
    "generator_predictions.dense", "generator_predictions.LayerNorm"
)

ELECTRA_ENCODER = Architecture(
    model_type="electra",
    classes=("ElectraForMaskedLM",),
    family="encoder",
    read=read_encoder,
    write=write_encoder,
    rules=(
        *BODY,
        *HEAD_TRANSFORM,
        Rule(f"{LM_HEAD}.weight", "v d", ("head.kernel",), "dv"),
        Rule(f"{LM_HEAD}.bias", "v", ("head.bias",), "v"),
    ),
    root="electra.",
    ignored=BERT_UNUSED_TENSORS,
    aliases={f"{LM_HEAD}.weight": "electra.embeddings.word_embeddings.weight"},
    renamed=BERT_OLD_NAMES,
)

ELECTRA_GENERATOR = ELECTRA_ENCODER._replace(
    read=read_electra,
    write=write_electra,
    rules=rules_of(
        "generator",
        (
            *BODY,
            *HEAD_TRANSFORM,
            Rule(f"{LM_HEAD}.weight", "v e", ("head.vocabulary.kernel",), "ev"),
            Rule(f"{LM_HEAD}.bias", "v", ("head.vocabulary.bias",), "v"),
        ),
    ),
)

ELECTRA = Architecture(
    model_type="electra",
    classes=("ElectraForPreTraining",),
    family="encoder",
    read=read_electra,
    write=write_electra,
    rules=rules_of(
        "discriminator",
        (
            *BODY,
            *dense_rules(f"{PREDICTIONS}.dense", "head.dense", "e d", "de", ("e", "e")),
            Rule(f"{PREDICTIONS}.dense_prediction.weight", "o d", ("head.kernel",), "do"),
            Rule(f"{PREDICTIONS}.dense_prediction.bias", "o", ("head.bias",), "o"),
        ),
    ),
    root="electra.",
    ignored=BERT_UNUSED_TENSORS,
    renamed=BERT_OLD_NAMES,
    subfolders={GENERATOR: ELECTRA_GENERATOR},
)
