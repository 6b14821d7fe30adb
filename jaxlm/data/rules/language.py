"""Identify the language of a text by py3langid.

Its model (Lui and Baldwin 2012, "langid.py") is in the package and covers 97 languages and more. It
is plain numpy, is loaded without pickle, and gives the same answer everywhere.
"""

from collections.abc import Callable

from jaxlm.data.readers.streams import import_reader

LIBRARY = "py3langid.langid"
SAMPLE = 500  # characters of each of three pieces of a long text; 2 MB/s is read of them
MODEL = "data/model.npz.xz"


def build_identifier(key: str) -> Callable[[str], str]:
    """Return a function that gives the ISO 639-1 code of the language of a text.

    A long text is judged by its beginning, middle and end. Raises MissingLibraryError that names
    `key`.
    """
    library = import_reader(LIBRARY, key)
    identifier = library.LanguageIdentifier.from_model_file(library.MODEL_FILE)

    def identify(text: str) -> str:
        if len(text) > 3 * SAMPLE:
            middle = (len(text) - SAMPLE) // 2
            text = "\n".join((text[:SAMPLE], text[middle : middle + SAMPLE], text[-SAMPLE:]))
        return identifier.classify(text)[0]

    return identify


def list_languages(key: str) -> list[str]:
    """Return the codes of the languages that can be identified."""
    library = import_reader(LIBRARY, key)
    return sorted(library.LanguageIdentifier.from_model_file(library.MODEL_FILE).labels)
