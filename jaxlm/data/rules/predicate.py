"""Load the function of a user that says which documents are kept."""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config import ConfigError, UserError
from jaxlm.config.fields import suggestion
from jaxlm.config.load import importable, locate_error
from jaxlm.data.documents import Document
from jaxlm.files import expand_home


class Predicate(NamedTuple):
    """A function of the text that returns True for a document to keep."""

    spec: str  # "FILE.py:FUNCTION", by which another process loads it too
    hash: str  # SHA-256 of the file and the function's name
    function: Callable[[str], bool]

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a process that gets the predicate load it again by its spec."""
        return load_predicate, (self.spec,)

    def keeps(self, document: Document) -> bool:
        """Return whether a document is kept. Raises UserError naming it where that fails."""
        try:
            answer = self.function("\n".join(document.texts))
        except Exception as error:
            place, reason = locate_error(Path(self.spec.rpartition(":")[0]), error)
            raise UserError(f"{place}: {document.name}: {reason}") from error

        if not isinstance(answer, bool) and type(answer).__name__ != "bool":  # numpy's own
            kind = type(answer).__name__
            raise UserError(f"{self.spec}: {document.name}: must return True or False, got {kind}")
        return bool(answer)


def load_predicate(spec: str) -> Predicate:
    """Return the predicate of "FILE.py:FUNCTION". This runs the file, like a recipe.

    Raises UserError where there is no such file or function, and for an error of the file.
    """
    file, separator, name = spec.rpartition(":")
    if not separator or not file or not name:
        raise UserError(f"{spec}: must be FILE.py:FUNCTION")
    path = expand_home(file)
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{file}: {reason}") from error

    names = run_file(path)
    if name not in names:
        raise UserError(f"{file}: defines no function {name!r}{suggestion(name, names)}")
    if not callable(names[name]):
        raise UserError(f"{file}: {name!r} is no function, got {type(names[name]).__name__}")
    digest = hashlib.sha256(content + b"\0" + name.encode())
    return Predicate(spec, digest.hexdigest(), names[name])


def run_file(path: Path) -> dict[str, Any]:
    """Run a Python file with its folder importable, and return the names that it defines."""
    folder = path.parent.resolve()
    spec = importlib.util.spec_from_file_location(
        f"jaxlm_predicate_{path.stem}", folder / path.name
    )
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: is no Python file (its name must end in .py)")

    module = importlib.util.module_from_spec(spec)
    with importable(folder):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ConfigError(*locate_error(path, error)) from error
    return vars(module)
