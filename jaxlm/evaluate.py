"""python -m jaxlm.evaluate RUN|HF_DIR [--data PATH]: loss, perplexity, bits per byte and per word, or masked and pseudo-perplexity.

jax is imported inside the functions, after `runtime.configure` has set what must be set before it.
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlm import config, runtime
from jaxlm.config import ConfigError, UserError

if TYPE_CHECKING:
    from jaxlm.data import Document, Store
    from jaxlm.evaluation.report import Row, Sums
    from jaxlm.evaluation.texts import Pairs, Tokens
    from jaxlm.load_model import LoadedModel
    from jaxlm.objectives import Objective
    from jaxlm.types import Batches

PSEUDO_WINDOWS = (
    16  # of each source, unless more are asked for: each of their tokens takes a forward pass
)

EXAMPLE = """examples:
  python -m jaxlm.evaluate runs/quickstart
  python -m jaxlm.evaluate runs/quickstart --data 'books=books/*.txt' --data news=news.jsonl --json figures.json
  python -m jaxlm.evaluate gpt2/ --data wiki.test.txt --stride 512
  python -m jaxlm.evaluate bert/ --data reviews.jsonl --text-key review --limit 100

RUN is the run_directory of a training, HF_DIR a folder with config.json, model.safetensors and tokenizer.json.
Without --data a run is scored on its own validation split, on the same windows as in training.

decoders            every token but the first is a target once; documents are joined as in training, each with the end of text
                    behind it, or with --per-document each is on its own behind the end (or begin) of text
encoders            loss and accuracy where tokens are hidden as in training, documents joined, and the pseudo-perplexity: every
                    token hidden alone (arXiv 1910.14659), which takes a forward pass for each
encoder-decoders    the loss of the objective that the model was trained with: spans, infilling or pairs"""


class Asked(NamedTuple):
    """What the arguments say about the windows."""

    sources: tuple[config.SourceConfig, ...]
    context: int | None
    stride: int | None
    batch_size: int
    limit: int | None
    seed: int
    draws: int
    per_document: bool
    pseudo_windows: int | None


def parser() -> runtime.Parser:
    made = runtime.Parser(
        prog="python -m jaxlm.evaluate",
        description="Score a trained model on texts, or a run on its validation split.",
        epilog=EXAMPLE,
    )
    made.add_argument("path", metavar="RUN|HF_DIR", help="the model")
    made.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a file, folder or glob of text or JSON lines; may be repeated",
    )
    made.add_argument(
        "--text-key",
        default="text",
        metavar="KEY",
        help="of JSON lines: what holds the text (text)",
    )
    made.add_argument(
        "--context",
        type=positive,
        metavar="N",
        help="tokens of a window (the model's context_length)",
    )
    made.add_argument(
        "--stride",
        type=positive,
        metavar="N",
        help="decoders: tokens from one window to the next (the context)",
    )
    made.add_argument(
        "--per-document", action="store_true", help="no window has tokens of two documents"
    )
    made.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="windows of each source; with --per-document, documents",
    )
    made.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="windows at a time (8)"
    )
    made.add_argument(
        "--draws",
        type=positive,
        default=1,
        metavar="N",
        help="visits of each text, each hidden anew (1)",
    )
    made.add_argument("--seed", type=count, default=0, metavar="N", help="of what is hidden (0)")
    made.add_argument(
        "--pseudo-windows",
        type=count,
        metavar="N",
        help=f"encoders: windows of each source whose tokens are hidden one by one (--limit, else {PSEUDO_WINDOWS}); 0: none",
    )
    made.add_argument(
        "--step", type=count, metavar="N", help="of a run: the checkpoint (the newest)"
    )
    made.add_argument(
        "--devices", type=positive, default=1, metavar="N", help="that the model is split over (1)"
    )
    made.add_argument(
        "--compute",
        choices=("float32", "bfloat16"),
        help="dtype of the matrix products (as the run was trained; float32 of an HF_DIR)",
    )
    made.add_argument("--json", metavar="FILE", help="write the figures, with all their digits")
    return made


def positive(text: str) -> int:
    return whole(text, 1)


def count(text: str) -> int:
    return whole(text, 0)


def whole(text: str, least: int) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}, got {text!r}"
        )
    return int(text)


def main(argv: Sequence[str]) -> int:
    args = parser().parse_intermixed_args(argv)
    sources = named(args.data, args.text_key)
    asked = Asked(
        sources,
        args.context,
        args.stride,
        args.batch_size,
        args.limit,
        args.seed,
        args.draws,
        args.per_document,
        args.pseudo_windows,
    )
    if not sources:
        only_with_data(args)
    path = Path(args.path)
    runtime.configure(config.RuntimeConfig(devices=args.devices))

    from jaxlm import load_model
    from jaxlm.evaluation.report import figures, table, total

    model = load_model.load_model(path, step=args.step, compute=args.compute, devices=args.devices)
    compute = args.compute or (model.config.precision.compute if model.config else "float32")
    scorer = Scorer(model)
    place = f" after step {model.step}" if model.step is not None else ""
    print(
        f"{path}{place}: {model.model.config.family}, {model.model.parameter_count():,} parameters, {compute}, {scorer.describe()}"
    )
    kind, rows, how = measured(model, asked, scorer) if sources else own_split(model, scorer)
    found = [figures(row, kind) for row in rows]
    whole = figures(total(rows), kind)
    print(table([*found, whole] if len(found) > 1 else found))
    if args.json:
        about = {
            "model": str(path),
            "step": model.step,
            "family": model.model.config.family,
            "compute": compute,
        }
        write_json(
            Path(args.json), {**about, "objective": kind, **how, "sources": found, "total": whole}
        )
    return 0


def only_with_data(args: argparse.Namespace) -> None:
    """UserError for arguments that say how --data is read."""
    for name, given in (
        ("--context", args.context),
        ("--stride", args.stride),
        ("--limit", args.limit),
        ("--per-document", args.per_document),
        ("--pseudo-windows", args.pseudo_windows),
    ):
        if given:
            raise UserError(
                f"{name}: is only used with --data; a run's validation split is scored as in training"
            )


def named(data: Sequence[str], text_key: str) -> tuple[config.SourceConfig, ...]:
    """The sources of `--data [NAME=]PATH`; without a name the path is one."""
    found: dict[str, config.SourceConfig] = {}
    for text in data:
        match = re.fullmatch(r"(?:([\w. -]+)=)?(.+)", text, re.DOTALL)
        if match is None:
            raise UserError("--data: needs a file, folder or glob, got an empty text")
        name, path = match[1] or match[2], match[2]
        if name in found:
            raise UserError(
                f"--data: {name!r} stands for two sources; name them: --data NAME={path}"
            )
        found[name] = config.SourceConfig(name=name, path=path, text_key=text_key)
    return tuple(found.values())


def write_json(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--json: can't write {path}: {error.strerror}") from error


def log(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


class Scorer:
    """The model on its devices, over batches."""

    def __init__(self, trained: "LoadedModel"):
        import jax

        from jaxlm import sharding, step

        mesh = jax.tree.leaves(trained.params)[0].sharding.mesh
        self.devices = list(mesh.devices.flat)
        self.placement = sharding.Placement(mesh, trained.model.axes, zero=0)
        self.params = trained.params
        self.step = step.eval_step(
            trained.model, config.TrainingConfig(), self.placement, trained.params
        )

    def describe(self) -> str:
        return runtime.describe_devices(self.devices)

    def __call__(self, windows: "Batches", what: str, batches: int | None = None) -> "Sums":
        from jaxlm.evaluation import scoring
        from jaxlm.evaluation.progress import Progress, Watched
        from jaxlm.evaluation.report import Sums

        progress = Progress(what, min(len(windows), batches or len(windows)))
        in_flight = 0 if self.devices[0].platform == "cpu" else 1  # as in training
        score = scoring.evaluate(
            self.step,
            self.params,
            Watched(windows, progress),
            batches,
            self.placement.put,
            in_flight,
        )
        progress.close()
        return Sums(score.targets, score.loss * score.targets, score.accuracy * score.targets)


# A run on its validation split


def own_split(trained: "LoadedModel", scorer: Scorer) -> tuple[str, list["Row"], dict[str, Any]]:
    """(objective, figures, settings): the windows of the training's evaluation."""
    from jaxlm import objectives
    from jaxlm.evaluation.report import Row
    from jaxlm.evaluation.validation import EvaluationWindows

    settings = trained.config
    if settings is None:
        raise UserError(
            f"{trained.path}: is no run, so it has no validation split of its own: say --data PATH"
        )
    store = own_store(trained.path, settings)
    objective = objectives.build(
        settings.objective, settings.data.sequence_length, store.tokenizer.vocabulary
    )
    size = settings.evaluation.batch_size or settings.training.batch_size
    windows = EvaluationWindows(
        store.validation, objective, size, settings.evaluation.draws, settings.seed
    )
    sums = scorer(windows, "validation", settings.evaluation.steps)
    entries = store.manifest["splits"]["validation"]
    documents = sum(entry.get("pairs", entry["documents"]) for entry in entries)
    row = Row(
        "validation",
        documents,
        store.manifest["validation"]["tokens"],
        store.validation_bytes,
        None,
        sums,
    )
    how = {
        "context": objective.length,
        "batch_size": size,
        "draws": settings.evaluation.draws,
        "seed": settings.seed,
    }
    return settings.objective.kind, [row], how


def own_store(directory: Path, settings: config.Config) -> "Store":
    """The token store that a run was trained on: as it was left, or built again of the same text."""
    from jaxlm import checkpoint, data
    from jaxlm.data.store import identify

    _, known = checkpoint.read_run_config(directory)
    if known is None:  # as an import leaves it
        raise UserError(
            f"{directory}: has no validation split yet, since it was not trained here: say --data PATH"
        )
    folder = Path(settings.data.store).expanduser() / known
    if folder.is_dir():
        return data.open_store(folder)
    what, needs = (
        (settings.data, settings.tokenizer, settings.tokenizer_vocabulary_size),
        settings.objective.needs,
    )
    found = identify(*what, needs)[0].name
    if found != known:
        raise UserError(
            f"{directory}: its text is not what it was trained on (prepared data: {known} -> {found}); say --data PATH"
        )
    return data.prepare(*what, log, needs=needs)


# Any model on any text


def measured(
    trained: "LoadedModel", asked: Asked, scorer: Scorer
) -> tuple[str, list["Row"], dict[str, Any]]:
    """(objective, figures by source, settings) of `--data`."""
    model = trained.model.config
    context = asked.context or model.context_length
    if model.positions == "learned" and context > model.context_length:
        raise UserError(
            f"--context {context}: {trained.path} has positions for {model.context_length} tokens"
        )
    check_family(trained, asked)
    stride = asked.stride or context
    if stride > context:
        raise UserError(
            f"--stride {stride}: would leave out tokens between windows of {context} (--context)"
        )
    asked = asked._replace(context=context, stride=stride)
    how: dict[str, Any] = {"context": context, "batch_size": asked.batch_size, "limit": asked.limit}
    if model.family == "decoder":
        rows = [slid(trained, asked, scorer, source) for source in asked.sources]
        return "causal", rows, how | {"stride": stride, "per_document": asked.per_document}
    settings = objective_of(trained)
    log(f"objective {settings.kind}, windows of {context} tokens")
    score = hidden if model.family == "encoder" else rewritten
    rows = [score(trained, asked, scorer, source, settings) for source in asked.sources]
    return (
        settings.kind,
        rows,
        how | {"draws": asked.draws, "seed": asked.seed, "per_document": asked.per_document},
    )


def check_family(trained: "LoadedModel", asked: Asked) -> None:
    """UserError for arguments that say nothing to a model of its family."""
    family = trained.model.config.family
    for name, given, families in (
        ("--stride", asked.stride is not None, ["decoder"]),
        ("--per-document", asked.per_document, ["decoder", "encoder"]),
        ("--pseudo-windows", asked.pseudo_windows is not None, ["encoder"]),
    ):
        if given and family not in families:
            raise UserError(
                f"{name}: is for {' and '.join(f'{of}s' for of in families)}; {trained.path}: {family.replace('_', '-')}"
            )


def slid(
    trained: "LoadedModel", asked: Asked, scorer: Scorer, source: config.SourceConfig
) -> "Row":
    """A decoder over sliding windows."""
    from jaxlm.evaluation import texts, windows
    from jaxlm.evaluation.report import Row

    context, stride, limit = asked.context, asked.stride, asked.limit
    assert context is not None and stride is not None
    begin = (
        list(trained.special.before) if trained.config is None else []
    )  # training here puts nothing before a text
    end = [trained.tokenizer.end_of_text]
    if asked.per_document:
        tokens = texts.read(
            documents(source), trained.tokenizer, begin or end, most_documents=limit
        )
    else:
        most = windows.most_tokens(limit, context, stride) if limit else None
        tokens = texts.read(documents(source), trained.tokenizer, begin, end, most_tokens=most)
    slides = windows.SlidingWindows(tokens, context, stride, asked.batch_size, asked.per_document)
    if not len(slides):
        raise UserError(
            f"--data {source.name}: {len(tokens)} tokens are too few: nothing can be predicted"
        )
    return Row(
        source.name,
        tokens.size.documents,
        len(tokens),
        tokens.size.bytes,
        tokens.size.words,
        scorer(slides, source.name),
    )


def hidden(
    trained: "LoadedModel",
    asked: Asked,
    scorer: Scorer,
    source: config.SourceConfig,
    settings: config.ObjectiveConfig,
) -> "Row":
    """An encoder with some tokens hidden at random, and with each hidden alone."""
    row = rewritten(trained, asked, scorer, source, settings)
    windows = (
        asked.pseudo_windows if asked.pseudo_windows is not None else asked.limit or PSEUDO_WINDOWS
    )
    return row._replace(pseudo=pseudo(trained, asked, scorer, source, windows)) if windows else row


def pseudo(
    trained: "LoadedModel", asked: Asked, scorer: Scorer, source: config.SourceConfig, windows: int
) -> "Sums":
    """An encoder with each token of the first `windows` (or documents) hidden in turn."""
    from jaxlm.evaluation import texts
    from jaxlm.evaluation.pseudo import HiddenTokens, framed

    vocabulary, context = trained.tokenizer.vocabulary, asked.context
    assert context is not None and vocabulary.mask is not None
    if asked.per_document:
        tokens = texts.read(documents(source), trained.tokenizer, most_documents=windows)
    else:
        most = windows * (context - 2 * (vocabulary.begin_of_text is not None))
        tokens = texts.read(
            documents(source), trained.tokenizer, end=[vocabulary.end_of_text], most_tokens=most
        )
    rows = framed(tokens, context, vocabulary, asked.per_document)
    batches = HiddenTokens(rows, vocabulary.mask, asked.batch_size)
    log(
        f"{source.name}: {len(rows.hidden):,} forward passes of {context} tokens for the pseudo-perplexity of {len(rows.rows):,} windows"
    )
    return scorer(batches, f"{source.name}: pseudo-perplexity")


def rewritten(
    trained: "LoadedModel",
    asked: Asked,
    scorer: Scorer,
    source: config.SourceConfig,
    settings: config.ObjectiveConfig,
) -> "Row":
    """What an objective hides from the model, or the targets of pairs; of running text whole windows only."""
    from jaxlm import objectives
    from jaxlm.evaluation.report import Row
    from jaxlm.evaluation.validation import EvaluationWindows

    try:
        objective = objectives.build(settings, asked.context or 0, trained.tokenizer.vocabulary)
    except ConfigError as error:
        raise UserError(f"--context {asked.context}: {error.reason} ({error.path})") from error
    found = samples(trained, asked, source, objective)
    if not found.places(objective):
        raise UserError(
            f"--data {source.name}: a window takes {objective.window:,} tokens, but there are {len(found):,}; lower --context"
        )
    windows = EvaluationWindows([found], objective, asked.batch_size, asked.draws, asked.seed)
    size, sums = found.size, scorer(windows, source.name)
    return Row(source.name, size.documents, found.token_count, size.bytes, size.words, sums)


def samples(
    trained: "LoadedModel", asked: Asked, source: config.SourceConfig, objective: "Objective"
) -> "Tokens | Pairs":
    """A source as the objective reads it: documents joined as in training, or pairs."""
    from jaxlm.evaluation import texts

    if trained.config is not None and trained.config.objective.kind == "pairs":
        of = trained.config.data.sources[0]
        source = replace(source, format="pairs", source_key=of.source_key, target_key=of.target_key)
        return texts.read_pairs(documents(source), trained.tokenizer, asked.limit)
    most = asked.limit * objective.window if asked.limit else None
    return texts.read(
        documents(source), trained.tokenizer, end=[trained.tokenizer.end_of_text], most_tokens=most
    )


def objective_of(trained: "LoadedModel") -> config.ObjectiveConfig:
    """A run's own objective; else by the family and what the tokenizer has. UserError where it lacks what is needed."""
    if trained.config is not None:
        return trained.config.objective
    vocabulary, family = trained.tokenizer.vocabulary, trained.model.config.family
    if family == "encoder" and vocabulary.mask is not None:
        return config.ObjectiveConfig(kind="masked")
    if family == "encoder_decoder" and (len(vocabulary.sentinels) or vocabulary.mask is not None):
        start = "pad" if trained.special.decoder_start_id == vocabulary.pad else "end_of_text"
        return config.ObjectiveConfig(
            kind="span" if len(vocabulary.sentinels) else "infilling", decoder_start=start
        )
    needed = "mask" if family == "encoder" else "mask and no sentinels"
    raise UserError(f"{trained.path}: its tokenizer has no {needed}: nothing can be hidden")


def documents(source: config.SourceConfig) -> Iterable["Document"]:
    """The documents of `--data`; UserError names the argument at fault."""
    from jaxlm.data.sources import documents

    try:
        yield from documents(source, "--data")
    except ConfigError:
        raise
    except UserError as error:
        raise UserError(str(error).replace("data.sources.text_key", "--text-key")) from error


if __name__ == "__main__":
    runtime.run(main)
