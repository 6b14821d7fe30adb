"""Make a run directory of a model and more tokens than its tokenizer has."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxlm import data, interop, runtime
from jaxlm.config import AdapterConfig, Config, SourceConfig, UserError
from jaxlm.conversion.import_model import (
    add_tokens,
    check_is_empty,
    import_model,
    removed_after_error,
    write_first_step,
)
from jaxlm.data.documents import SourceKeys
from jaxlm.data.new_tokens import NewToken, add_new_tokens, read_token_file
from jaxlm.data.sources import read_documents
from jaxlm.data.token_proposals import (
    ProposedToken,
    measure_bytes_per_token,
    propose_tokens,
)
from jaxlm.data.vocabulary import special_tokens
from jaxlm.directories import is_run
from jaxlm.interop.kept_files import copy_kept_files, keep_new_tokens
from jaxlm.interop.tokenizer import TOKENIZER_FILE, load_tokenizer_json
from jaxlm.load_model import load_model

TEXT_KEYS = SourceKeys("--from-text", None)


class ExtendedModel(NamedTuple):
    """A run directory that was made."""

    config: Config
    old_size: int  # of the vocabulary
    ids: dict[str, int]  # of the new tokens
    notes: list[str]  # what the run does otherwise than a Hugging Face directory says
    warnings: list[str]  # what is wrong with the model


class TokenRequest(NamedTuple):
    """The tokens that a user asks for."""

    special: Sequence[str] = ()
    file: Path | None = None  # one on each line
    sources: Sequence[SourceConfig] = ()  # texts whose words are proposed
    count: int = 0  # of the words


class CollectedTokens(NamedTuple):
    """The tokens to add, and what those of a text save there."""

    tokens: list[NewToken]
    proposed: list[ProposedToken]
    bytes_per_token: tuple[float, float] | None  # of the text, without and with the new tokens


def collect_tokens(directory: Path, request: TokenRequest) -> CollectedTokens:
    """Return the tokens of a request for the tokenizer of a model: special ones come first.

    UserError, with file and line or the option, for what can't be added.
    """
    tokens = [NewToken(name, "--special", special=True) for name in request.special]
    if request.file is not None:
        tokens += read_token_file(request.file)
    inner = load_tokenizer_json(directory / TOKENIZER_FILE)
    if not request.sources:
        add_new_tokens(inner, tokens)
        return CollectedTokens(tokens, [], None)

    old_bytes = measure_bytes_per_token(inner, read_sources(request.sources))
    proposed = propose_tokens(inner, read_sources(request.sources), request.count)
    known = {token.content for token in tokens}
    proposed = [token for token in proposed if token.content not in known]
    tokens += [NewToken(token.content, "--from-text") for token in proposed]
    add_new_tokens(inner, tokens)
    new_bytes = measure_bytes_per_token(inner, read_sources(request.sources))
    return CollectedTokens(tokens, proposed, (old_bytes, new_bytes))


def read_sources(sources: Sequence[SourceConfig]) -> Iterator[str]:
    """Yield the texts of all documents."""
    for source in sources:
        yield from (document.texts[0] for document in read_documents(source, TEXT_KEYS))


def extend_model(
    directory: Path,
    out: Path,
    new_tokens: Sequence[NewToken],
    *,
    step: int | None = None,
    ema: bool = False,
) -> ExtendedModel:
    """Make the run directory `out`: the weights of `directory` and rows for the new tokens.

    The rows of a new token are the mean of those of its pieces. A run's newest checkpoint is taken
    unless `step` is given, and with `ema` the average of its weights. UserError where `directory`
    can't be read, where a token can't be added, or where `out` is not empty; then there is no
    `out`.
    """
    if not is_run(directory):
        if step is not None or ema:
            raise UserError(f"{directory}: --step and --ema are for runs")
        old_size = interop.read_config(directory)[1].vocabulary_size
        made = import_model(directory, out, (), new_tokens)
        keep_new_tokens(out, special_names(new_tokens))
        ids = find_ids(out, new_tokens)
        return ExtendedModel(made.config, old_size, ids, made.notes, made.warnings)

    check_is_empty(out)
    loaded = load_model(directory, step=step, ema=ema, rounded=False)
    assert loaded.config is not None
    run_config = replace(
        loaded.config,
        run_directory=str(out),
        base=None,
        adapter=AdapterConfig(),  # they are merged into the weights
        tokenizer=replace(
            loaded.config.tokenizer,
            kind="file",
            path=str(out / TOKENIZER_FILE),
            vocabulary_size=None,
            pre_tokenization=None,
        ),
    )
    needed_tokens = special_tokens(run_config.tokenizer, run_config.objective.needs)
    file = directory / TOKENIZER_FILE
    tokenizer = data.wrap_tokenizer(load_tokenizer_json(file), needed_tokens, file)
    old_size = run_config.model.vocabulary_size
    run_config, tokenizer, params = add_tokens(run_config, tokenizer, loaded.params, new_tokens)

    with runtime.lock_run_directory(out):
        check_is_empty(out)  # again: another process may have been quicker
        with removed_after_error(out):
            copy_kept_files(directory, out)
            keep_new_tokens(out, special_names(new_tokens))
            write_first_step(out, run_config, tokenizer, params)
    return ExtendedModel(run_config, old_size, find_ids(out, new_tokens), [], [])


def special_names(new_tokens: Sequence[NewToken]) -> list[str]:
    """Return the special ones of new tokens."""
    return [token.content for token in new_tokens if token.special]


def find_ids(run: Path, new_tokens: Sequence[NewToken]) -> dict[str, int]:
    """Return the ids of new tokens in a run directory."""
    ids = load_tokenizer_json(run / TOKENIZER_FILE).get_vocab(with_added_tokens=True)
    return {token.content: ids[token.content] for token in new_tokens}
