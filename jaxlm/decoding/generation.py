"""Prompts in, texts out: batches of prompts through the loop or the beam search, with stop strings and streaming."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.config import UserError
from jaxlm.decoding import prompts as reading
from jaxlm.decoding.beam import BeamWriter, Search
from jaxlm.decoding.engine import Ends, Writer
from jaxlm.decoding.prompts import Special, Tokenizer
from jaxlm.decoding.sampling import SamplingConfig
from jaxlm.decoding.show import split_at
from jaxlm.decoding.text import Text
from jaxlm.models import Model
from jaxlm.types import Tree


class GenerationSettings(NamedTuple):
    """How texts are written."""

    choice: SamplingConfig = SamplingConfig()
    search: Search | None = None  # instead of choosing token by token
    new_tokens: int = 128
    least_tokens: int = 0
    stops: tuple[str, ...] = ()
    samples: int = 1  # of each prompt
    batch_size: int = 8
    seed: int = 0


class Written(NamedTuple):
    """What a model has written for a prompt."""

    prompt: int  # its number, from 0
    sample: int
    prompt_tokens: int  # of a decoder's prompt or an encoder-decoder's source
    ids: np.ndarray  # the new tokens, up to the end or to the end of a stop string
    output: str  # their text, without the stop string
    text: str  # a decoder's continuation, or the source with its gaps filled, or the output
    finish: str  # end: of text; stop: a stop string; length: new_tokens; context: no more positions


class Row(NamedTuple):
    """A text to be written."""

    prompt: int
    sample: int
    ids: np.ndarray  # what the model reads
    start: np.ndarray  # what the new tokens follow: the same, or the decoder's first tokens
    limit: int


class Generator:
    """A decoder or an encoder-decoder with its tokenizer. `params` are best given as `models.unstacked`."""

    def __init__(
        self,
        model: Model,
        params: Tree,
        tokenizer: Tokenizer,
        special: Special,
        settings: GenerationSettings,
    ):
        ends = Ends(
            special.eos_ids or (tokenizer.end_of_text,),
            special.pad_id or 0,
            settings.least_tokens,
            special.forced_bos_id,
            special.forced_eos_id,
        )
        self.model, self.tokenizer, self.special, self.settings, self.ends = (
            model,
            tokenizer,
            special,
            settings,
            ends,
        )
        self.writes_target = model.config.family == "encoder_decoder"
        self.sentinels = (
            list(reading.sentinels(tokenizer, special).values()) if self.writes_target else []
        )
        self.writer = Writer(model, params, ends)
        self.beams = BeamWriter(self.writer, settings.search) if settings.search else None

    def rows(self, prompts: Sequence[str]) -> list[Row]:
        """The texts to be written; UserError if a prompt does not fit into the model."""
        model, settings, rows = self.model.config, self.settings, []
        for number, prompt in enumerate(prompts):
            ids = reading.framed(model, self.tokenizer, self.special, prompt)
            reading.check_length(model, number + 1, len(ids), room=0 if self.writes_target else 1)
            start = self.decoder_start() if self.writes_target else ids
            free = reading.free_positions(model, len(start))
            limit = settings.new_tokens if free is None else min(settings.new_tokens, free)
            rows += [Row(number, sample, ids, start, limit) for sample in range(settings.samples)]
        return rows

    def decoder_start(self) -> np.ndarray:
        start = self.special.decoder_start_id
        if start is None:
            raise UserError(
                "decoder_start_token_id: the model's config names no token that its decoder starts with"
            )
        return np.array([start], np.int32)

    def __call__(
        self, prompts: Sequence[str], stream: Callable[[str], None] | None = None
    ) -> Iterator[Written]:
        """What is written for each prompt, `settings.samples` times, in their order.

        `stream` gets the text of a batch of one as it comes, if that is certain before the end.
        """
        rows, size = self.rows(prompts), self.settings.batch_size
        size = min(size, len(rows))
        for first in range(0, len(rows), size):
            yield from self.batch(
                rows[first : first + size], first, size, stream if len(rows) == 1 else None
            )

    def batch(
        self, rows: Sequence[Row], first: int, size: int, stream: Callable[[str], None] | None
    ) -> Iterator[Written]:
        """Rows `first` and following, filled up to `size` so that the last batch compiles nothing new."""
        empty = Row(0, 0, np.zeros(1, np.int32), np.zeros(1, np.int32), 0)
        filled = [*rows, *[empty] * (size - len(rows))]
        texts = [
            Text(
                self.tokenizer.decode,
                () if self.writes_target else row.start.tolist(),
                self.settings.stops,
            )
            for row in rows
        ]
        sources = [row.ids for row in filled] if self.writes_target else None
        starts, limits = [row.start for row in filled], [row.limit for row in filled]
        if self.beams or np.isin(rows[0].ids, self.sentinels).any():
            stream = None
        if self.beams:
            found = self.beams.write(starts, limits, sources)
        else:
            watch = Watched(texts, self.ends.ids, stream) if stream or self.settings.stops else None
            numbers = range(first, first + size)
            choice, seed = self.settings.choice, self.settings.seed
            found = self.writer.write(
                starts, limits, choice, sources=sources, rows=numbers, seed=seed, watch=watch
            )
        for row, text, ids in zip(rows, texts, found, strict=False):
            left = text.add(without_end(ids[text.tokens :], self.ends.ids), last=True)
            if stream is not None and left:
                stream(left)
            yield self.written(row, text, ids)

    def written(self, row: Row, text: Text, ids: np.ndarray) -> Written:
        if text.stopped:
            ids, finish = ids[: text.tokens], "stop"
        elif len(ids) and ids[-1] in self.ends.ids:
            finish = "end"
        else:
            finish = "length" if row.limit == self.settings.new_tokens else "context"
        filled = self.filled(row.ids, without_end(ids, self.ends.ids))
        return Written(
            row.prompt,
            row.sample,
            len(row.ids),
            ids,
            text.text,
            text.text if filled is None else filled,
            finish,
        )

    def filled(self, source: np.ndarray, ids: np.ndarray) -> str | None:
        """The source with the spans that were written for its sentinels in their places; None where it has no sentinels."""
        if not np.isin(source, self.sentinels).any():
            return None
        spans = split_at(ids, np.array(self.sentinels))
        body = source[len(self.special.before) : len(source) - len(self.special.after)]
        parts = [spans.get(token, [token]) for token in body.tolist()]
        return self.tokenizer.show(np.concatenate([np.asarray(part, np.int64) for part in parts]))


class Watched:
    """Follows a batch: hands on what is certain of a single row's text, and ends rows whose stop string came."""

    def __init__(
        self, texts: Sequence[Text], ends: Sequence[int], stream: Callable[[str], None] | None
    ):
        self.texts, self.ends, self.stream = texts, ends, stream

    def __call__(self, tokens_BN: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        go_on = np.ones(len(tokens_BN), bool)
        for number, text in enumerate(self.texts):
            new = text.add(
                without_end(tokens_BN[number, text.tokens : lengths_B[number]], self.ends)
            )
            go_on[number] = not text.stopped
            if self.stream is not None and new:
                self.stream(new)
        return go_on


def without_end(ids: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    return ids[:-1] if len(ids) and ids[-1] in ends else ids
