"""Rules that judge and mend documents one by one: language, quality, contamination, addresses."""

from jaxlm.data.rules.classifier import Classifier, load_classifier, train_classifier
from jaxlm.data.rules.document_rules import (
    REASONS,
    DocumentRules,
    check_rules,
    describe_rules,
    raised_versions,
)
from jaxlm.data.rules.predicate import Predicate, load_predicate

__all__ = [
    "REASONS",
    "Classifier",
    "DocumentRules",
    "Predicate",
    "check_rules",
    "describe_rules",
    "load_classifier",
    "load_predicate",
    "raised_versions",
    "train_classifier",
]
