"""Identify the language of a text by py3langid.

Its model (Lui and Baldwin 2012, "langid.py") is in the package and knows 140 languages. It is
plain numpy, is loaded without pickle, and gives the same answer everywhere.
"""

import functools
from collections.abc import Callable
from typing import Any

from jaxlm.data.readers.streams import import_reader

SAMPLE = 500  # characters of each of three pieces of a long text; 2 MB/s is read of them


def build_identifier(purpose: str) -> Callable[[str], str]:
    """Return a function that gives the ISO 639-1 code of the language of a text.

    A long text is judged by its beginning, middle and end. Raises MissingLibraryError that names
    `purpose`.
    """
    identifier = load_model(purpose)

    def identify(text: str) -> str:
        if len(text) > 3 * SAMPLE:
            middle = (len(text) - SAMPLE) // 2
            text = "\n".join((text[:SAMPLE], text[middle : middle + SAMPLE], text[-SAMPLE:]))
        return identifier.classify(text)[0]

    return identify


def list_languages(purpose: str) -> list[str]:
    """Return the codes of the languages that can be identified."""
    return sorted(load_model(purpose).labels)


@functools.cache
def load_model(purpose: str) -> Any:
    """Return the library's identifier, which takes 0.5 s to load."""
    library = import_reader("py3langid.langid", purpose)
    return library.LanguageIdentifier.from_model_file(library.MODEL_FILE)
