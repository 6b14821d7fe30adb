"""Preferences: the better one of two answers to a prompt (Rafailov et al., arXiv 2305.18290).

A row has both answers side by side, each after the prompt, in two segments that don't see each
other. So a pair stays on one device. An example has three parts: prompt, chosen and rejected.
"""

from collections.abc import Sequence

import numpy as np

from jaxlm.config import ModelConfig, ObjectiveConfig
from jaxlm.objectives import layout
from jaxlm.objectives.instruction import drop_sizes
from jaxlm.objectives.objective import ExampleLayout, Objective, Vocabulary
from jaxlm.types import Batch


def build(
    config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary, model: ModelConfig
) -> Objective:
    """Build the objective of a decoder, with `sequence_length` tokens for each answer.

    Batches have tokens, segments, positions, targets and weights [B, 2 L]: the chosen answer in
    segment 1, the rejected one in segment 2, and weights at the tokens of the answers. Of a pair
    that is too long the start of the prompt is cut, but for its begin_of_text and one more token,
    and then the ends of the answers; both keep the same prompt. The last two columns of a window
    are the log-probabilities by the reference (`reference.py`), as the bits of float32.
    """
    del model
    length, width = sequence_length, sequence_length + 1

    def measure(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        prompt, chosen, rejected = lengths.T
        tokens = prompt + np.maximum(chosen, rejected)
        is_cut = tokens - 1 > length
        shorter = np.minimum(chosen, rejected)
        has_targets = (shorter > 1) | ((shorter > 0) & (prompt > 0))
        return drop_sizes(config, np.minimum(tokens - 1, length), is_cut, has_targets), is_cut

    def fill(window: np.ndarray, parts: Sequence[np.ndarray]) -> None:
        prompt, *answers = parts
        over = len(prompt) + max(map(len, answers)) - width
        if over > 0 and len(prompt):
            kept = prompt[min(over, len(prompt) - 1) :].copy()
            if len(kept) < len(prompt) and prompt[0] == vocabulary.begin_of_text:
                kept[0] = prompt[0]
            prompt = kept

        window[0] = len(prompt)
        for number, answer in enumerate(answers):
            text = np.concatenate([prompt, answer])[:width]
            window[1 + number] = len(text)
            window[3 + number * width :][: len(text)] = text

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        del samples, seed
        sides = [read_side(windows, number) for number in range(2)]
        fields = (np.concatenate(arrays, axis=1) for arrays in zip(*sides, strict=True))
        tokens, segments, positions, targets, weights = fields
        return Batch(
            tokens=tokens,
            segments=segments,
            positions=positions,
            targets=targets,
            weights=weights.astype(np.float32),
            reference=np.ascontiguousarray(windows[:, -2:]).view(np.float32),
        )

    def read_side(windows: np.ndarray, number: int) -> tuple[np.ndarray, ...]:
        prompts, sizes = windows[:, :1], windows[:, 1 + number : 2 + number] - 1
        text = windows[:, 3 + number * width :][:, :width]
        places = np.arange(length)
        is_text = places < sizes
        padding = layout.padding_token(vocabulary)
        columns = (
            np.where(is_text, text[:, :-1], padding),
            np.where(is_text, number + 1, 0),
            np.where(is_text, places, 0),
            np.where(is_text, text[:, 1:], padding),
            is_text & (places + 1 >= prompts),
        )
        return tuple(column.astype(np.int32) for column in columns)

    def parts_of(text: np.ndarray) -> list[np.ndarray]:
        return [text[:1], text, text]

    return Objective(
        window=3 + 2 * width + 2,
        stride=1,
        length=2 * length,
        source_length=0,
        predictions=2 * length,
        make_batch=make_batch,
        random=False,
        examples=ExampleLayout(measure, fill, parts_of),
    )
