"""Tell what a directory holds: a run, a Hugging Face model or an adapter. Imports no jax.

The commands refuse a wrong directory before they import jax; whoever reads it checks it again.
"""

from pathlib import Path

from jaxlm.config import UserError

CONFIG_FILE = "config.json"  # of a run, and of a Hugging Face model
ADAPTER_FILE = "adapter_config.json"  # of an adapter of PEFT
BASE_FILE = "base.json"  # of a run: the weights that it started from
QUANTIZATION_FILE = "quantization.json"  # of a model that `jaxlm.convert quantize` wrote


def is_run(directory: Path) -> bool:
    """Return whether a directory holds a run, even one without a config or a sound checkpoint."""
    try:
        return (directory / "checkpoints").is_dir()
    except OSError:  # it can't be looked at, which reading its config.json will say
        return False


def is_adapter(directory: Path) -> bool:
    """Return whether a directory holds an adapter of PEFT, and no model."""
    has_adapter = not is_missing(directory / ADAPTER_FILE)
    return has_adapter and is_missing(directory / CONFIG_FILE)


def is_quantized(directory: Path) -> bool:
    """Return whether a directory holds rounded weights."""
    return not is_missing(directory / QUANTIZATION_FILE)


def check_is_not_quantized(path: str | Path, reason: str) -> None:
    """Raise UserError, with the reason, if there are rounded weights at `path`."""
    if is_quantized(Path(path)):
        raise UserError(
            f"{path}: holds weights that were rounded by jaxlm.convert quantize: {reason}"
        )


def check_directory(path: str | Path) -> None:
    """Raise UserError unless there is a directory at `path`."""
    directory = Path(path)
    try:
        if directory.is_dir():
            return
        problem = "is not a directory" if directory.exists() else "there is no such directory"
    except OSError as error:  # a name that is too long
        problem = error.strerror
    raise UserError(f"{path}: {problem}")


def check_run_directory(path: str | Path) -> None:
    """Raise UserError unless there is a directory at `path` that is, or was, that of a run."""
    check_directory(path)
    directory = Path(path)
    if not is_run(directory) and is_missing(directory / CONFIG_FILE):
        raise UserError(f"{path}: is not a run directory: it has no {CONFIG_FILE}")


def check_model_directory(path: str | Path) -> None:
    """Raise UserError unless there is a directory at `path` of a run or a Hugging Face model."""
    check_directory(path)
    file = Path(path) / CONFIG_FILE
    if not is_run(Path(path)) and is_missing(file):
        raise UserError(f"{file}: there is no such file")


def is_missing(path: Path) -> bool:
    """Return whether there is nothing at `path`, as far as it can be looked at."""
    try:
        return not path.exists()
    except OSError:
        return False
