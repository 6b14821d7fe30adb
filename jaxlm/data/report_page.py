"""The report of a store as one HTML page that needs no other file, no network and no script.

What comes from documents, names and paths is escaped, and the page's policy forbids it to load or
run anything.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from jaxlm.data.report import (
    KEPT,
    READ,
    Stage,
    bytes_per_token,
    list_stages,
    name_stage,
    show_bytes,
    show_share,
    show_tokens_per_word,
    store_name,
    summarize_sizes,
)
from jaxlm.data.report_charts import (
    KNOWN_SIMILARITY,
    Segment,
    compare_probability,
    draw_bar,
    draw_find_probability,
)
from jaxlm.data.visible_text import escape_lines, escape_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --ground: #eceff2; --read: #8c959f; --lost: #cf5b2e; --kept: #2f7d5b; --held: #4c7fb8; }
@media (prefers-color-scheme: dark) { :root { --page: #12161b; --ink: #e6e9ec; --soft: #9aa4af;
  --line: #343c45; --ground: #232a32; --read: #7d8894; --lost: #e5764a; --kept: #4cae84;
  --held: #6fa3dc; } }
@media print { :root { --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --ground: #eee;
  --read: #8c959f; --lost: #cf5b2e; --kept: #2f7d5b; --held: #4c7fb8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.2rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
h1, h2, h3, td, th { overflow-wrap: anywhere; }
p { margin: .3rem 0; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { white-space: nowrap; color: var(--soft); font-weight: 600; font-size: .85rem; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal;
  min-width: 6rem; }
.row { display: grid; grid-template-columns: 11rem 1fr 19rem; gap: 0 .8rem; align-items: center;
  padding: .15rem 0; break-inside: avoid; }
.row span { overflow-wrap: anywhere; }
.row .numbers { text-align: right; font-variant-numeric: tabular-nums; font-size: .9rem; }
.bar { display: block; width: 100%; height: 1rem; }
.ground { fill: var(--ground); } rect.read { fill: var(--read); } rect.lost { fill: var(--lost); }
rect.kept { fill: var(--kept); } rect.held { fill: var(--held); }
rect.threshold { fill: var(--lost); } rect.known { fill: var(--soft); }
figure { margin: .6rem 0; break-inside: avoid; }
.chart { display: block; width: 100%; max-width: 36rem; height: auto; }
.chart text { fill: var(--ink); font-size: 12px; }
.rule { stroke: var(--ground); fill: none; } .axis { stroke: var(--soft); fill: none; }
.curve { stroke: var(--held); stroke-width: 2.5; fill: none; }
path.threshold { stroke: var(--lost); stroke-dasharray: 5 4; } circle.threshold
  { fill: var(--lost); }
path.known { stroke: var(--soft); stroke-dasharray: 2 4; } circle.known { fill: var(--soft); }
.key { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 .8rem;
  vertical-align: -.05rem; }
.key:first-child { margin-left: 0; }
.sample { margin: .5rem 0; padding-left: .7rem; border-left: 3px solid var(--line); }
.sample pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 16rem;
  overflow-y: auto; font: .85rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
@media (max-width: 44rem) {
  .row { grid-template-columns: 1fr; padding: .35rem 0; } .row .numbers { text-align: left; }
  body { padding: .8rem; } }
@media print { .sample pre { max-height: none; } body { max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; } .scroll { overflow: visible; }
  .row { grid-template-columns: 9rem 1fr 17rem; } }
"""


def build_page(report: dict[str, Any]) -> str:
    """Return the HTML page of a report (`describe_store`)."""
    sources = report["sources"]
    parts = [
        f"<h1>Token store {text(store_name(report))}</h1>",
        f'<p class="soft">{text(report["store"])}</p>',
        f"<p>{summarize_sizes(report)}</p>",
        "<h2>Sources</h2>",
        build_source_table(sources),
        "<h2>Tokens</h2>",
        *build_token_bars(report),
        "<h2>From read to kept</h2>",
        *(part for name, source in sources.items() for part in build_funnel(name, source)),
        *build_near_duplicates(report),
        *build_samples(sources),
    ]
    title = f"Token store {text(store_name(report))}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def text(value: str) -> str:
    """Escape a text on one line for HTML; hidden characters are shown by their codes."""
    return escape(escape_text(value))


def build_source_table(sources: dict[str, dict[str, Any]]) -> str:
    """Return the table of the sources."""
    heads = ["source", "documents", "kept", "bytes", "tokens", "bytes/token"]
    has_words = any("fertility" in source for source in sources.values())
    heads += ["tokens/word"] * has_words
    rows = []
    for name, source in sources.items():
        counts = [f"{source[key]:,}" for key in ("documents", "kept", "bytes", "tokens")]
        row = [text(name), *counts, bytes_per_token(source)]
        if has_words:
            row.append(show_tokens_per_word(source))
        rows.append(row)
    return build_table(heads, rows)


def build_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls by itself; its cells are HTML already."""
    lines = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def build_row(label: str, bar: str, numbers: str) -> str:
    """Return a label, a bar and its numbers side by side; below each other on a phone."""
    return f'<div class="row"><span>{label}</span>{bar}<span class="numbers">{numbers}</span></div>'


def build_token_bars(report: dict[str, Any]) -> list[str]:
    """Return a bar for each source: its tokens for training and for validation."""
    train, validation = report["training"]["sources"], report["validation"]["sources"]
    longest = max(train.get(name, 0) + validation.get(name, 0) for name in report["sources"])
    total = sum(source["tokens"] for source in report["sources"].values())
    parts = [f'<p class="soft">{draw_key("kept")}training{draw_key("held")}validation</p>']
    for name in report["sources"]:
        trained, held = train.get(name, 0), validation.get(name, 0)
        bar = draw_bar([Segment(0, trained, "kept"), Segment(trained, held, "held")], longest)
        share = f" · {escape(show_share((trained + held) / total))}" if total else ""
        parts.append(build_row(text(name), bar, f"{trained:,} + {held:,}{share}"))
    return parts


def draw_key(kind: str) -> str:
    """Return a square of a colour, for a legend. As an SVG it is printed."""
    return f'<svg class="key" viewBox="0 0 1 1"><rect class="{kind}" width="1" height="1"/></svg>'


def build_funnel(name: str, source: dict[str, Any]) -> list[str]:
    """Return the stages of a source as a funnel: what each takes stands where it is lost.

    Bars are in bytes where these are known, else in documents.
    """
    stages = list_stages(source)
    is_bytes = all(stage.bytes is not None for stage in stages)
    sizes = [(stage.bytes if is_bytes else stage.documents) or 0 for stage in stages]
    total, left = max(sizes[0], sizes[-1]), sizes[0]

    parts = [f"<h3>{text(name)}</h3>", "<figure>"]
    for stage, size in zip(stages, sizes, strict=True):
        kind, start = {READ: "read", KEPT: "kept"}.get(stage.name, "lost"), 0
        if stage.is_loss:
            left -= size
            start = max(left, 0)
        bar = draw_bar([Segment(start, size, kind)], total)
        parts.append(build_row(text(name_stage(stage.name)), bar, count_stage(stage, size, total)))
    unit = "bytes" if is_bytes else "documents"
    return [*parts, f"<figcaption>Bars are {unit}.</figcaption></figure>"]


def count_stage(stage: Stage, size: int, total: int) -> str:
    """Return the documents and bytes of a stage, and its share of what was read."""
    numbers = [] if stage.documents is None else [f"{stage.documents:,} documents"]
    numbers += [] if stage.bytes is None else [show_bytes(stage.bytes)]
    if stage.name != READ and total:
        numbers.append(escape(show_share(size / total)))
    return " · ".join(numbers)


def build_near_duplicates(report: dict[str, Any]) -> list[str]:
    """Return the odds of finding near duplicates, where these were looked for."""
    near = report.get("near_duplicates")
    if near is None:
        return []
    shape = near["bands"], near["rows"]
    shown = [
        draw_key(kind)
        + f"{name} {similarity:g}: {escape(show_share(compare_probability(similarity, *shape)))}"
        for kind, name, similarity in (
            ("known", "5% of the words changed,", KNOWN_SIMILARITY),
            ("threshold", "threshold", near["similarity"]),
        )
    ]
    return [
        "<h2>Finding near duplicates</h2>",
        f"<p>A document is dropped if its similarity to an earlier one is estimated as "
        f"{near['similarity']:g} or more: the share of the 5-word shingles of either that both "
        f"have. Two documents are compared if they agree in one of {near['bands']} bands of "
        f"{near['rows']} minima. The curve is the probability of that.</p>",
        "<figure>",
        draw_find_probability(near["similarity"], *shape),
        f"<figcaption>{''.join(shown)}</figcaption></figure>",
    ]


def build_samples(sources: dict[str, dict[str, Any]]) -> list[str]:
    """Return samples of the documents that were dropped, by source and reason."""
    parts = []
    for name, source in sources.items():
        for reason, samples in source.get("samples", {}).items():
            if not samples:
                continue
            parts.append(f"<h3>{text(name)}: {text(name_stage(reason))}</h3>")
            for sample in samples:
                body = escape(escape_lines(sample["text"]))
                parts.append(
                    f'<div class="sample"><div class="soft">{text(sample["name"])}</div>'
                    f"<pre>\n{body}</pre></div>"
                )
    return ["<h2>Samples of what was dropped</h2>", *parts] if parts else []
