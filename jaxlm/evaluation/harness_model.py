"""The requests of the lm-evaluation-harness, answered by a decoder; without importing lm_eval."""

import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import models, runtime
from jaxlm.config import RuntimeConfig, UserError
from jaxlm.decoding.generation import DecodingConfig, GenerationRequest, TextGenerator
from jaxlm.decoding.sampling import SamplingConfig
from jaxlm.evaluation.likelihood import LikelihoodScorer, Request, rolling_requests
from jaxlm.load_model import load_model
from jaxlm.progress import Progress
from jaxlm.types import Tree

DTYPES = ("float32", "bfloat16")
MOST_ROWS = 1 << 16  # a larger batch is a mistake
MAX_NEW_TOKENS = 256  # of a task that does not say how many
LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class HarnessModel:
    """A decoder with the methods that lm_eval calls. lm_eval sets `cache_hook`."""

    cache_hook: Any

    def load(
        self,
        path: str,
        batch_size: int | str,
        step: int | None = None,
        compute: str = "float32",
        max_length: int | None = None,
        devices: int = 1,
        ema: bool = False,
    ) -> None:
        """Load the model of a run or a Hugging Face directory.

        Raises UserError for arguments that can't be used, and for models other than decoders.
        """
        if not path:
            raise UserError("--model_args: needs path=RUN or path=HF_DIR")
        self.batch_size = whole_number("--batch_size", batch_size, most=MOST_ROWS)
        devices = whole_number("--model_args: devices", devices)
        if step is not None:
            step = whole_number("--model_args: step", step, least=0)
        if max_length is not None:
            max_length = whole_number("--model_args: max_length", max_length)
        if compute not in DTYPES:
            raise UserError(
                f"--model_args: compute: must be {' or '.join(DTYPES)}, got {compute!r}"
            )

        runtime.configure(RuntimeConfig(devices=devices))
        self.loaded = load_model(
            Path(path), step=step, ema=bool(ema), compute=compute, devices=devices
        )
        self.loaded.require_tokens()
        config = self.loaded.model.config
        if config.family != "decoder":
            raise UserError(
                f"{path}: is an {config.family.replace('_', '-')}, but the harness asks for "
                "continuations: decoders only"
            )

        self.max_length = max_length or config.context_length
        if config.positions == "learned" and self.max_length > config.context_length:
            raise UserError(
                f"--model_args: max_length: {self.max_length} is above the {config.context_length} "
                f"positions of {path}"
            )
        # A tokenizer of Hugging Face may put tokens before a text; a run was trained without.
        self.text_prefix = [] if self.loaded.config else list(self.loaded.special.before)
        self.scorer = LikelihoodScorer(
            self.loaded.model, self.loaded.params, self.max_length, self.batch_size
        )

    @property
    def eot_token_id(self) -> int:
        return self.loaded.tokenizer.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        if self.loaded.config is None and self.loaded.special.bos_id is not None:
            return self.loaded.special.bos_id
        return self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.loaded.path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        ids = self.loaded.tokenizer.encode(string).tolist()
        return ids if add_special_tokens is False else [*self.text_prefix, *ids]

    # Likelihoods

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score the continuation of each (context, continuation)."""
        pairs = [request.args for request in requests]
        return self._loglikelihood_tokens(
            [(pair, *self.encode_pair(*pair)) for pair in pairs], disable_tqdm
        )

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of context and continuation; neither is empty.

        As in the harness, both texts are encoded together, and the spaces at the end of the context
        belong to the continuation. Where a token goes across the join, which the harness does not
        see, the continuation is encoded by itself. UserError for a continuation without tokens, or
        with more than are read at once.
        """
        text = context.rstrip()
        moved = context[len(text) :] + continuation
        alone = self.tok_encode(moved if text else continuation, add_special_tokens=False)

        if not text:
            ids = self.tok_encode(context, add_special_tokens=False) if context else []
            before, after = ids or [self.prefix_token_id], alone
            if not ids and after[:1] == before:  # the text begins with the prefix itself
                after = after[1:]
        else:
            before, together = self.tok_encode(text), self.tok_encode(text + moved)
            start, after = together[: len(before)], together[len(before) :]
            decode = self.loaded.tokenizer.decode
            if not after or (start != before and decode(start) != decode(before)):
                after = alone

        pair = f"the pair ({context[-40:]!r}, {continuation[:40]!r})"
        if not continuation or not after:
            raise UserError(f"{pair}: its continuation has no tokens")
        if len(after) > self.max_length:
            raise UserError(
                f"{pair}: its continuation has {len(after):,} tokens, but only "
                f"{self.max_length:,} are read at once"
            )
        return before, after

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Score each (texts, context ids, continuation ids)."""
        del disable_tqdm
        answers = self.score([Request(context, answer) for _, context, answer in requests])
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts, in windows that overlap only at a text's end.

        Each stands behind one prefix token, or behind what the tokenizer puts before a text; these
        are not scored.
        """
        del disable_tqdm
        texts = [request.args[0] for request in requests]
        prefix = self.text_prefix or [self.prefix_token_id]
        windows = [
            list(
                rolling_requests(
                    self.tok_encode(text, add_special_tokens=False), prefix, self.max_length
                )
            )
            for text in texts
        ]
        scores = iter(
            self.score([window for windows_of_text in windows for window in windows_of_text])
        )

        answers = []
        for text, windows_of_text in zip(texts, windows, strict=True):
            answers.append(sum(next(scores)[0] for _ in windows_of_text))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    def score(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Return (log-probability, whether each token was the likeliest) of each request."""
        total = len(requests)
        progress = Progress(total)
        likelihoods = self.scorer(
            requests, lambda done: progress.update(done, f"log-likelihoods {done:,}/{total:,}")
        )
        progress.close()
        return [(nats, greedy) for nats, greedy in likelihoods]

    # Generation

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context up to a stop string, the end of text or the task's limit."""
        del disable_tqdm
        # Requests with the same options are generated together.
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)

        answers = [""] * len(requests)
        progress, done = Progress(len(requests)), 0
        for options, numbers in groups.items():
            contexts = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
            # By length, so that little of a batch is padding.
            order = sorted(numbers, key=lambda number: -len(contexts[number]))
            config = decoding_config(json.loads(options), self.batch_size)
            texts = self.generate([contexts[number] for number in order], config)
            for number, text in zip(order, texts, strict=True):
                answers[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
                done += 1
                progress.update(done, f"texts {done:,}/{len(requests):,}")
        progress.close()
        return answers

    def generate(self, contexts: Sequence[list[int]], config: DecodingConfig) -> Iterator[str]:
        """Yield the text that follows each context; of one that is too long the end is read."""
        room = self.max_length - config.max_new_tokens
        if room < 1:
            raise UserError(
                f"a task wants {config.max_new_tokens} new tokens, but {self.max_length} are all "
                "that the model reads: say fewer with --gen_kwargs max_gen_toks=N"
            )

        generator = TextGenerator(
            self.loaded.model,
            self.unstacked_params,
            self.loaded.tokenizer,
            self.loaded.special,
            config,
        )
        requests = []
        for number, context in enumerate(contexts):
            ids = np.array(context[-room:] or [self.prefix_token_id], np.int32)
            requests.append(
                GenerationRequest(
                    prompt=number, sample=0, ids=ids, start=ids, limit=config.max_new_tokens
                )
            )
        for first in range(0, len(requests), self.batch_size):
            batch = requests[first : first + self.batch_size]
            for completion in generator.complete_batch(batch, first, self.batch_size):
                yield completion.output

    @cached_property
    def unstacked_params(self) -> Tree:
        """The parameters in the form that is fastest for generation."""
        return models.unstacked(self.loaded.params)


def whole_number(name: str, value: Any, least: int = 1, most: int = 1 << 31) -> int:
    """Return an argument as a number; UserError, with its name, for anything else."""
    text = str(value)
    # No number in bounds has more digits, and Python refuses to convert very many.
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1
    if not least <= number <= most:
        raise UserError(f"{name}: must be a whole number of at least {least}, got {value!r}")
    return number


def decoding_config(options: dict[str, Any], batch_size: int) -> DecodingConfig:
    """Translate the `generation_kwargs` of a task.

    Raises UserError for an option that would be ignored.
    """
    options = dict(options)
    stop_strings = options.pop("until", None) or []
    if isinstance(stop_strings, str):
        stop_strings = [stop_strings]
    if not isinstance(stop_strings, list) or not all(isinstance(s, str) for s in stop_strings):
        raise UserError(f"generation_kwargs: until: must hold strings, got {stop_strings!r}")

    def pop_number(key: str, default: float, least: float, most: float = math.inf) -> float:
        value = options.pop(key, None)
        value = default if value is None else value
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not least <= number <= most or math.isinf(number):
            raise UserError(f"generation_kwargs: {key}: {value!r} is no number that can be used")
        return number

    lengths = [pop_number(key, math.nan, 1) for key in LENGTH_KEYS if options.get(key) is not None]
    temperature = pop_number("temperature", 0.0, 0.0)
    do_sample = options.pop("do_sample", None)
    if do_sample is False:
        temperature = 0.0
    elif do_sample is True and not temperature:
        temperature = 1.0
    sampling = SamplingConfig(
        repetition_penalty=pop_number("repetition_penalty", 1.0, 1e-6),
        temperature=temperature,
        top_k=int(pop_number("top_k", 0, 0)) or None,
        top_p=pop_number("top_p", 1.0, 0.0, 1.0) or 1.0,
        min_p=pop_number("min_p", 0.0, 0.0, 1.0),
    )

    if options.get("num_beams") == 1:
        del options["num_beams"]
    options = {key: value for key, value in options.items() if key not in LENGTH_KEYS}
    if options:
        names = ", ".join(map(repr, options))
        raise UserError(f"generation_kwargs: {names} is not supported with --model jaxlm")
    return DecodingConfig(
        sampling=sampling,
        max_new_tokens=int(lengths[0]) if lengths else MAX_NEW_TOKENS,
        stop_strings=tuple(stop_strings),
        batch_size=batch_size,
    )
