"""Identify the language of a text by py3langid.

Its model (Lui and Baldwin 2012, "langid.py") is in the package and knows over 100 of the
languages of ISO 639-1. It is plain numpy, is loaded without pickle, and gives the same answer
everywhere. Texts of less than about 20 characters are often told wrongly.
"""

import functools
from collections.abc import Callable
from typing import Any

from jaxlm.data.readers.streams import import_reader

NO_LANGUAGE = "zxx"  # the model's class of what is no language
SAMPLE = 500  # characters of each of three pieces of a long text; 2 MB/s is read of them


def build_identifier(purpose: str) -> Callable[[str], str]:
    """Return a function that gives the ISO 639-1 code of the language of a text, or NO_LANGUAGE.

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
    return sorted(set(load_model(purpose).nb_classes) - {NO_LANGUAGE})


@functools.cache
def load_model(purpose: str) -> Any:
    """Return the library's identifier for the languages of ISO 639-1; it takes 0.5 s to load.

    Without the languages that have no such code, as Nigerian Pidgin, short English texts are told
    better.
    """
    library = import_reader("py3langid.langid", purpose)
    identifier = library.LanguageIdentifier.from_model_file(library.MODEL_FILE)
    known = [label for label in identifier.labels if len(label) == 2]
    identifier.set_languages([*known, NO_LANGUAGE])
    return identifier
