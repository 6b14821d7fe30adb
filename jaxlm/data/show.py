"""Show a sample as the model sees it: token by token, with targets, weights and masks.

Nothing here imports jax. What documents hold is escaped, so that a terminal shows it and obeys
none of it.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import UserError
from jaxlm.data.example_array import ExampleArray
from jaxlm.data.pairs import PairArray
from jaxlm.data.shards import TokenArray
from jaxlm.data.show_examples import add_labels, read_example_texts
from jaxlm.data.split import SPLITS
from jaxlm.data.store import Store, count_records
from jaxlm.data.stream import Stream
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.verification import how_to_rebuild
from jaxlm.data.visible_text import display_width, escape_text, fit_width
from jaxlm.data.vocabulary import BYTES, REPLACEMENT, choose_spelling, spell_byte_level
from jaxlm.objectives import Objective
from jaxlm.types import Batch

COLUMNS = 100  # of the output
LONGEST_TABLE = 128  # positions; above, a sample is shown as running text
MOST_TOKENS = 4096  # of a document
SPACE = "·"  # in tokens of byte-level tokenizers; the character itself is shown as \xb7
MOST_TEXT_COLUMNS = 26  # of a token in a table
LONGEST_RUN = 3  # lines of a table that are the same
LEFT_COLUMNS = ("token", "target", "note")  # of a table


class Place(NamedTuple):
    """The stretch of a source that a sample was cut from."""

    source: str
    split: str
    start: int  # in `unit`
    length: int
    unit: str  # "tokens", "pairs", "examples" or "rows"
    # Numbers in the split of the source: of the first and of the last, or of all in a row
    documents: tuple[int, ...]


# --- places ---


def locate_sample(
    store: Store,
    split: str,
    array: int,
    start: int,
    objective: Objective,
    stream: Stream | None = None,
) -> Place:
    """Return the place of the sample that starts at `start` of an array.

    `stream` is that of the training split.
    """
    if stream is not None and stream.packed is not None:
        starts = stream.row_arrays[array].packing.row_starts(start)
        return locate_row(store, split, array, start, starts)
    if objective.examples is not None:
        numbers = [start] if stream is None else stream.sample_examples(array, start)
        return locate_examples(store, split, array, numbers, objective)
    return locate_window(store, split, array, start, objective.window)


def locate_window(store: Store, split: str, array: int, start: int, length: int) -> Place:
    """Return the place of a window of `length` tokens, or of a pair, in an array of a split."""
    entry = split_entries(store, split)[array]
    if "pairs" in entry:
        return Place(entry["source"], split, start, 1, "pairs", (start, start))

    length = min(length, entry["tokens"] - start)
    offsets = open_offsets(store, entry)
    first, last = np.searchsorted(offsets, [start, start + length - 1], side="right") - 1
    documents = int(first), int(last)
    return Place(entry["source"], split, start, length, "tokens", documents)


def locate_examples(
    store: Store, split: str, array: int, numbers: Sequence[int], objective: Objective
) -> Place:
    """Return the place of some of the examples of an array that an objective keeps."""
    examples = open_array(store, split, array)
    assert isinstance(examples, ExampleArray), "checked by the caller"
    kept = examples.measure(objective)[0][np.asarray(numbers)].tolist()
    source = split_entries(store, split)[array]["source"]
    return Place(source, split, kept[0], len(kept), "examples", tuple(kept))


def open_array(store: Store, split: str, array: int) -> object:
    """Return an array of a split."""
    return (store.train if split == SPLITS[0] else store.validation)[array]


def locate_row(store: Store, split: str, array: int, row: int, starts: np.ndarray) -> Place:
    """Return the place of a row of documents, whose pieces begin at the tokens `starts`."""
    entry = split_entries(store, split)[array]
    offsets = open_offsets(store, entry)
    documents = np.searchsorted(offsets, starts, side="right") - 1
    return Place(entry["source"], split, row, 1, "rows", tuple(documents.tolist()))


def locate_document(store: Store, split: str, number: int) -> tuple[int, Place]:
    """Return the array that has document `number` of a split, and the place of the document.

    Documents, or pairs, are counted through the sources. Raises UserError if there are fewer.
    """
    first = 0
    for array, entry in enumerate(split_entries(store, split)):
        count = count_records(entry)
        if number < first + count:
            within = number - first
            for unit in ("pairs", "examples"):
                if unit in entry:
                    return array, Place(entry["source"], split, within, 1, unit, (within, within))
            start, end = open_offsets(store, entry)[within : within + 2].tolist()
            span = (within, within)
            return array, Place(entry["source"], split, start, end - start, "tokens", span)
        first += count

    raise UserError(
        f"--sample: {number}: the {split} split of {store.path} has {first:,} documents"
    )


def split_entries(store: Store, split: str) -> list[dict[str, Any]]:
    """Return the entries of the manifest that the arrays of a split belong to."""
    entries = store.manifest["splits"][split]
    return entries if split == SPLITS[0] else [entry for entry in entries if entry["tokens"]]


def open_offsets(store: Store, entry: dict[str, Any]) -> np.ndarray:
    """Return where the documents of a source begin and the last one ends, without reading all."""
    path = store.path / entry["offsets"]
    try:
        offsets = np.memmap(path, "<i8", "r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing or damaged; {how_to_rebuild(path)}") from error
    if offsets[-1] != entry["tokens"]:
        raise UserError(f"{path}: damaged; {how_to_rebuild(path)}")
    return offsets


def read_document(store: Store, split: str, array: int, place: Place) -> dict[str, np.ndarray]:
    """Return the tokens of a document, at most MOST_TOKENS; of a record its texts, by name."""
    tokens = open_array(store, split, array)
    if isinstance(tokens, ExampleArray):
        form = split_entries(store, split)[array]["format"]
        return read_example_texts(tokens, place.start, form, MOST_TOKENS)
    if isinstance(tokens, PairArray):
        bounds = tokens.offsets[2 * place.start : 2 * place.start + 3].tolist()
        spans = {"source": bounds[:2], "target": bounds[1:]}
        tokens = tokens.tokens
    else:
        assert isinstance(tokens, TokenArray), "the store is finished"
        spans = {"document": [place.start, place.start + place.length]}
    return {
        name: tokens.read_windows(np.array([start]), min(end - start, MOST_TOKENS))[0]
        for name, (start, end) in spans.items()
    }


def format_place(place: Place) -> str:
    """Return a place as a line."""
    first, last = place.documents[0], place.documents[-1]
    if place.unit == "pairs":
        return f"source {escape_text(place.source)}, {place.split}: pair {first:,}"
    if place.unit == "examples":
        numbers = ", ".join(f"{number:,}" for number in dict.fromkeys(place.documents))
        several = "s" if "," in numbers else ""
        return f"source {escape_text(place.source)}, {place.split}: example{several} {numbers}"
    if place.unit == "rows":
        numbers = ", ".join(f"{number:,}" for number in place.documents)
        where = f"row {place.start:,}, of the documents {numbers}"
        return f"source {escape_text(place.source)}, {place.split}: {where}"
    documents = f"document {first:,}" if first == last else f"documents {first:,} to {last:,}"
    end = place.start + place.length - 1
    where = f"tokens {place.start:,} to {end:,}, of {documents}"
    return f"source {escape_text(place.source)}, {place.split}: {where}"


# --- tokens ---


class TokenNames:
    """The tokens of a tokenizer as it spells them, on one line."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.special = set(tokenizer.inner.get_added_tokens_decoder())
        self.is_byte_level = choose_spelling(tokenizer.inner) is spell_byte_level

    def __call__(self, number: int) -> str:
        """Return the text of an id. Bytes that are no whole character are shown as <e6 97>."""
        token = self.tokenizer.inner.id_to_token(number) if number >= 0 else None
        if token is None:
            return f"<no token {number}>"
        if not self.is_byte_level or number in self.special:
            return escape_text(token)

        text = spell_byte_level(token).text
        if REPLACEMENT in text and BYTES.keys() >= set(token):
            data = bytes(BYTES[character] for character in token)
            if REPLACEMENT not in data.decode(errors="ignore"):
                return f"<{data.hex(' ')}>"
        return escape_text(text).replace(SPACE, "\\xb7").replace(" ", SPACE)


# --- samples ---


def describe_tokens(names: TokenNames, ids: np.ndarray) -> list[dict[str, Any]]:
    """Return the position, text and id of each token."""
    return [
        {"position": position, "token": names(number), "id": number}
        for position, number in enumerate(ids.tolist())
    ]


def describe_batch(
    names: TokenNames, batch: Batch, labels: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Return what the model sees of a batch of one sample, by side and position, as JSON data.

    The targets are tokens, or `labels`.

    The sides are `tokens`, or for an encoder-decoder `source` and `target`. A position has
    `position`, `token` and `id`; as far as the objective has them `target`, `target_id` and
    `weight`; `segment`, `place` (its number for the embedding of positions), `type`; `note` is
    "padding" or "prefix".
    """
    sides = {}
    if batch.source is not None:
        source = describe_tokens(names, batch.source[0])
        add_column(source, "segment", batch.source_segments)
        add_column(source, "place", batch.source_positions)
        add_note(source, batch.source_lengths, "padding", after=True)
        sides["source"] = source
        if labels:
            add_labels(source, batch, labels)

    rows = describe_tokens(names, batch.tokens[0])
    if labels and batch.source is None:
        add_labels(rows, batch, labels)
    elif batch.targets is not None and not labels:
        add_targets(names, rows, batch)
    add_column(rows, "segment", batch.segments)
    add_column(rows, "place", batch.positions)
    add_column(rows, "type", batch.token_types)
    add_note(rows, batch.prefix_lengths, "prefix", after=False)
    add_note(rows, batch.lengths, "padding", after=True)
    sides["target" if sides else "tokens"] = rows
    return sides


def add_targets(names: TokenNames, rows: list[dict[str, Any]], batch: Batch) -> None:
    """Add what is predicted at each position; with `batch.predict` at those positions alone."""
    assert batch.targets is not None
    targets = batch.targets[0].tolist()
    weights = [1.0] * len(targets) if batch.weights is None else batch.weights[0].tolist()
    places = list(range(len(targets))) if batch.predict is None else batch.predict[0].tolist()
    for place, target, weight in zip(places, targets, weights, strict=True):
        if batch.predict is None or weight:
            rows[place] |= {"target": names(target), "target_id": target, "weight": weight}


def add_column(rows: list[dict[str, Any]], name: str, values: Any) -> None:
    """Add the values of a field of a batch, [1, n], to the positions; None: there are none."""
    if values is not None:
        for row, value in zip(rows, values[0].tolist(), strict=True):
            row[name] = value


def add_note(rows: list[dict[str, Any]], lengths: Any, note: str, *, after: bool) -> None:
    """Add a note to the positions before, or from, the length of a batch, [1]."""
    if lengths is not None:
        length = int(lengths[0])
        for row in rows[length:] if after else rows[:length]:
            row["note"] = note


# --- text ---


def format_side(rows: Sequence[dict[str, Any]], *, as_table: bool) -> list[str]:
    """Return the lines of a side of a sample: a line for each position, or running text."""
    return format_table(rows) if as_table else format_running_text(rows)


def format_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each position, and one of heads before them, at most 100 columns wide.

    Of more than three positions in a row that differ in nothing else, such as padding, the first is
    shown.
    """
    heads = list(dict.fromkeys(key for row in rows for key in row))
    names = [head.replace("_", " ") for head in heads]
    cells = [[format_cell(row.get(head)) for head in heads] for row in rows]
    widths = [
        min(max(map(display_width, column)), MOST_TEXT_COLUMNS)
        for column in zip(names, *cells, strict=True)
    ]

    lines = [align_cells(heads, names, widths)]
    for _, run in groupby(cells, key=lambda line: line[1:]):
        same = [align_cells(heads, line, widths) for line in run]
        if len(same) > LONGEST_RUN:
            same = [same[0], f"{'…':>{widths[0]}}  {len(same) - 1:,} more like it"]
        lines += same
    return lines


def align_cells(heads: Sequence[str], cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line of a table: texts to the left, numbers to the right."""
    fitted = [
        fit_width(cell, width) if head in LEFT_COLUMNS else cell.rjust(width)
        for head, cell, width in zip(heads, cells, widths, strict=True)
    ]
    return "  ".join(fitted).rstrip()


def format_cell(value: Any) -> str:
    """Return a value of a table as text."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def format_running_text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the tokens of a side one after another, divided by │, each line with its position.

    A masked position is «token=target». Lines on targets, segments and padding follow.
    """
    targets = [row.get("target_id") for row in rows]
    is_masked = any(row.get("weight") for row in rows) and None in targets
    texts = [
        f"«{row['token']}={row['target']}»" if is_masked and "target" in row else row["token"]
        for row in rows
    ]
    lines = wrap_tokens(texts)

    counted = [bool(row.get("weight")) for row in rows]
    if any("target" in row for row in rows):
        lines.append(f"predicted: {format_ranges(counted)} ({sum(counted):,} of {len(rows):,})")
    follows = [row["id"] for row in rows[1:]] == targets[:-1]
    if targets[-1] is not None and not is_masked and follows:
        lines.append(f"each target is the next token; the last one is {rows[-1]['target']}")
    elif any("target" in row for row in rows) and not is_masked:
        lines += ["targets:", *wrap_tokens([row.get("target", "") for row in rows])]

    for key in ("segment", "type", "note"):
        for value, positions in group_positions(rows, key):
            lines.append(
                f"{key} {value}: {positions}" if key != "note" else f"{value}: {positions}"
            )
    weights = sorted({row["weight"] for row in rows if row.get("weight")})
    if weights not in ([], [1.0]):
        lines.append(f"weights: {weights[0]:g} to {weights[-1]:g}")
    return lines


def group_positions(rows: Sequence[dict[str, Any]], key: str) -> Iterator[tuple[Any, str]]:
    """Yield each value of a column and the positions that have it."""
    for value in dict.fromkeys(row[key] for row in rows if row.get(key) is not None):
        yield value, format_ranges([row.get(key) == value for row in rows])


def wrap_tokens(texts: Sequence[str]) -> list[str]:
    """Return lines of at most 100 columns: the position of the first token, then the tokens."""
    margin = len(str(len(texts)))
    lines, line, width = [], "", 0
    for position, text in enumerate(texts):
        piece = fit_width(text, min(display_width(text), COLUMNS - margin - 3)) + "│"
        if not line or width + display_width(piece) > COLUMNS:
            if line:
                lines.append(line)
            line = f"{position:>{margin}}  "
            width = len(line)
        line += piece
        width += display_width(piece)
    return [*lines, line] if line else lines


def format_ranges(chosen: Sequence[bool]) -> str:
    """Return the positions that are chosen as '0-11, 14', the first dozen ranges."""
    runs = []
    for is_chosen, run in groupby(enumerate(chosen), key=lambda pair: pair[1]):
        positions = [position for position, _ in run]
        if is_chosen:
            first, last = positions[0], positions[-1]
            runs.append(f"{first}" if first == last else f"{first}-{last}")
    more = [f"and {len(runs) - 12:,} more"] if len(runs) > 12 else []
    return ", ".join([*runs[:12], *more]) or "none"
