"""The text that a run held out from training, source by source, for models of any tokenizer."""

from pathlib import Path

from jaxlm.checkpoint import read_run_config
from jaxlm.config import UserError
from jaxlm.data.shards import TokenArray
from jaxlm.data.tokenizer import keeps_bytes
from jaxlm.evaluation.score_model import open_run_store
from jaxlm.evaluation.texts import HeldOutSource


def held_out_sources(run: Path, documents: int | None = None) -> list[HeldOutSource]:
    """Return the sources of a run's validation split; `documents` limits each.

    UserError where `run` is none that was trained here, or where its tokens don't say what its text
    was.
    """
    run_config, _ = read_run_config(run)
    store = open_run_store(run, run_config)
    if not store.tokenizer.is_bytes and not keeps_bytes(store.tokenizer.inner):
        raise UserError(
            f"{run}: the tokens of its validation split don't give its text back byte for byte: "
            "say --data NAME=PATH"
        )

    entries = [entry for entry in store.manifest["splits"]["validation"] if entry["tokens"]]
    sources = []
    for entry, tokens in zip(entries, store.validation, strict=True):
        if not isinstance(tokens, TokenArray):
            raise UserError(f"{run}: its validation split is no running text: say --data NAME=PATH")
        sources.append(HeldOutSource(entry["source"], tokens, store.tokenizer, documents))
    return sources
