"""Turn raw text into batches.

`prepare(...)` builds the token store and `stream.Stream` reads batches from it by step. A name of
this package is imported when it is first used: a command that only checks for files needs little.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlm.data.background import built_meanwhile, whole_store_reason
    from jaxlm.data.corpus import check_files
    from jaxlm.data.documents import Document
    from jaxlm.data.examples import ExampleSpec, example_spec
    from jaxlm.data.growing import current_manifest, open_begun
    from jaxlm.data.identity import StoreIdentity, identify_store
    from jaxlm.data.mixture_plan import (
        SourceSize,
        describe_change,
        describe_mixture,
        format_mixture,
        plan_mixture,
        record_mixture,
    )
    from jaxlm.data.preparation import await_store, begin, prepare
    from jaxlm.data.report import describe_store, format_report
    from jaxlm.data.report_markdown import build_markdown
    from jaxlm.data.report_page import build_page
    from jaxlm.data.store import Store, open_store
    from jaxlm.data.tokenizer import Tokenizer, load_tokenizer, wrap_tokenizer
    from jaxlm.data.vocabulary import SpecialTokens

MODULES = {
    "Document": "documents",
    "ExampleSpec": "examples",
    "SourceSize": "mixture_plan",
    "SpecialTokens": "vocabulary",
    "Store": "store",
    "StoreIdentity": "identity",
    "Tokenizer": "tokenizer",
    "await_store": "preparation",
    "begin": "preparation",
    "build_markdown": "report_markdown",
    "build_page": "report_page",
    "built_meanwhile": "background",
    "check_files": "corpus",
    "current_manifest": "growing",
    "describe_change": "mixture_plan",
    "describe_mixture": "mixture_plan",
    "describe_store": "report",
    "example_spec": "examples",
    "format_mixture": "mixture_plan",
    "format_report": "report",
    "identify_store": "identity",
    "load_tokenizer": "tokenizer",
    "open_begun": "growing",
    "open_store": "store",
    "plan_mixture": "mixture_plan",
    "prepare": "preparation",
    "record_mixture": "mixture_plan",
    "whole_store_reason": "background",
    "wrap_tokenizer": "tokenizer",
}

__all__ = [
    "Document",
    "ExampleSpec",
    "SourceSize",
    "SpecialTokens",
    "Store",
    "StoreIdentity",
    "Tokenizer",
    "await_store",
    "begin",
    "build_markdown",
    "build_page",
    "built_meanwhile",
    "check_files",
    "current_manifest",
    "describe_change",
    "describe_mixture",
    "describe_store",
    "example_spec",
    "format_mixture",
    "format_report",
    "identify_store",
    "load_tokenizer",
    "open_begun",
    "open_store",
    "plan_mixture",
    "prepare",
    "record_mixture",
    "whole_store_reason",
    "wrap_tokenizer",
]


def __getattr__(name: str) -> Any:
    """Import the module of a name of this package."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
    globals()[name] = value
    return value
