"""The section `model.classifier`: a head that gives labels in place of tokens."""

from typing import Literal

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import NonEmpty, ShareBelowOne, refuser, section


@section("model.classifier")
class ClassifierConfig:
    """The head that gives labels in place of tokens.

    none       no such head: the model predicts tokens
    sequence   scores of the labels for a whole text, or a pair of texts
    token      scores of the labels for each token
    """

    kind: Literal["none", "sequence", "token"] = "none"
    labels: tuple[NonEmpty, ...] = ()  # names, in the order of the scores
    # single_label: one of the labels; multi_label: any of them, each by itself; regression: a
    # number for each label
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    # sequence: the position, or positions, whose features are read. last: the last token that is no
    # padding. None: encoders first, others last
    pooling: Literal["first", "mean", "last"] | None = None
    # A dense layer before the scores, with this activation (BERT and RoBERTa tanh, DistilBERT relu,
    # ELECTRA gelu). none: no such layer (GPT-2, Llama); head: that of model.head_transform, with
    # its norm (ModernBERT). None: as the family has it
    transform: Literal["none", "tanh", "relu", "gelu", "head"] | None = None
    # On the scores. None: all but decoders' scores for texts (GPT-2 and Llama) have one
    bias: bool | None = None
    dropout: ShareBelowOne | None = None  # before the scores. None: model.dropout
    # the same dropout before `transform`, too (RoBERTa, ELECTRA, T5, BART)
    transform_dropout: bool = False

    def __post_init__(self):
        refuse = refuser("model.classifier")
        if self.kind == "none":
            if self.labels:
                refuse("labels", "are only used with kind='sequence' and 'token', got 'none'")
            return

        if len(self.labels) == 0:
            refuse("labels", f"kind={self.kind!r} needs the names of the labels")
        if len(set(self.labels)) < len(self.labels):
            refuse("labels", f"a label stands there twice: {', '.join(self.labels)}")
        if self.problem == "single_label" and len(self.labels) < 2:
            named = ", ".join(self.labels)
            refuse("labels", f"problem='single_label' needs two at least, got {named}")
        if self.kind == "token" and self.problem != "single_label":
            reason = f"{self.problem!r} is only used with kind='sequence', got 'token'"
            raise ConfigError("model.classifier.problem", reason)
        if self.kind == "token" and self.pooling is not None:
            refuse("pooling", "is only used with kind='sequence', got 'token'")
