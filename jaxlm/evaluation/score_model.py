"""Score a loaded model on texts, by family, or a run on its validation split."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxlm import data, objectives, sharding, step
from jaxlm.checkpoint import read_run_config
from jaxlm.config import (
    Config,
    ConfigError,
    ObjectiveConfig,
    TrainingConfig,
    UserError,
)
from jaxlm.data import Store, identify_store
from jaxlm.data.store import count_records
from jaxlm.decoding.engine import check_finite
from jaxlm.evaluation import scoring
from jaxlm.evaluation.own_objective import choose_objective, read_documents, read_samples
from jaxlm.evaluation.pseudo_likelihood import HiddenTokens, frame_texts
from jaxlm.evaluation.report import ScoreSums, SourceScores
from jaxlm.evaluation.texts import (
    TextSource,
    TokenizedExamples,
    TokenizedPairs,
    TokenizedTexts,
    read_texts,
)
from jaxlm.evaluation.validation import (
    EvaluationWindows,
    count_bytes,
    evaluation_batch_size,
    most_samples,
)
from jaxlm.evaluation.windows import SlidingWindows, tokens_of_windows
from jaxlm.load_model import LoadedModel
from jaxlm.progress import Progress
from jaxlm.types import Batch, Batches


class EvaluationOptions(NamedTuple):
    """How the texts of `--data` are cut into windows; None: by the model's context length."""

    sources: tuple[TextSource, ...]
    context: int | None
    stride: int | None
    batch_size: int
    limit: int | None
    seed: int
    draws: int
    per_document: bool
    pseudo_windows: int  # of each source; 0: no pseudo-perplexity


class Scores(NamedTuple):
    """The scores of each source, the kind of objective, and how they were made."""

    objective: str
    sources: list[SourceScores]
    details: dict[str, Any]


class ModelScorer:
    """A model on its devices, scored over batches with a progress bar."""

    def __init__(self, loaded: LoadedModel):
        mesh = jax.tree.leaves(loaded.params)[0].sharding.mesh
        self.devices = list(mesh.devices.flat)
        self.placement = sharding.Placement(mesh, loaded.model.axes, zero=0)
        self.params = loaded.params
        self.step = step.eval_step(loaded.model, TrainingConfig(), self.placement, loaded.params)

    def __call__(self, windows: Batches, name: str, batches: int | None = None) -> ScoreSums:
        """Return the sums over the first `batches` of `windows`, or all.

        Raises DivergedError where the model's scores are not finite.
        """
        progress = Progress(min(len(windows), batches or len(windows)))
        score = scoring.evaluate(
            self.step,
            self.params,
            BatchesWithProgress(windows, progress, name),
            batches,
            self.placement.put,
            # On CPUs steps that pile up would compete for the cores, as in training.
            in_flight=0 if self.devices[0].platform == "cpu" else 1,
        )
        progress.close()
        check_finite(math.isfinite(score.loss))
        nats, correct = score.loss * score.targets, score.accuracy * score.targets
        return ScoreSums(score.targets, nats, correct, *(score.detection or ()))


class BatchesWithProgress:
    """Batches that show how many have been read."""

    def __init__(self, batches: Batches, progress: Progress, name: str):
        self.batches, self.progress, self.name = batches, progress, name

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        total = self.progress.total
        self.progress.update(index, f"{self.name} {index:,}/{total:,} {index / total:.0%}")
        return self.batches[index]


# A run on its validation split


def score_validation_split(loaded: LoadedModel, scorer: ModelScorer) -> Scores:
    """Score a run on the windows of its training's evaluation."""
    config = loaded.config
    if config is None:
        raise UserError(
            f"{loaded.path}: is no run, so it has no validation split of its own: say --data PATH"
        )
    if config.objective.kind == "preference":
        figures = "metrics.jsonl has eval/loss and eval/reward_accuracy of the pairs held out"
        raise UserError(
            f"{loaded.path}: was tuned by preferences, whose loss is relative to its base: "
            f"{figures}; --data TEXT scores running text"
        )

    store = open_run_store(loaded.path, config)
    objective = objectives.build(
        config.objective, config.data.sequence_length, store.tokenizer.vocabulary, config.model
    )
    batch_size, most = evaluation_batch_size(config), most_samples(config, objective)
    windows = EvaluationWindows(
        store.validation, objective, batch_size, config.evaluation.draws, config.seed, most
    )
    is_causal = config.objective.kind == "causal"

    entries = store.manifest["splits"]["validation"]
    scores = SourceScores(
        name="validation",
        documents=sum(count_records(entry) for entry in entries),
        tokens=store.manifest["validation"]["tokens"],
        bytes=count_bytes(store, windows) if is_causal else store.validation_bytes,
        words=None,
        sums=scorer(windows, "validation"),
    )
    details = {
        "context": objective.length,
        "batch_size": batch_size,
        "draws": config.evaluation.draws,
        "seed": config.seed,
    }
    return Scores(config.objective.kind, [scores], details)


def open_run_store(directory: Path, config: Config) -> Store:
    """Open the token store that a run was trained on, or build it again from the same text."""
    _, trained_on = read_run_config(directory)
    if trained_on is None:  # as an import leaves it
        raise UserError(
            f"{directory}: has no validation split yet, since it was not trained here: "
            "say --data PATH"
        )
    folder = Path(config.data.store).expanduser() / trained_on
    if folder.is_dir():
        return data.open_store(folder)

    inputs = (config.data, config.tokenizer, config.tokenizer_vocabulary_size)
    needs, examples = config.objective.needs, data.example_spec(config)
    present = identify_store(*inputs, needs, examples=examples).folder.name
    if present != trained_on:
        raise UserError(
            f"{directory}: its text is not what it was trained on (prepared data: "
            f"{trained_on} -> {present}); say --data PATH"
        )
    return data.prepare(*inputs, print, needs=needs, examples=examples)


# Any model on any text


def check_options(loaded: LoadedModel, options: EvaluationOptions, pseudo_given: bool) -> None:
    """Raise UserError for options that make no sense for the model."""
    config = loaded.model.config
    family = config.family
    for name, given, families in (
        ("--stride", options.stride is not None, ["decoder"]),
        ("--per-document", options.per_document, ["decoder", "encoder"]),
        ("--pseudo-windows", pseudo_given, ["encoder"]),
    ):
        if given and family not in families:
            allowed = " and ".join(f"{name}s" for name in families)
            raise UserError(f"{name}: is for {allowed}; {loaded.path}: {family.replace('_', '-')}")

    context = options.context or config.context_length
    if config.positions == "learned" and context > config.context_length:
        raise UserError(
            f"--context {context}: {loaded.path} has positions for {config.context_length} tokens"
        )
    if options.stride is not None and options.stride > context:
        raise UserError(
            f"--stride {options.stride}: would leave out tokens between windows of {context} "
            "(--context)"
        )


def score_sources(loaded: LoadedModel, options: EvaluationOptions, scorer: ModelScorer) -> Scores:
    """Score each source of the options in the way of the model's family."""
    family = loaded.model.config.family
    context = options.context or loaded.model.config.context_length
    options = options._replace(context=context, stride=options.stride or context)
    details: dict[str, Any] = {
        "context": context,
        "batch_size": options.batch_size,
        "limit": options.limit,
    }

    if family == "decoder":
        scores = [score_decoder(loaded, options, scorer, source) for source in options.sources]
        details |= {"stride": options.stride, "per_document": options.per_document}
        return Scores("causal", scores, details)

    objective = choose_objective(loaded)
    print(f"objective {objective.kind}, windows of {context} tokens", flush=True)
    score = score_encoder if family == "encoder" else score_objective
    scores = [score(loaded, options, scorer, source, objective) for source in options.sources]
    details |= {
        "draws": options.draws,
        "seed": options.seed,
        "per_document": options.per_document,
    }
    return Scores(objective.kind, scores, details)


def score_decoder(
    loaded: LoadedModel, options: EvaluationOptions, scorer: ModelScorer, source: TextSource
) -> SourceScores:
    """Score a decoder over sliding windows."""
    context, stride, limit = options.context, options.stride, options.limit
    assert context is not None and stride is not None
    # Training here puts nothing before a text; a tokenizer of Hugging Face may.
    begin = list(loaded.special.before) if loaded.config is None else []
    end = [loaded.tokenizer.end_of_text]

    documents = read_documents(source)
    if options.per_document:
        texts = read_texts(documents, loaded.tokenizer, begin=begin or end, most_documents=limit)
    else:
        most = tokens_of_windows(limit, context, stride) if limit else None
        texts = read_texts(documents, loaded.tokenizer, begin=begin, end=end, most_tokens=most)

    windows = SlidingWindows(texts, context, stride, options.batch_size, options.per_document)
    if not len(windows):
        raise UserError(
            f"--data {source.name}: {len(texts)} tokens are too few: nothing can be predicted"
        )
    return source_scores(source, texts, scorer(windows, source.name))


def score_encoder(
    loaded: LoadedModel,
    options: EvaluationOptions,
    scorer: ModelScorer,
    source: TextSource,
    objective: ObjectiveConfig,
) -> SourceScores:
    """Score an encoder with some tokens hidden at random, and with each hidden alone."""
    scores = score_objective(loaded, options, scorer, source, objective)
    if not options.pseudo_windows:
        return scores
    return scores._replace(pseudo=score_hidden_tokens(loaded, options, scorer, source))


def score_hidden_tokens(
    loaded: LoadedModel, options: EvaluationOptions, scorer: ModelScorer, source: TextSource
) -> ScoreSums:
    """Score an encoder with each token of the first windows (or documents) hidden in turn."""
    vocabulary, context = loaded.tokenizer.vocabulary, options.context
    assert context is not None and vocabulary.mask is not None

    documents, windows = read_documents(source), options.pseudo_windows
    if options.per_document:
        texts = read_texts(documents, loaded.tokenizer, most_documents=windows)
    else:
        most = windows * (context - 2 * (vocabulary.begin_of_text is not None))
        end = [vocabulary.end_of_text]
        texts = read_texts(documents, loaded.tokenizer, end=end, most_tokens=most)

    framed = frame_texts(texts, context, vocabulary, options.per_document)
    print(
        f"{source.name}: {len(framed.hidden):,} forward passes of {context} tokens for the "
        f"pseudo-perplexity of {len(framed.rows):,} windows",
        flush=True,
    )
    batches = HiddenTokens(framed, vocabulary.mask, options.batch_size)
    return scorer(batches, f"{source.name}: pseudo-perplexity")


def score_objective(
    loaded: LoadedModel,
    options: EvaluationOptions,
    scorer: ModelScorer,
    source: TextSource,
    objective_config: ObjectiveConfig,
) -> SourceScores:
    """Score what an objective hides from the model, in whole windows, or the targets of pairs."""
    try:
        objective = objectives.build(
            objective_config,
            options.context or 0,
            loaded.tokenizer.vocabulary,
            loaded.model.config,
        )
    except ConfigError as error:
        raise UserError(f"--context {options.context}: {error.reason} ({error.path})") from error

    texts = read_samples(loaded, options.limit, source, objective)
    if not texts.start_count(objective):
        raise UserError(
            f"--data {source.name}: a window takes {objective.window:,} tokens, but there are "
            f"{len(texts):,}; lower --context"
        )
    windows = EvaluationWindows([texts], objective, options.batch_size, options.draws, options.seed)
    return source_scores(source, texts, scorer(windows, source.name))


def source_scores(
    source: TextSource,
    texts: TokenizedTexts | TokenizedPairs | TokenizedExamples,
    sums: ScoreSums,
) -> SourceScores:
    return SourceScores(
        name=source.name,
        documents=texts.size.documents,
        tokens=texts.token_count,
        bytes=texts.size.bytes,
        words=texts.size.words,
        sums=sums,
    )
