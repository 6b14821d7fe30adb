"""From raw text to batches: `prepare(...)` makes the token store, `stream.Stream` reads batches from it by step number."""

from jaxlm.data.sources import Document
from jaxlm.data.store import Store, await_store, open_store, prepare
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.data.vocabulary import SpecialTokens

__all__ = [
    "Document",
    "SpecialTokens",
    "Store",
    "Tokenizer",
    "await_store",
    "load_tokenizer",
    "open_store",
    "prepare",
]
