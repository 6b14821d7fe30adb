"""Run prompts through a loaded model, print the results and return them as JSON data.

The work of `python -m jaxlm.generate`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import config
from jaxlm.config import UserError
from jaxlm.decoding.beam import BeamConfig
from jaxlm.decoding.embed import Embedder
from jaxlm.decoding.fill_mask import MaskCandidates, MaskFiller
from jaxlm.decoding.generation import Completion, DecodingConfig, TextGenerator
from jaxlm.decoding.prompts import check_prompt_length, encode_prompt, find_token_ids
from jaxlm.decoding.sampling import SamplingConfig
from jaxlm.files import output_writer, write_output
from jaxlm.load_model import LoadedModel
from jaxlm.models import unstacked

SAMPLING_OPTIONS = ("top_k", "top_p", "min_p")
EARLY_STOPPING = {"false": False, "true": True, "never": "never"}


# --- decoders and encoder-decoders ---


def decoding_config(args: argparse.Namespace) -> DecodingConfig:
    """Return the config that the options of `jaxlm.generate` describe."""
    repetition_penalty = args.repetition_penalty or 1.0
    temperature = args.temperature
    if temperature is None:
        is_sampled = any(getattr(args, name) for name in SAMPLING_OPTIONS)
        temperature = 1.0 if is_sampled or (args.samples or 1) > 1 else 0.0
    sampling = SamplingConfig(
        repetition_penalty=repetition_penalty,
        temperature=temperature,
        top_k=args.top_k or None,
        top_p=1.0 if args.top_p is None else args.top_p,
        min_p=args.min_p or 0.0,
    )

    beam = None
    if args.beams is not None:
        beam = BeamConfig(
            beams=args.beams,
            length_penalty=1.0 if args.length_penalty is None else args.length_penalty,
            early_stopping=EARLY_STOPPING[args.early_stopping or "false"],
            repetition_penalty=repetition_penalty,
        )
    return DecodingConfig(
        sampling=sampling,
        beam=beam,
        max_new_tokens=args.max_new_tokens or 128,
        min_new_tokens=args.min_new_tokens or 0,
        stop_strings=tuple(args.stop or ()),
        samples=args.samples or 1,
        batch_size=args.batch_size,
        seed=args.seed or 0,
    )


def print_completions(
    loaded: LoadedModel, prompts: Sequence[str], config: DecodingConfig, stream: bool
) -> list[dict]:
    """Print each text after its prompt; with `stream` a single text appears as it is generated.

    The parameters are used up.
    """
    model_config = loaded.model.config
    params = unstacked(loaded.params, free=True)
    generator = TextGenerator(loaded.model, params, loaded.tokenizer, loaded.special, config)
    is_single = len(prompts) * config.samples == 1
    shown_prompts = list(prompts) if model_config.family == "decoder" else [""] * len(prompts)
    printer = CompletionPrinter(shown_prompts, numbered=not is_single, samples=config.samples)

    results = []
    for completion in generator(prompts, printer.stream if stream and is_single else None):
        printer.print_completion(completion)
        warn_of_length(model_config, completion)
        results.append(
            {
                "prompt": prompts[completion.prompt],
                "sample": completion.sample,
                "text": completion.text,
                "output": completion.output,
                "tokens": completion.ids.tolist(),
                "prompt_tokens": completion.prompt_tokens,
                "finish": completion.finish,
            }
        )
    return results


class CompletionPrinter:
    """Prints texts, each after the part of its prompt that is shown."""

    def __init__(self, prompts: Sequence[str], *, numbered: bool, samples: int):
        self.prompts, self.numbered, self.samples = prompts, numbered, samples
        self.streamed = False

    def stream(self, new: str) -> None:
        """Print more of the only text."""
        print(new if self.streamed else self.prompts[0] + new, end="", flush=True)
        self.streamed = True

    def print_completion(self, completion: Completion) -> None:
        """Print a whole text, or end the line of a streamed one."""
        if self.streamed:
            print(flush=True)
            return
        if self.numbered:
            sample = f", sample {completion.sample + 1}" if self.samples > 1 else ""
            print(f"--- prompt {completion.prompt + 1}{sample} ---")
        print(f"{self.prompts[completion.prompt]}{completion.text}", flush=True)


def warn_of_length(model_config: config.ModelConfig, completion: Completion) -> None:
    """Say on stderr where positions ended, or that a text exceeds the trained length."""
    place = f"prompt {completion.prompt + 1}"
    tokens = completion.prompt_tokens + len(completion.ids)
    limit = model_config.context_length
    extends = model_config.family == "decoder" and model_config.positions in (
        "rotary",
        "sinusoidal",
    )
    if completion.finish == "context":
        reason = f"the text ends at the model's last position (model.context_length={limit})"
        print(f"{place}: {reason}", file=sys.stderr)
    elif extends and tokens > limit:
        reason = f"{tokens} tokens; the model was built for {limit} (model.context_length)"
        print(f"{place}: {reason}", file=sys.stderr)


# --- encoders ---


def print_filled_masks(
    loaded: LoadedModel, prompts: Sequence[str], *, top: int, batch_size: int
) -> list[dict]:
    """Print each text with its likeliest filling, and the candidates for each mask."""
    masks = find_token_ids(loaded.tokenizer, [loaded.special.mask])
    if not masks:
        raise UserError(f"{loaded.path}: its tokenizer has no mask token; --embed gives vectors")
    ((mask_name, mask_id),) = masks.items()
    for number, prompt in enumerate(prompts, 1):
        if mask_name not in prompt:
            raise UserError(
                f"prompt {number}: has no {mask_name}, the mask to be filled; --embed gives vectors"
            )

    results = []
    size = min(batch_size, len(prompts))
    filler = MaskFiller(loaded.mask_filler(), loaded.params, top=top, batch_size=size)
    for batch_prompts, rows in encoded_batches(loaded, prompts, size):
        positions = [np.flatnonzero(row == mask_id) for row in rows]
        candidates = filler(rows, positions)
        for prompt, row, row_candidates in zip(batch_prompts, rows, candidates, strict=True):
            result = {"prompt": prompt, **describe_candidates(loaded, row, row_candidates)}
            results.append(result)
            print_candidates(mask_name, result)
    return results


def describe_candidates(
    loaded: LoadedModel, row: np.ndarray, candidates: Sequence[MaskCandidates]
) -> dict[str, Any]:
    """Return a text with its likeliest filling, and the candidates for each mask, as JSON data."""
    filled, masks = row.copy(), []
    for mask in candidates:
        filled[mask.position] = mask.ids[0]
        masks.append(
            [
                {
                    "token": int(token),
                    "text": loaded.tokenizer.show([token]),
                    "probability": float(probability),
                }
                for token, probability in zip(mask.ids, mask.probabilities, strict=True)
            ]
        )
    return {"text": loaded.tokenizer.decode(filled), "masks": masks}


def print_candidates(mask_name: str, result: dict[str, Any]) -> None:
    """Print a filled text, and a line of candidates for each mask."""
    print(result["text"])
    for number, candidates in enumerate(result["masks"], 1):
        shown = [
            f"{json.dumps(candidate['text'], ensure_ascii=False)} {candidate['probability']:.4f}"
            for candidate in candidates
        ]
        print(f"  {mask_name} {number}: {', '.join(shown)}", flush=True)


def print_embeddings(
    loaded: LoadedModel, prompts: Sequence[str], *, pool: str, batch_size: int, out: str | None
) -> list[dict]:
    """Write a vector for each text to stdout, or to the file `out` (.npy, else JSON lines)."""
    family = loaded.model.config.family
    if family == "encoder_decoder":
        raise UserError("--embed takes an encoder or a decoder")
    if family == "decoder" and pool == "first":
        raise UserError(
            "--pool first: a decoder's first token sees nothing of the text; mean or last"
        )

    size = min(batch_size, len(prompts))
    embedder = Embedder(loaded.model, loaded.params, pool=pool, batch_size=size)
    batches = [embedder(rows) for _, rows in encoded_batches(loaded, prompts, size)]
    vectors = np.concatenate(batches)

    results = [
        {"text": prompt, "vector": vector.tolist()}
        for prompt, vector in zip(prompts, vectors, strict=True)
    ]
    lines = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    try:
        if out is None:
            print(lines, end="", flush=True)
        elif out.endswith(".npy"):
            with output_writer(Path(out)) as file:
                np.save(file, vectors)
        else:
            write_output(Path(out), lines)
    except OSError as error:
        raise UserError(f"--out: {out}: {error.strerror}") from error
    return results


def encoded_batches(
    loaded: LoadedModel, prompts: Sequence[str], size: int
) -> Iterator[tuple[Sequence[str], list[np.ndarray]]]:
    """Yield up to `size` prompts with their token ids, for a model that reads whole texts."""
    model_config, rows = loaded.model.config, []
    for number, prompt in enumerate(prompts, 1):
        rows.append(encode_prompt(model_config, loaded.tokenizer, loaded.special, prompt))
        check_prompt_length(model_config, number, len(rows[-1]))
    for start in range(0, len(rows), size):
        yield prompts[start : start + size], rows[start : start + size]
