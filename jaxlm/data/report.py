"""Report what a store holds of each source, as JSON data and as a table."""

from typing import Any, NamedTuple

from jaxlm.columns import align_columns
from jaxlm.data.split import SPLITS, TRAIN, VALIDATION
from jaxlm.data.store import Store, count_records, count_tokens

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
READ, CUT, KEPT = "read", "cut from documents", "kept"  # stages beside the reasons


class Stage(NamedTuple):
    """The text of a source that is read, that a reason takes away, or that is kept."""

    name: str
    documents: int | None  # None: the text is taken from documents that are kept
    bytes: int | None  # None: not known

    @property
    def is_loss(self) -> bool:
        """Return whether the stage takes something away."""
        return self.name not in (READ, KEPT)


def describe_store(store: Store) -> dict[str, Any]:
    """Return the report of a store as JSON data.

    `sources` has for each name: `documents` (or pairs) that were found, `kept` ones, `bytes` of
    their text in UTF-8, `tokens` of both splits, `dropped` by reason. `training` and `validation`
    have the tokens of each split, in all and by source.

    What stores of earlier versions don't know is left out: of a source `read` (documents and bytes
    that were found), `dropped_bytes` and `samples` by reason, and `fertility` (bytes per token,
    tokens per word); beside the sources `curation` (its config) and `near_duplicates` (similarity,
    bands and rows).
    """
    manifest = store.manifest
    sources: dict[str, dict[str, Any]] = {}
    tokens: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for split in SPLITS:
        for entry in manifest["splits"][split]:
            name = entry["source"]
            source = sources.setdefault(name, {"kept": 0, "bytes": 0, "tokens": 0})
            source["kept"] += count_records(entry)
            source["bytes"] += entry["bytes"]
            source["tokens"] += count_tokens(entry)
            tokens[split][name] = count_tokens(entry)

    for name, source in sources.items():
        source["dropped"] = manifest.get("dropped", {}).get(name, {})
        source["documents"] = source["kept"] + sum(source["dropped"].values())
        source |= describe_curation(manifest, name)

    report = {
        "store": str(store.path),
        "sources": sources,
        "training": {"tokens": sum(tokens[TRAIN].values()), "sources": tokens[TRAIN]},
        "validation": {key: manifest["validation"][key] for key in ("tokens", "bytes")}
        | {"sources": tokens[VALIDATION]},
    }
    curation = manifest.get("curation", {})
    if "config" in curation:
        report["curation"] = curation["config"]
    if curation.get("near_duplicates"):
        report["near_duplicates"] = curation["near_duplicates"]
    return report


def describe_curation(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what a manifest knows of the curation of a source; nothing in older stores."""
    facts: dict[str, Any] = {}
    curated = manifest.get("curation", {}).get("sources", {}).get(name)
    if curated is not None:
        dropped = curated.get("dropped", {})
        facts |= {
            "read": curated["read"],
            "dropped": {reason: size["documents"] for reason, size in dropped.items()},
            "documents": curated["read"]["documents"],
            "dropped_bytes": {reason: size["bytes"] for reason, size in dropped.items()},
            "samples": curated.get("samples", {}),
        }
    if name in manifest.get("fertility", {}):
        facts["fertility"] = manifest["fertility"][name]
    return facts


def list_stages(source: dict[str, Any]) -> list[Stage]:
    """Return the way of a source's text from what was read to what is kept.

    `source` is an entry of `describe_store`.
    """
    sizes = source.get("dropped_bytes", {})
    read_bytes = source["read"]["bytes"] if "read" in source else None
    stages = [Stage(READ, source["documents"], read_bytes)]
    stages += [
        Stage(reason, count, sizes.get(reason))
        for reason, count in source["dropped"].items()
        if count
    ]

    if read_bytes is not None:
        cut = read_bytes - sum(sizes.values()) - source["bytes"]
        stages += [Stage(CUT, None, cut)] if cut > 0 else []
    return [*stages, Stage(KEPT, source["kept"], source["bytes"])]


def name_stage(stage: str) -> str:
    """Return 'near duplicate' for near_duplicate."""
    return stage.replace("_", " ")


def format_report(report: dict[str, Any]) -> str:
    """Return the table of a report: a line for each source."""
    lines: list[tuple[str, ...]] = [
        ("source", "documents", "kept", "bytes", "tokens", "bytes/token")
    ]
    for name, source in report["sources"].items():
        counts = [f"{source[key]:,}" for key in ("documents", "kept", "bytes", "tokens")]
        lines.append((name, *counts, bytes_per_token(source)))
    return align_columns(lines)


def bytes_per_token(source: dict[str, Any]) -> str:
    """Return the bytes of a token of a source with two decimals; '-' without tokens."""
    return f"{source['bytes'] / source['tokens']:.2f}" if source["tokens"] else "-"


def store_name(report: dict[str, Any]) -> str:
    """Return the hash of a store."""
    return report["store"].rstrip("/").rpartition("/")[2]


def summarize_sizes(report: dict[str, Any]) -> str:
    """Return a sentence on the size of a store."""
    sources = report["sources"].values()
    kept, found = (sum(source[key] for source in sources) for key in ("kept", "documents"))
    size = sum(source["bytes"] for source in sources)
    return (
        f"{report['training']['tokens']:,} tokens to train on and "
        f"{report['validation']['tokens']:,} held out, of {show_bytes(size)} of text in {kept:,} "
        f"of {found:,} documents."
    )


def show_bytes(size: float) -> str:
    """Return 1234567 as '1.23 MB'."""
    return next(
        (f"{size / unit:,.3g} {name}" for unit, name in UNITS if size >= 0.9995 * unit),
        f"{size:,.0f} bytes",
    )


def show_tokens_per_word(source: dict[str, Any]) -> str:
    """Return the tokens of a word of a source with two decimals; '-' where it is not known."""
    value = source.get("fertility", {}).get("tokens_per_word")
    return "-" if value is None else f"{value:.2f}"


def show_share(share: float) -> str:
    """Return 0.996 as '99.6%'. Nearly nothing is not rounded to 0, nor nearly all to 100%."""
    percent = 100 * share
    if 0 < percent < 0.05:
        return "<0.1%"
    for digits in range(1, 5):
        text = f"{percent:.{digits}f}"
        if float(text) < 100 or share >= 1:
            return f"{text}%"
    return ">99.9999%"
