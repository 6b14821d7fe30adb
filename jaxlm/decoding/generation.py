"""Generate texts for batches of prompts, by sampling or beam search, with stop strings."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.config import UserError
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decoding.beam import BeamConfig, BeamSearch
from jaxlm.decoding.constraints import StopTokens
from jaxlm.decoding.engine import Engine
from jaxlm.decoding.prompts import (
    check_prompt_length,
    encode_prompt,
    free_positions,
    sentinel_ids,
    split_at_sentinels,
)
from jaxlm.decoding.sampling import SamplingConfig
from jaxlm.decoding.text import TextStream
from jaxlm.interop.tokenizer import TokenizerFrame
from jaxlm.models import Model
from jaxlm.types import Tree


class DecodingConfig(NamedTuple):
    """How texts are generated."""

    sampling: SamplingConfig = SamplingConfig()
    beam: BeamConfig | None = None  # search beams instead of sampling
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    samples: int = 1  # of each prompt
    batch_size: int = 8
    seed: int = 0


class Completion(NamedTuple):
    """The text that a model generated for a prompt."""

    prompt: int  # number of the prompt, from 0
    sample: int
    prompt_tokens: int  # of a decoder's prompt, or of an encoder-decoder's source
    ids: np.ndarray  # the new tokens, up to the end or to the end of a stop string
    output: str  # their text, without the stop string
    text: str  # a decoder's continuation, or the source with its gaps filled, or the output
    # "end": end of text. "stop": a stop string. "length": max_new_tokens. "context": no position
    # is left.
    finish: str


class GenerationRequest(NamedTuple):
    """One text to be generated."""

    prompt: int  # number of the prompt, from 0
    sample: int
    ids: np.ndarray  # what the model reads
    start: np.ndarray  # what the new tokens follow: `ids`, or the decoder's first tokens
    limit: int  # most new tokens


class TextGenerator:
    """A decoder or an encoder-decoder with its tokenizer.

    On a single device `models.unstacked(params)` is faster than stacked parameters.
    """

    def __init__(
        self,
        model: Model,
        params: Tree,
        tokenizer: Tokenizer,
        frame: TokenizerFrame,
        config: DecodingConfig,
    ):
        self.model, self.tokenizer, self.frame, self.config = model, tokenizer, frame, config
        self.stop = StopTokens(
            frame.eos_ids or (tokenizer.end_of_text,),
            pad_id=frame.pad_id or 0,
            min_new_tokens=config.min_new_tokens,
            forced_first_id=frame.forced_bos_id,
            forced_last_id=frame.forced_eos_id,
            rules=frame.rules,
        )
        self.has_source = model.config.family == "encoder_decoder"
        self.sentinels = list(sentinel_ids(tokenizer, frame).values()) if self.has_source else []
        self.engine = Engine(model, params, self.stop)
        self.beam_search = BeamSearch(self.engine, config.beam) if config.beam else None

    def __call__(
        self, prompts: Sequence[str], stream: Callable[[str], None] | None = None
    ) -> Iterator[Completion]:
        """Yield the completions of each prompt, `config.samples` times, in their order.

        If there is a single text, `stream` receives it piece by piece, as far as it is certain.
        """
        requests = self.build_requests(prompts)
        size = min(self.config.batch_size, len(requests))
        if len(requests) > 1:
            stream = None
        for first in range(0, len(requests), size):
            yield from self.complete_batch(requests[first : first + size], first, size, stream)

    def complete_prompt(
        self, ids: np.ndarray, limit: int, number: int, stream: Callable[[str], None]
    ) -> Completion:
        """Return the completion of a prompt that is encoded: at most `limit` new tokens.

        `number` is that of the prompt, for its random draws. `stream` receives the text piece by
        piece.
        """
        start = self.decoder_start() if self.has_source else ids
        request = GenerationRequest(number, 0, ids, start, limit)
        return next(self.complete_batch([request], number, 1, stream))

    def build_requests(self, prompts: Sequence[str]) -> list[GenerationRequest]:
        """Encode the prompts; raise UserError if one does not fit into the model."""
        model_config, requests = self.model.config, []
        for number, prompt in enumerate(prompts):
            ids = encode_prompt(model_config, self.tokenizer, self.frame, prompt)
            room = 0 if self.has_source else 1
            check_prompt_length(model_config, number + 1, len(ids), room)

            start = self.decoder_start() if self.has_source else ids
            limit, free = self.config.max_new_tokens, free_positions(model_config, len(start))
            if free is not None:
                limit = min(limit, free)
            for sample in range(self.config.samples):
                requests.append(GenerationRequest(number, sample, ids, start, limit))
        return requests

    def decoder_start(self) -> np.ndarray:
        """Return int32 [1], the token that the decoder of an encoder-decoder starts with."""
        start = self.frame.decoder_start_id
        if start is None:
            raise UserError(
                "decoder_start_token_id: the model's config does not name the token that its "
                "decoder starts with"
            )
        return np.array([start], np.int32)

    def complete_batch(
        self,
        requests: Sequence[GenerationRequest],
        first: int,
        size: int,
        stream: Callable[[str], None] | None = None,
    ) -> Iterator[Completion]:
        """Yield the completions of `requests`, which have the numbers `first`, `first` + 1, ...

        A batch is filled up to `size` rows, so that the last one compiles nothing new.
        """
        one_token = np.zeros(1, np.int32)
        missing = GenerationRequest(prompt=0, sample=0, ids=one_token, start=one_token, limit=0)
        rows = [*requests, *[missing] * (size - len(requests))]
        starts, limits = [row.start for row in rows], [row.limit for row in rows]
        sources = [row.ids for row in rows] if self.has_source else None

        texts = []
        for request in requests:
            before = [] if self.has_source else request.start.tolist()
            texts.append(TextStream(self.tokenizer.decode, before, self.config.stop_strings))

        # Neither the best beam nor a source with filled gaps is certain before the end.
        if self.beam_search or np.isin(requests[0].ids, self.sentinels).any():
            stream = None
        if self.beam_search:
            outputs = self.beam_search.generate(starts, limits, sources)
        else:
            watcher = None
            if stream or self.config.stop_strings:
                watcher = StopStringWatcher(texts, self.stop.ids, stream)
            outputs = self.engine.generate(
                starts,
                limits,
                self.config.sampling,
                sources=sources,
                rows=range(first, first + size),
                seed=self.config.seed,
                on_tokens=watcher,
            )

        for request, text, ids in zip(requests, texts, outputs, strict=False):
            rest = text.add(drop_stop_token(ids[text.tokens :], self.stop.ids), last=True)
            if stream is not None and rest:
                stream(rest)
            yield self.build_completion(request, text, ids)

    def build_completion(
        self, request: GenerationRequest, text: TextStream, ids: np.ndarray
    ) -> Completion:
        """Return the completion of a row whose new tokens are `ids`, and say why it ended."""
        if text.stopped:
            ids, finish = ids[: text.tokens], "stop"
        elif len(ids) and ids[-1] in self.stop.ids:
            finish = "end"
        elif request.limit == self.config.max_new_tokens:
            finish = "length"
        else:
            finish = "context"

        filled = self.fill_gaps(request.ids, drop_stop_token(ids, self.stop.ids))
        return Completion(
            prompt=request.prompt,
            sample=request.sample,
            prompt_tokens=len(request.ids),
            ids=ids,
            output=text.text,
            text=text.text if filled is None else filled,
            finish=finish,
        )

    def fill_gaps(self, source: np.ndarray, ids: np.ndarray) -> str | None:
        """Return the source's text with the span that was generated for each sentinel in its place.

        None if the source has no sentinels.
        """
        if not np.isin(source, self.sentinels).any():
            return None
        spans = split_at_sentinels(ids, np.array(self.sentinels))
        body = source[len(self.frame.before) : len(source) - len(self.frame.after)]
        parts = [np.asarray(spans.get(token, [token]), np.int64) for token in body.tolist()]
        return self.tokenizer.show(np.concatenate(parts))


class StopStringWatcher:
    """Follows a batch: ends rows at stop strings, and streams the text of a single row."""

    def __init__(
        self,
        texts: Sequence[TextStream],
        stop_ids: Sequence[int],
        stream: Callable[[str], None] | None,
    ):
        self.texts, self.stop_ids, self.stream = texts, stop_ids, stream

    def __call__(self, tokens_BN: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """Return bool [B]: the rows in which no stop string has come yet."""
        continues_B = np.ones(len(tokens_BN), bool)
        for row, text in enumerate(self.texts):
            ids = tokens_BN[row, text.tokens : lengths_B[row]]
            new = text.add(drop_stop_token(ids, self.stop_ids))
            continues_B[row] = not text.stopped
            if self.stream is not None and new:
                self.stream(new)
        return continues_B


def drop_stop_token(ids: np.ndarray, stop_ids: Sequence[int]) -> np.ndarray:
    """Return the ids without a stop token at their end."""
    return ids[:-1] if len(ids) and ids[-1] in stop_ids else ids
