"""Report what a store holds of each source, as JSON data and as a table."""

from typing import Any

from jaxlm.columns import align_columns
from jaxlm.data.split import SPLITS, TRAIN
from jaxlm.data.store import Store


def describe_store(store: Store) -> dict[str, Any]:
    """Return the report of a store as JSON data.

    `sources` has for each name: `documents` (or pairs) that were found, `kept` ones, `bytes` of
    their text in UTF-8, `tokens` of both splits, `dropped` by reason. `training` and `validation`
    have the tokens of each split. In stores of earlier versions nothing was dropped.
    """
    dropped = store.manifest.get("dropped", {})
    sources: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        for entry in store.manifest["splits"][split]:
            source = sources.setdefault(entry["source"], {"kept": 0, "bytes": 0, "tokens": 0})
            source["kept"] += entry.get("pairs", entry["documents"])
            source["bytes"] += entry["bytes"]
            source["tokens"] += entry["tokens"]

    for name, source in sources.items():
        source["dropped"] = dropped.get(name, {})
        source["documents"] = source["kept"] + sum(source["dropped"].values())
    tokens = {
        split: sum(entry["tokens"] for entry in store.manifest["splits"][split]) for split in SPLITS
    }
    return {
        "store": str(store.path),
        "sources": sources,
        "training": {"tokens": tokens[TRAIN]},
        "validation": {key: store.manifest["validation"][key] for key in ("tokens", "bytes")},
    }


def format_report(report: dict[str, Any]) -> str:
    """Return the table of a report: a line for each source."""
    lines: list[tuple[str, ...]] = [
        ("source", "documents", "kept", "bytes", "tokens", "bytes/token")
    ]
    for name, source in report["sources"].items():
        counts = [f"{source[key]:,}" for key in ("documents", "kept", "bytes", "tokens")]
        fertility = f"{source['bytes'] / source['tokens']:.2f}" if source["tokens"] else "-"
        lines.append((name, *counts, fertility))
    return align_columns(lines)
