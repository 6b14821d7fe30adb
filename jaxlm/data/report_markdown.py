"""The report of a store as Markdown. Foreign text is escaped, so that it breaks no table."""

from typing import Any

from jaxlm.data.report import (
    READ,
    bytes_per_token,
    list_stages,
    name_stage,
    show_share,
    show_tokens_per_word,
    store_name,
    summarize_sizes,
)
from jaxlm.data.report_charts import compare_probability
from jaxlm.data.visible_text import escape_text
from jaxlm.markdown import plain, table


def build_markdown(report: dict[str, Any]) -> str:
    """Return the Markdown of a report (`describe_store`)."""
    sources = report["sources"]
    parts = [
        f"# Token store {show(store_name(report))}",
        show(report["store"]),
        summarize_sizes(report),
        "## Sources",
        build_source_table(sources),
        "## From read to kept",
    ]
    for name, source in sources.items():
        parts += [f"### {show(name)}", build_stage_table(source)]
    parts += describe_near_duplicates(report)

    samples = [
        (show(name), show(name_stage(reason)), show(sample["name"]), show(sample["text"]))
        for name, source in sources.items()
        for reason, found in source.get("samples", {}).items()
        for sample in found
    ]
    if samples:
        heads = ("source", "reason", "document", "text")
        parts += ["## Samples of what was dropped", table(heads, samples)]
    return "\n\n".join(parts) + "\n"


def show(value: str) -> str:
    """Return a text on one line, hidden characters by their codes, escaped for Markdown."""
    return plain(escape_text(value))


def build_source_table(sources: dict[str, dict[str, Any]]) -> str:
    """Return the table of the sources."""
    heads = ("source", "documents", "kept", "bytes", "tokens", "bytes/token", "tokens/word")
    rows = [
        (
            show(name),
            *(f"{source[key]:,}" for key in ("documents", "kept", "bytes", "tokens")),
            bytes_per_token(source),
            show_tokens_per_word(source),
        )
        for name, source in sources.items()
    ]
    return table(heads, rows)


def build_stage_table(source: dict[str, Any]) -> str:
    """Return the table of what was read of a source, what each reason took, and what is kept."""
    rows = []
    for stage in list_stages(source):
        documents = share = ""
        if stage.documents is not None:
            documents = f"{stage.documents:,}"
            if stage.name != READ:
                share = show(show_share(stage.documents / max(source["documents"], 1)))
        size = "" if stage.bytes is None else f"{stage.bytes:,}"
        rows.append((show(name_stage(stage.name)), documents, share, size))
    return table(("stage", "documents", "of those read", "bytes"), rows)


def describe_near_duplicates(report: dict[str, Any]) -> list[str]:
    """Return what the search for near duplicates finds, where there was one."""
    near = report.get("near_duplicates")
    if near is None:
        return []
    bands, rows = near["bands"], near["rows"]
    found = [
        (f"{similarity:g}", show(show_share(compare_probability(similarity, bands, rows))))
        for similarity in sorted({0.15, 0.3, 0.5, 0.63, 0.8, 0.9, near["similarity"]})
    ]
    return [
        "## Finding near duplicates",
        f"A document is dropped if its similarity to an earlier one is estimated as "
        f"{near['similarity']:g} or more. Two documents are compared if they agree in one of "
        f"{bands} bands of {rows} minima.",
        table(("similarity", "compared"), found),
    ]
