"""Classifiers: ...ForSequenceClassification and ...ForTokenClassification of the architectures.

Each is an architecture with other classes: its body with a head of scores. What a class does before
these is fixed: which token it reads, and the layer in between.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from jaxlm.config import ClassifierConfig, ModelConfig
from jaxlm.interop.architectures.bart import BART
from jaxlm.interop.architectures.bert import BERT, DISTILBERT, ROBERTA, dense_rules
from jaxlm.interop.architectures.common import none_if
from jaxlm.interop.architectures.electra import ELECTRA, GENERATOR
from jaxlm.interop.architectures.gpt2 import GPT2
from jaxlm.interop.architectures.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from jaxlm.interop.architectures.modernbert import MODERNBERT
from jaxlm.interop.architectures.t5 import T5
from jaxlm.interop.hf_config import HFConfig, format_json
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence

PROBLEMS = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
PROBLEM_NAMES = {ours: name for name, ours in PROBLEMS.items()}
POOLINGS = {"cls": "first", "mean": "mean"}
POOLING_NAMES = {ours: name for name, ours in POOLINGS.items()}
ENCODER_ALONE = "encoder."  # a head on the encoder of an encoder-decoder, which has no decoder
DEFAULT_LABELS = 2  # of a config.json that says nothing of them


class HeadForm(NamedTuple):
    """The head of a class: what its code fixes, and its names in files."""

    scores: str  # tensor of the scores
    dense: str | None = None  # tensor of the layer before them
    transform: str = "none"
    pooling: str | None = None  # None: of tokens, or as `classifier_pooling` says
    bias: bool = True
    transform_dropout: bool = False
    dropout_keys: tuple[str, ...] = ("classifier_dropout",)  # the first that is there counts
    dropout: float | None = None  # without a key; None: that of the model
    part: str = ""  # of the parameters that has the head: "decoder."


# Labels


def read_labels(hf_config: HFConfig) -> tuple[str, ...]:
    """Return the names of the labels in the order of their scores."""
    names, count = hf_config.nested("id2label"), hf_config.scalar("num_labels", None)
    if names is None:
        count = DEFAULT_LABELS if count is None else count
        if not 1 <= count <= 1 << 20:
            hf_config.refuse("num_labels", f"must be between 1 and {1 << 20}, got {count}")
        return tuple(f"LABEL_{number}" for number in range(count))

    if count is not None and count != len(names.values):
        hf_config.refuse("num_labels", f"{count} contradicts id2label ({len(names.values)})")
    labels = []
    for number in range(len(names.values)):
        label = names.get(str(number))
        if str(number) not in names:
            hf_config.refuse("id2label", f"has {len(names.values)} labels, but no {number}")
        if not isinstance(label, str) or not label:
            names.refuse(str(number), f"must be the name of a label, got {format_json(label)}")
        labels.append(label)
    if not labels:
        hf_config.refuse("id2label", "has no label")
    check_numbers(hf_config, labels)
    return tuple(labels)


def check_numbers(hf_config: HFConfig, labels: list[str]) -> None:
    """Refuse a `label2id` that is not the inverse of `id2label`."""
    numbers = hf_config.nested("label2id")
    if numbers is None:
        return
    for number, label in enumerate(labels):
        given = numbers.get(label)
        if given is None or str(given) != str(number):
            reason = f"{format_json(given)} for {format_json(label)} contradicts id2label"
            hf_config.refuse("label2id", f"{reason}, which has {number}")


def read_problem(hf_config: HFConfig, kind: str, labels: tuple[str, ...]) -> Any:
    """Return what the scores mean: without a word about it one label alone is a number."""
    if kind == "token":
        return "single_label"
    default = "regression" if len(labels) == 1 else "single_label_classification"
    return hf_config.choice("problem_type", PROBLEMS, default)


# An architecture with another head


def read_dropout(hf_config: HFConfig, form: HeadForm) -> float | None:
    """Return the dropout of a head, None where it is that of the model."""
    for key in form.dropout_keys:
        value = hf_config.scalar(key, None, float)
        if value is not None:
            return value
    return form.dropout


def build_reader(
    base: Architecture, kind: Any, form: HeadForm
) -> Callable[[HFConfig, TensorPresence], ModelConfig]:
    """Return `Architecture.read` of a class with this head."""

    def read(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
        unread = {GENERATOR} | ({"is_encoder_decoder"} if form.part == ENCODER_ALONE else set())
        values = {key: value for key, value in hf_config.values.items() if key not in unread}
        hf_config = replace(hf_config, values=values)
        model, labels = base.read(hf_config, tensors), read_labels(hf_config)
        pooling: Any = form.pooling
        if kind == "sequence" and pooling is None:
            pooling = hf_config.choice("classifier_pooling", POOLINGS, "cls")

        classifier = ClassifierConfig(
            kind=kind,
            labels=labels,
            problem=read_problem(hf_config, kind, labels),
            pooling=pooling,
            transform=form.transform,  # type: ignore[arg-type]
            bias=form.bias,
            dropout=none_if(read_dropout(hf_config, form), model.dropout),
            transform_dropout=form.transform_dropout,
        )
        return replace(model, classifier=classifier)

    return read


def build_writer(
    base: Architecture, kind: str, form: HeadForm
) -> Callable[[ModelConfig], dict[str, Any]]:
    """Return `Architecture.write` of a class with this head."""

    def write(model: ModelConfig) -> dict[str, Any]:
        head = model.label_head
        if base is ELECTRA and model.generator_share is not None:
            model = replace(model, generator_share=0.0)  # the class has no generator
        values = base.write(model) | {
            "id2label": {str(number): label for number, label in enumerate(head.labels)},
            "label2id": {label: number for number, label in enumerate(head.labels)},
        }
        if kind == "sequence":
            values["problem_type"] = PROBLEM_NAMES[head.problem]
            if form.pooling is None:
                values["classifier_pooling"] = POOLING_NAMES.get(head.pooling or "", "cls")
        if form.part == ENCODER_ALONE:
            values["is_encoder_decoder"] = False
        if form.dropout_keys:
            values[form.dropout_keys[0]] = head.dropout
        return values

    return write


def head_rules(form: HeadForm) -> tuple[Rule, ...]:
    """Return the rules of a head."""
    kernel, bias = f"{form.part}classifier.kernel", f"{form.part}classifier.bias"
    rules = (
        Rule(f"{form.scores}.weight", "c d", (kernel,), "dc"),
        Rule(f"{form.scores}.bias", "c", (bias,), "c"),
    )
    if form.dense is None:
        return rules
    dense = dense_rules(form.dense, f"{form.part}pooler.dense", "e d", "de", ("e", "e"))
    return dense + rules


def is_of_body(rule: Rule, form: HeadForm) -> bool:
    """Return whether a rule of an architecture holds in its classifier, too."""
    if form.part == ENCODER_ALONE and not rule.parameters[0].startswith(ENCODER_ALONE):
        return False
    path = f".{rule.parameters[0]}"
    is_transform = form.transform == "head" and ".head.transform" in path
    return ".head." not in path or is_transform


def classifier(
    base: Architecture, name: str, kind: str, form: HeadForm, prefix: str = ""
) -> Architecture:
    """Return the architecture of the class `name`; its body's tensors have a `prefix` there."""
    body = (rule for rule in base.rules if is_of_body(rule, form))
    return base._replace(
        classes=(name,),
        classifier=kind,
        read=build_reader(base, kind, form),
        write=build_writer(base, kind, form),
        rules=(
            *(rule._replace(tensor=prefix + rule.tensor) for rule in body),
            *head_rules(form),
        ),
        ignored=tuple(prefix + pattern for pattern in base.ignored),
        aliases={prefix + alias: prefix + tensor for alias, tensor in base.aliases.items()},
        subfolders={},
    )


# The classes

BERT_TOKENS = HeadForm("classifier")
DECODER_TEXTS = HeadForm("score", pooling="last", bias=False, dropout_keys=(), dropout=0.0)
DECODER_DROPOUT_KEYS = ("classifier_dropout", "hidden_dropout")
LLAMA_TOKENS = HeadForm("score", dropout_keys=DECODER_DROPOUT_KEYS, dropout=0.1)
MODERNBERT_HEAD = HeadForm("classifier", transform="head", dropout=0.0)
END_TOKEN = HeadForm(
    "classification_head.out_proj",
    "classification_head.dense",
    "tanh",
    pooling="last",
    transform_dropout=True,
    dropout=0.0,
    part="decoder.",
)
ROBERTA_TEXTS = HeadForm(
    "classifier.out_proj", "classifier.dense", "tanh", pooling="first", transform_dropout=True
)

CLASSIFIERS: tuple[Architecture, ...] = (
    classifier(
        BERT,
        "BertForSequenceClassification",
        "sequence",
        HeadForm("classifier", "bert.pooler.dense", "tanh", pooling="first"),
    ),
    classifier(BERT, "BertForTokenClassification", "token", BERT_TOKENS),
    classifier(ROBERTA, "RobertaForSequenceClassification", "sequence", ROBERTA_TEXTS),
    classifier(ROBERTA, "RobertaForTokenClassification", "token", BERT_TOKENS),
    classifier(
        DISTILBERT,
        "DistilBertForSequenceClassification",
        "sequence",
        HeadForm(
            "classifier",
            "pre_classifier",
            "relu",
            pooling="first",
            dropout_keys=("seq_classif_dropout",),
            dropout=0.2,
        ),
    ),
    classifier(
        DISTILBERT,
        "DistilBertForTokenClassification",
        "token",
        BERT_TOKENS._replace(dropout_keys=()),
    ),
    classifier(MODERNBERT, "ModernBertForSequenceClassification", "sequence", MODERNBERT_HEAD),
    classifier(MODERNBERT, "ModernBertForTokenClassification", "token", MODERNBERT_HEAD),
    classifier(
        ELECTRA,
        "ElectraForSequenceClassification",
        "sequence",
        ROBERTA_TEXTS._replace(transform="gelu", part="discriminator."),
    ),
    classifier(
        ELECTRA,
        "ElectraForTokenClassification",
        "token",
        BERT_TOKENS._replace(part="discriminator."),
    ),
    classifier(GPT2, "GPT2ForSequenceClassification", "sequence", DECODER_TEXTS),
    classifier(
        GPT2, "GPT2ForTokenClassification", "token", LLAMA_TOKENS._replace(scores="classifier")
    ),
    *(
        architecture
        for base, name in (
            (LLAMA, "Llama"),
            (MISTRAL, "Mistral"),
            (QWEN2, "Qwen2"),
            (QWEN3, "Qwen3"),
        )
        for architecture in (
            classifier(base, f"{name}ForSequenceClassification", "sequence", DECODER_TEXTS),
            classifier(base, f"{name}ForTokenClassification", "token", LLAMA_TOKENS),
        )
    ),
    classifier(T5, "T5ForSequenceClassification", "sequence", END_TOKEN, "transformer."),
    classifier(
        T5,
        "T5ForTokenClassification",
        "token",
        HeadForm("classifier", dropout=0.0, part=ENCODER_ALONE),
        "transformer.",
    ),
    classifier(BART, "BartForSequenceClassification", "sequence", END_TOKEN),
)
