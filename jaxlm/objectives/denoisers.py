"""Tell an encoder-decoder by a first token of the source which denoiser made it.

UL2 (arXiv 2205.05131, section 3.1.2). Its mixture of denoisers is a mixture of span corruptions,
which `ObjectiveConfig.mixed` lists. An R-denoiser hides short spans, an S-denoiser the end of the
text, an X-denoiser long spans or many.
"""

import numpy as np

from jaxlm.config import ConfigError, ObjectiveConfig
from jaxlm.objectives.objective import BuildObjective, Objective, Vocabulary
from jaxlm.types import Batch


def build_marked(
    config: ObjectiveConfig,
    sequence_length: int,
    vocabulary: Vocabulary,
    build_plain: BuildObjective,
) -> Objective:
    """Build an objective whose source [B, S] begins with the token of `objective.denoiser`.

    The text has room for S - 1 tokens. Raises `ConfigError` at `data.sequence_length` if that is
    none, and as `build_plain` does.
    """
    if sequence_length < 2:
        raise ConfigError(
            "data.sequence_length",
            f"{sequence_length} is too short for the token of a denoiser and text",
        )
    plain = build_plain(config, sequence_length - 1, vocabulary)
    token = {
        "R": vocabulary.denoiser_r,
        "S": vocabulary.denoiser_s,
        "X": vocabulary.denoiser_x,
    }[config.denoiser or "R"]
    assert token is not None

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        batch = plain.make_batch(windows, samples, seed)
        assert batch.source is not None
        lengths = batch.source_lengths
        return batch._replace(
            source=np.pad(batch.source, ((0, 0), (1, 0)), constant_values=token),
            source_lengths=None if lengths is None else (lengths + 1).astype(np.int32),
        )

    # Rows of documents have no place for the token.
    return plain._replace(source_length=plain.source_length + 1, make_batch=make_batch, packed=None)
