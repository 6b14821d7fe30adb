"""Accelerators and clusters by name, and the abilities of this CPU. Imports no jax."""

import hashlib
import json
import math
import os
import platform
import re
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.accelerators import ACCELERATORS, ALIASES, Accelerator
from jaxlm.config import UserError
from jaxlm.config.fields import suggestion

PEAK_DTYPES = ("float32", "tf32", "bfloat16", "float16", "float8")
# Fields of an entry of a user's file, and the type of their values.
NUMBERS = (
    "memory_bandwidth",
    "node_bandwidth",
    "network_bandwidth",
    "compute_capability",
    "clock_hertz",
)
WHOLE_NUMBERS = ("memory_bytes", "gpus_per_node", "multiprocessors", "cache_bytes")
TEXTS = ("device_kind", "source")
BASE = "based_on"  # the entry that has what a user's entry leaves out
MOST_GPUS = 1_000_000

MEMORY_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
DEFAULT_FRACTION = 0.75  # jax's ("GPU memory allocation" in its documentation)


class Cluster(NamedTuple):
    """GPUs of one kind in equal servers."""

    accelerator: Accelerator
    gpus: int  # of all nodes together
    nodes: int = 1

    @property
    def gpus_per_node(self) -> int:
        """Return the GPUs of one node."""
        return self.gpus // self.nodes


def find_accelerator(name: str, file: str | Path | None = None) -> Accelerator:
    """Return the accelerator of that name, in capitals or not; `file` may add some.

    The file is JSON, {NAME: {"based_on": NAME, FIELD: VALUE, ...}}, with the fields of
    `Accelerator`. An entry replaces the built-in one of its name. Raises UserError for a name that
    isn't known and for a file that can't be used.
    """
    known = {accelerator.name: accelerator for accelerator in ACCELERATORS}
    if file is not None:
        known |= read_accelerators(Path(file), known)

    spelling = simplify_name(name)
    spellings = {simplify_name(known_name): known_name for known_name in known}
    spellings = ALIASES | spellings
    if spelling not in spellings:
        hint = suggestion(name, known) or f" (there are: {', '.join(known)})"
        raise UserError(f"there is no GPU {name!r} in the table{hint}")
    return known[spellings[spelling]]


def simplify_name(name: str) -> str:
    """Return a name in small letters, without dashes, underscores and spaces."""
    return re.sub(r"[-_ ]", "", name.lower())


def parse_cluster(text: str, file: str | Path | None = None) -> Cluster:
    """Return the cluster that a text names: "8xh100", "h100:64", "h100:8x8" (nodes x GPUs), "h100".

    More GPUs than a server of their kind holds fill whole servers. Raises UserError for other
    texts, unknown GPUs and incomplete servers.
    """
    forms = "name it as h100:8, h100:8x8 (nodes x GPUs of each) or 8xh100"
    match = re.fullmatch(r"(?:(?P<count>\d{1,7})x)?(?P<name>[^:]+)(?::(?P<places>[\dx]+))?", text)
    if match is None or (match["count"] and match["places"]):
        raise UserError(f"{text!r} is no cluster: {forms}")
    places = re.fullmatch(r"(?:(\d{1,7})x)?(\d{1,7})", match["places"] or match["count"] or "1")
    if places is None:
        raise UserError(f"{text!r} is no cluster: {forms}")
    accelerator = find_accelerator(match["name"], file)

    full, gpus = accelerator.gpus_per_node, int(places[2])
    nodes = int(places[1]) if places[1] is not None else max(1, gpus // full)
    if places[1] is not None:
        gpus *= nodes
    if not 1 <= gpus <= MOST_GPUS:
        raise UserError(f"{text!r}: a cluster has 1 to {MOST_GPUS:,} GPUs")
    if places[1] is None and gpus > full and gpus % full:
        name = accelerator.name
        raise UserError(
            f"{text!r}: {gpus} GPUs don't fill servers of {full} {name}: name the nodes and the "
            f"GPUs of each, as in {name}:{nodes}x{full}"
        )
    return Cluster(accelerator, gpus, nodes)


def usable_memory(accelerator: Accelerator) -> int:
    """Return the bytes that jax takes of a GPU's memory for a program: three quarters of it.

    XLA_PYTHON_CLIENT_MEM_FRACTION says another share, here as in a run. Raises UserError where it
    is no share.
    """
    text = os.environ.get(MEMORY_FRACTION)
    try:
        share = DEFAULT_FRACTION if text is None else float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UserError(f"{MEMORY_FRACTION}: must be above 0 and at most 1, got {text!r}")
    return int(share * accelerator.memory_bytes)


def read_accelerators(path: Path, known: dict[str, Accelerator]) -> dict[str, Accelerator]:
    """Return the accelerators of a user's file. Raises UserError that names file and key."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # JSON or UTF-8
        raise UserError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: must be an object with an entry for each GPU")

    added: dict[str, Accelerator] = {}
    for name, fields in document.items():
        added[name] = read_accelerator(f"{path}: {name}", name, fields, known | added)
    return added


def read_accelerator(
    place: str, name: str, fields: object, known: dict[str, Accelerator]
) -> Accelerator:
    """Return one entry of a user's file. Raises UserError that begins with `place`."""
    if not isinstance(fields, dict):
        raise UserError(f"{place}: must be an object, {{FIELD: VALUE}}")
    allowed = (BASE, "peak_flops", *NUMBERS, *WHOLE_NUMBERS, *TEXTS)
    for field, value in fields.items():
        if field not in allowed:
            hint = suggestion(field, allowed) or f" (there are: {', '.join(allowed)})"
            raise UserError(f"{place}.{field}: unknown field{hint}")
        check_field(f"{place}.{field}", field, value)

    base = fields.get(BASE, name)
    if base not in known:
        missing = [field for field in allowed[1:] if field not in fields and field not in TEXTS]
        if BASE in fields or missing:
            hint = f"{BASE}={base!r} is not known" if BASE in fields else f"{missing[0]} is missing"
            raise UserError(f"{place}: {hint}; {BASE} may be one of {', '.join(known)}")
        own: dict[str, Any] = {"device_kind": name, "source": place, **fields}
        return Accelerator(name=name, **own)
    changes: dict[str, Any] = {field: value for field, value in fields.items() if field != BASE}
    return known[base]._replace(name=name, **({"source": place} | changes))


def check_field(place: str, field: str, value: Any) -> None:
    """Raise UserError for a value of a user's entry that its field can't have."""
    if field in (BASE, *TEXTS):
        if not isinstance(value, str):
            raise UserError(f"{place}: must be a string")
        return
    if field == "peak_flops":
        if not isinstance(value, dict) or not value:
            raise UserError(f'{place}: must be an object such as {{"bfloat16": 989e12}}')
        for dtype, flops in value.items():
            if dtype not in PEAK_DTYPES:
                hint = suggestion(dtype, PEAK_DTYPES) or f" (there are: {', '.join(PEAK_DTYPES)})"
                raise UserError(f"{place}.{dtype}: unknown dtype{hint}")
            check_field(f"{place}.{dtype}", "memory_bandwidth", flops)
        return

    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise UserError(f"{place}: must be a number above 0, got {value!r}")
    if field in WHOLE_NUMBERS and not isinstance(value, int):
        raise UserError(f"{place}: must be a whole number, got {value!r}")


def peak_flops(device_kind: str) -> float | None:
    """Return the peak bfloat16 FLOP/s of one device, or None where it isn't known (CPUs, others).

    A name must begin with a whole word of `device_kind` ("H100-SXM" has the word "H100"), so that
    an L40 is no L4. The longest match wins. GPUs without bfloat16 on tensor cores have no such
    peak.
    """
    words = {word.partition("-")[0] for word in device_kind.split()}
    matches = []
    for accelerator in ACCELERATORS:
        kind = accelerator.device_kind
        if kind in device_kind and kind.split()[0].partition("-")[0] in words:
            matches.append(accelerator)
    if not matches:
        return None
    longest = max(matches, key=lambda accelerator: len(accelerator.device_kind))
    return longest.peak_flops.get("bfloat16")


def count_cores() -> int:
    """Return the cores that this process may use: a job may be given few of its machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_devices(most: int = 2) -> int:
    """Return how many CPU devices to emulate: one per core, up to `most`.

    Small models run faster on two devices than on one with two threads.
    """
    return min(most, count_cores())


def cpu_has_bfloat16() -> bool:
    """Return True where bfloat16 products are faster than float32 products.

    That takes instructions for them and more than one core.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags and count_cores() > 1


def cpu_identity() -> str:
    """Return a hash of what programs for this CPU depend on: its model, abilities and cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.machine(), platform.processor()]
    told = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    text = "\n".join([*sorted(told), str(count_cores())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
