"""python -m jaxlm.harness run --model_args path=RUN|HF_DIR --tasks TASK: lm-evaluation-harness with models of jaxlm.

The harness (the package lm_eval) finds models in a registry that only code can add to: this command adds "jaxlm" and goes on as
`lm_eval` would. Neither lm_eval nor jax is imported before that.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlm import config, runtime
from jaxlm.config import UserError
from jaxlm.evaluation.progress import Progress

if TYPE_CHECKING:
    from jaxlm.decoding.generation import DecodingConfig

NAME = "jaxlm"
ARGUMENTS = ("step", "compute", "max_length", "devices")  # of a model, beside its path
NEW_TOKENS = 256  # that a task gets unless it says how many

HELP = """usage: python -m jaxlm.harness run --model_args path=RUN|HF_DIR[,KEY=VALUE...] --tasks TASK [arguments of lm_eval run]

Run tasks of the lm-evaluation-harness (lm_eval) with a decoder of jaxlm; --model is jaxlm unless it is given.

of --model_args:
  path=DIR              the run_directory of a training, or a Hugging Face folder
  step=N                of a run: the checkpoint (the newest)
  compute=DTYPE         float32 or bfloat16 (float32)
  max_length=N          tokens that are read at once (the model's context_length)
  devices=N             that the model is split over (1)

examples:
  python -m jaxlm.harness run --model_args path=runs/quickstart --tasks my_task --include_path tasks/ --batch_size 8
  python -m jaxlm.harness run --model_args path=gpt2/ --tasks lambada_openai --output_path results/
  python -m jaxlm.harness ls tasks

In Python: jaxlm.harness.register(), then lm_eval.simple_evaluate(model="jaxlm", model_args="path=runs/quickstart", tasks=[...]).
Tasks on disk need no network; most others download their data. It needs lm_eval: pip install "jaxlm[eval]"."""


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    register()
    from lm_eval.__main__ import cli_evaluate  # type: ignore[import-not-found]

    arguments = list(argv)
    if arguments[0].startswith("-"):  # as lm_eval does
        arguments.insert(0, "run")
    if arguments[0] == "run" and not any(
        argument.partition("=")[0] in ("--model", "-M") for argument in arguments
    ):
        arguments[1:1] = ["--model", NAME]
    before, sys.argv = sys.argv, ["lm_eval", *arguments]
    try:
        cli_evaluate()
    except ValueError as error:
        if str(error).startswith(("Tasks not found", "No tasks specified")):
            raise UserError(f"--tasks: {error}") from error
        raise
    finally:
        sys.argv = before
    return 0


def register() -> None:
    """Makes "jaxlm" a model of lm_eval in this process. UserError where lm_eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('lm_eval is not installed: pip install "jaxlm[eval]"')
    from lm_eval.api.registry import model_registry  # type: ignore[import-not-found]

    if NAME not in model_registry:
        model_registry.register(NAME, target=model_class())


def __getattr__(name: str) -> Any:
    """`JaxLM`, made when it is asked for: its base class is lm_eval's."""
    if name == "JaxLM":
        return model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def model_class() -> type:
    """The class that lm_eval makes its model of."""
    from lm_eval.api.model import TemplateLM  # type: ignore[import-not-found]

    class JaxLM(Answers, TemplateLM):
        """A decoder of jaxlm. How contexts and continuations are cut into tokens is inherited, and so that of lm_eval's own models."""

        def __init__(self, path: str = "", batch_size: int | str = 1, **arguments: Any):
            TemplateLM.__init__(self)
            arguments = {
                key: value
                for key, value in arguments.items()
                if key not in ("max_batch_size", "device")
            }
            if unknown := [key for key in arguments if key not in ARGUMENTS]:
                raise UserError(
                    f"--model_args: {unknown[0]!r} is not known; known: path, {', '.join(ARGUMENTS)}"
                )
            self.load(path, batch_size, **arguments)

    return JaxLM


class Answers:
    """What lm_eval asks of a model, without lm_eval."""

    cache_hook: Any

    def load(
        self,
        path: str,
        batch_size: int | str,
        step: int | None = None,
        compute: str = "float32",
        max_length: int | None = None,
        devices: int = 1,
    ):
        """UserError for what can't be evaluated."""
        if not path:
            raise UserError("--model_args: needs path=RUN or path=HF_DIR")
        whole = str(batch_size).isdigit() and int(batch_size)
        if not whole:
            raise UserError(
                f"--batch_size: must be a whole number of at least 1, got {batch_size!r}"
            )
        runtime.configure(config.RuntimeConfig(devices=int(devices)))
        from jaxlm import load_model
        from jaxlm.evaluation.likelihood import LikelihoodScorer

        model = load_model.load_model(
            Path(path),
            step=None if step is None else int(step),
            compute=compute,
            devices=int(devices),
        )
        if model.model.config.family != "decoder":
            raise UserError(
                f"{path}: is an {model.model.config.family.replace('_', '-')}, but the harness asks for continuations: decoders only"
            )
        self.trained, self.batch_size = model, whole
        self.max_length = int(max_length or model.model.config.context_length)
        # What the tokenizer of a Hugging Face model puts before a text; a run was trained without.
        self.before = list(model.special.before) if model.config is None else []
        self.scorer = LikelihoodScorer(model.model, model.params, self.max_length, whole)

    @property
    def eot_token_id(self) -> int:
        return self.trained.tokenizer.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before."""
        if self.trained.config is None and self.trained.special.bos_id is not None:
            return self.trained.special.bos_id
        return self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.trained.path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        ids = self.trained.tokenizer.encode(string).tolist()
        return ids if add_special_tokens is False else [*self.before, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """For each (texts, context ids, continuation ids)."""
        from jaxlm.evaluation.likelihood import Request

        found = self.score(
            [Request(context, continuation) for _, context, continuation in requests]
        )
        for (texts, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of whole texts, in windows that overlap only at a text's end."""
        from jaxlm.evaluation.likelihood import rolling_requests

        texts = [request.args[0] for request in requests]
        windows = [
            list(rolling_requests(self.tok_encode(text), self.prefix_token_id, self.max_length))
            for text in texts
        ]
        found = iter(self.score([window for of in windows for window in of]))
        answers = [sum(next(found)[0] for _ in of) for of in windows]
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return answers

    def score(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability, whether each token was the likeliest) of requests."""
        progress = Progress("log-likelihoods", len(requests))
        found = self.scorer(requests, progress)
        progress.close()
        return [(nats, greedy) for nats, greedy in found]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a stop string, the end of text or the task's number of tokens."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        progress, done = Progress("texts", len(requests)), 0
        answers = [""] * len(requests)
        for asked, numbers in groups.items():
            contexts = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
            # By length, so that a batch is padded little.
            order = sorted(numbers, key=lambda number: -len(contexts[number]))
            for number, text in zip(
                order,
                self.written([contexts[number] for number in order], json.loads(asked)),
                strict=True,
            ):
                answers[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
                done += 1
                progress(done)
        progress.close()
        return answers

    def written(self, contexts: Sequence[list[int]], asked: dict[str, Any]) -> Iterator[str]:
        """The texts that follow token ids; of a context that is too long the last tokens are read."""
        from jaxlm.decoding.generation import GenerationRequest, TextGenerator

        settings = generation_settings(asked, self.batch_size)
        left = self.max_length - settings.max_new_tokens
        if left < 1:
            reason = f"a task wants {settings.max_new_tokens} new tokens, but {self.max_length} are all that the model reads"
            raise UserError(f"{reason}: say fewer with --gen_kwargs max_gen_toks=N")
        load_model = self.trained
        generator = TextGenerator(
            load_model.model, self.unstacked, load_model.tokenizer, load_model.special, settings
        )
        first = [self.prefix_token_id]
        ids = [np.array(context[-left:] or first, np.int32) for context in contexts]
        rows = [
            GenerationRequest(number, 0, row, row, settings.max_new_tokens)
            for number, row in enumerate(ids)
        ]
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            yield from (
                found.output for found in generator.complete_batch(part, start, self.batch_size)
            )

    @cached_property
    def unstacked(self) -> Any:
        """The parameters as generation wants them."""
        from jaxlm import models

        return models.unstacked(self.trained.params)


def generation_settings(asked: dict[str, Any], batch_size: int) -> "DecodingConfig":
    """The `generation_kwargs` of a task. UserError for one that would be left out in silence."""
    from jaxlm.decoding.generation import DecodingConfig
    from jaxlm.decoding.sampling import SamplingConfig

    asked = dict(asked)
    until = asked.pop("until", None) or []
    lengths = [
        asked.pop(name, None)
        for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    ]
    new_tokens = next((int(length) for length in lengths if length is not None), NEW_TOKENS)
    temperature = float(asked.pop("temperature", None) or 0.0)
    samples = asked.pop("do_sample", None)
    choice = SamplingConfig(
        repetition_penalty=float(asked.pop("repetition_penalty", None) or 1.0),
        temperature=0.0 if samples is False else temperature or float(samples is True),
        top_k=int(asked.pop("top_k", None) or 0) or None,
        top_p=float(asked.pop("top_p", None) or 1.0),
        min_p=float(asked.pop("min_p", None) or 0.0),
    )
    if asked.get("num_beams") == 1:
        del asked["num_beams"]
    if asked:
        raise UserError(
            f"generation_kwargs: {', '.join(map(repr, asked))} is not supported with --model {NAME}"
        )
    return DecodingConfig(
        sampling=choice,
        max_new_tokens=new_tokens,
        stop_strings=tuple([until] if isinstance(until, str) else until),
        batch_size=batch_size,
    )


if __name__ == "__main__":
    runtime.run(main)
