"""Write the model of a run as a directory that `transformers` loads."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm import card, checkpoint, interop
from jaxlm.config import NoCheckpointError, UserError
from jaxlm.conversion.import_model import check_is_empty, nonfinite_warnings
from jaxlm.directories import is_run
from jaxlm.interop.archive import write_archive
from jaxlm.interop.generation_config import (
    CLASS_TOKEN_IDS,
    GENERATION_CONFIG_FILE,
    write_generation_config,
)
from jaxlm.interop.kept_files import (
    CHAT_TEMPLATE_FILE,
    read_kept,
    read_kept_generation,
    read_template,
)
from jaxlm.interop.mapping import Architecture
from jaxlm.interop.token_names import TOKENIZER_CONFIG_FILE
from jaxlm.interop.tokenizer import (
    TOKENIZER_FILE,
    TokenizerFrame,
    load_tokenizer_json,
    run_tokenizer_frame,
)
from jaxlm.interop.write_tokenizer import write_tokenizer
from jaxlm.load_model import find_best_step, load_model


class ExportedModel(NamedTuple):
    """A model that was written."""

    model_type: str
    step: int | None
    parameter_count: int
    warnings: list[str]  # what is wrong with the model


def export_run(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    best: bool = False,
    ema: bool = False,
    dtype: str = "float32",
    max_shard_bytes: int = interop.DEFAULT_SHARD_BYTES,
    archive: bool = False,
    packing: interop.Packing | None = None,
) -> ExportedModel:
    """Write config.json, weights, tokenizer, generation_config.json and the card into `out`.

    The newest checkpoint is taken unless `step` is given or `best` asks for the run's best one;
    with `ema` the average of its weights. `archive` adds model.tar.gz, and `packing` rounds the
    matrices of the blocks. UserError where `transformers` has no such model or `out` is not empty,
    NoCheckpointError where the run has no such checkpoint; then there is no `out`.
    """
    run_config, _ = checkpoint.read_run_config(run)
    if not is_run(run):
        raise NoCheckpointError(f"{run}: there is no checkpoint")
    check_is_empty(out)
    model_config = run_config.model

    # Find out what can't be written before the parameters are read.
    architecture, values = interop.match_architecture(model_config)
    frame = run_tokenizer_frame(
        run_config.tokenizer,
        run_config.objective,
        load_tokenizer_json(run / TOKENIZER_FILE),
        read_kept_generation(run),
        run_config.model.family,
    )
    kept_generation = read_kept(run / GENERATION_CONFIG_FILE)
    kept_tokenizer = read_kept(run / TOKENIZER_CONFIG_FILE)
    template_file = run / CHAT_TEMPLATE_FILE
    chat_template = read_template(template_file) if template_file.exists() else None
    tokens = token_ids(frame, architecture, kept_generation)
    interop.add_token_ids(architecture, model_config, values, tokens)

    step = find_best_step(run) if best else step
    loaded = load_model(run, step=step, ema=ema)
    parameter_count = loaded.model.parameter_count()
    with new_directory(out) as folder:
        interop.save(
            folder,
            model_config,
            loaded.params,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            tokens=tokens,
            packing=packing,
        )
        for path in (folder, *(folder / name for name in architecture.subfolders)):
            write_tokenizer(
                path,
                (run / TOKENIZER_FILE).read_text(encoding="utf-8-sig"),
                frame,
                model_config.context_length,
                token_types=model_config.token_types > 1,
                words=model_config.classifier.kind == "token",
                kept=kept_tokenizer,
                chat_template=chat_template,
            )
        if model_config.family != "encoder":
            write_generation_config(
                folder,
                tokens | kept_token_ids(frame, kept_generation),
                model_config.context_length,
                kept_generation,
            )
        facts = card.gather_facts(
            run, run_config, parameter_count, loaded.step, exported=architecture.model_type
        )
        card.write_card(folder, facts)
        if archive:
            write_archive(folder)
        names = interop.nonfinite_tensors(folder, loaded.params)
    warnings = nonfinite_warnings(out, names)
    return ExportedModel(architecture.model_type, loaded.step, parameter_count, warnings)


def token_ids(
    frame: TokenizerFrame, architecture: Architecture, kept: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the ids for config.json and generation_config.json; None where there is no token.

    `kept` is the generation_config.json that the run was imported with.
    """
    eos_id = frame.eos_ids[0]
    ids = {"bos_token_id": frame.bos_id, "eos_token_id": eos_id, "pad_token_id": frame.pad_id}
    if architecture.family == "encoder" and frame.begin_of_text is not None:
        ids |= {"cls_token_id": frame.bos_id, "sep_token_id": eos_id}
    if architecture.family == "encoder_decoder":
        ids["decoder_start_token_id"] = frame.decoder_start_id
    # The class has an id of its own, which is another token here.
    if "forced_eos_token_id" in CLASS_TOKEN_IDS.get(architecture.model_type, {}):
        ids["forced_eos_token_id"] = eos_id if kept is None else frame.forced_eos_id
    return ids


def kept_token_ids(frame: TokenizerFrame, kept: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the ids for generation_config.json that only an imported model has."""
    if kept is None:
        return {}

    ends = kept.get("eos_token_id")
    ends = ends if isinstance(ends, list) else []
    ends = [*(end for end in frame.eos_ids if end not in ends), *ends]
    return {
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "forced_bos_token_id": frame.forced_bos_id,
        "forced_eos_token_id": frame.forced_eos_id,
    }


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a folder next to `out` that is renamed to `out` at the end of the block.

    After an error nothing of it is left. UserError where it can't be written.
    """
    folder = out.absolute().parent / f".{out.absolute().name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.replace(out)
    except OSError as error:
        raise UserError(f"{out}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
