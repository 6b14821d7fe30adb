"""README.md: the generated parts stand between comments, and all else is the authors'.

Written again, a card keeps what authors wrote outside the generated parts; a generated part that they changed (its comment holds a
hash of what was generated) is theirs from then on, and one that they removed stays away. In the metadata what they set stays.
"""

import hashlib
import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from jaxlm.card import loss_plot, record
from jaxlm.card.facts import LIBRARIES, Facts
from jaxlm.card.markdown import one_line, plain
from jaxlm.card.sections import PARTS
from jaxlm.card.template import TEMPLATE
from jaxlm.card.usage import TASKS
from jaxlm.config import UserError

FILE, PICTURE = "README.md", "loss.svg"
PART = re.compile(r"<!-- jaxlm:begin (\w+) (\w*) -->\n(.*?)<!-- jaxlm:end \1 -->", re.DOTALL)
PLACE = re.compile(r"\{\{(\w+)\}\}")

# tag of an evaluation -> (metric's type, its name) in the metadata
METRICS = {
    "eval/loss": ("loss", "Loss (nats per target)"),
    "eval/perplexity": ("perplexity", "Perplexity"),
    "eval/bits_per_byte": ("bits_per_byte", "Bits per byte"),
    "eval/masked_accuracy": ("accuracy", "Masked accuracy"),
}
DATASET_TYPE = "text"  # the loader of `datasets` for texts in files: the data has no name that others could look up


def write(directory: Path, facts: Facts) -> Path:
    """Writes README.md, and loss.svg where there are losses, into `directory`; returns the card's path.

    What authors wrote into the card that is there, or else into that of the run directory, stays. UserError if its metadata is no YAML
    (the card is left as it is then) or if a file can't be written.
    """
    path = directory / FILE
    earlier = next((found for found in (path, facts.run_directory / FILE) if found.is_file()), None)
    try:
        old = earlier.read_text(encoding="utf-8-sig") if earlier else ""
    except (OSError, ValueError) as error:
        raise UserError(f"{earlier}: can't be read: {error}") from error
    body = REGEX_YAML_BLOCK.sub("", old, count=1)
    whole = ModelCard(
        f"---\n{merged(read_metadata(earlier, old), metadata(facts)).to_yaml()}\n---\n{renewed(body, facts)}"
    )
    curves = loss_curves(facts)
    if curves:
        record.replace(directory / PICTURE, curves)
    record.replace(path, str(whole))
    return path


# The text


def renewed(body: str, facts: Facts) -> str:
    """The text of a card with its generated parts as the facts have them now; a new card for an empty one."""
    if not PART.search(body):
        new = TEMPLATE.replace("{{name}}", plain(facts.name))
        fresh = PLACE.sub(lambda place: part(place[1], facts), new)
        # A text without our parts is an author's own: it stays, before what is generated.
        return f"{body.rstrip()}\n\n{fresh}" if body.strip() else f"\n{fresh}"
    return PART.sub(lambda found: renewed_part(found, facts), body)


def renewed_part(found: re.Match[str], facts: Facts) -> str:
    name, mark, text = found.groups()
    untouched = not text.strip() or mark == digest(text)
    return part(name, facts) if untouched and name in PARTS else found[0]


def part(name: str, facts: Facts) -> str:
    # What comes from outside stands in blocks of code as it is, but must not end a part.
    text = PARTS[name](facts).replace("<!--", "<!- -")
    return f"<!-- jaxlm:begin {name} {digest(text)} -->\n\n{text}\n\n<!-- jaxlm:end {name} -->"


def digest(text: str) -> str:
    """Of the words alone: an editor that wraps lines or aligns tables leaves a part as it is."""
    return hashlib.sha256(re.sub(r"\s|-{3,}", "", text).encode()).hexdigest()[:12]


def loss_curves(facts: Facts) -> str:
    """The picture; over tokens, exact by the schedule of the batches."""
    if not facts.trained:
        return ""
    train, validation = (
        [(facts.tokens(step), loss) for step, loss in facts.curves.get(tag, {}).items()]
        for tag in ("train/loss", "eval/loss")
    )
    return loss_plot.loss_curves(train, validation, "tokens")


# The metadata


def metadata(facts: Facts) -> ModelCardData:
    results = evaluation(facts)
    names = {"model_name": index_name(facts), "eval_results": results} if results else {}
    return ModelCardData(
        library_name=facts.library,
        pipeline_tag=TASKS[facts.config.model.family],
        tags=["jaxlm", "jax", "pretraining", *([facts.exported] if facts.exported else [])],
        metrics=[
            kind
            for kind in ("perplexity", "accuracy")
            if kind in {result.metric_type for result in results}
        ]
        or None,
        **names,
    )


def index_name(facts: Facts) -> str:
    """A name that no YAML parser takes for a number: 1e5 is a text in YAML 1.1 and a number in 1.2."""
    name = one_line(facts.name)
    return f"model-{name}" if re.fullmatch(r"[\d.e+x_-]*", name, re.IGNORECASE) else name


def evaluation(facts: Facts) -> list[EvalResult]:
    """The last evaluation, for the `model-index`."""
    if not facts.evaluated:
        return []
    scores, task = facts.scores(facts.evaluated[-1]), TASKS[facts.config.model.family]
    names = ", ".join(one_line(source.name) for source in facts.config.data.sources)
    return [
        EvalResult(
            task_type=task,
            dataset_type=DATASET_TYPE,
            dataset_name=f"{names} (held out)",
            dataset_split="validation",
            dataset_revision=f"store-{facts.store}" if facts.store else None,
            metric_type=kind,
            metric_name=name,
            metric_value=float(f"{scores[tag]:.7g}"),
        )
        for tag, (kind, name) in METRICS.items()
        if tag in scores
    ]


def read_metadata(path: Path | None, text: str) -> ModelCardData:
    """The metadata of a card. UserError where it can't be read."""
    block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        return ModelCardData()
    try:
        found = yaml.safe_load(block[2])
        return ModelCardData(**(found or {}))
    except (yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: the metadata between the lines --- can't be read: {one_line(error)}"
        ) from error


def merged(old: ModelCardData, new: ModelCardData) -> ModelCardData:
    """What authors set, and what is generated where they set nothing; their own evaluations beside ours."""
    ours = new.eval_results or []
    mine = {(result.dataset_type, result.dataset_name, result.dataset_split) for result in ours}
    theirs = [
        r
        for r in old.eval_results or []
        if (r.dataset_type, r.dataset_name, r.dataset_split) not in mine
    ]
    fields = {
        **new.__dict__,
        **{key: value for key, value in old.__dict__.items() if value is not None},
    }
    if old.library_name in LIBRARIES:
        fields["library_name"] = new.library_name
    fields["tags"] = [*dict.fromkeys([*(old.tags or []), *(new.tags or [])])]
    fields["metrics"] = [*dict.fromkeys([*(old.metrics or []), *(new.metrics or [])])] or None
    fields["eval_results"] = [*ours, *theirs] or None
    if fields["eval_results"] is None:
        fields["model_name"] = None
    return ModelCardData(**fields)
