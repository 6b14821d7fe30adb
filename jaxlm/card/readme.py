"""README.md: generated parts stand between comments, and everything else is the authors'.

Written again, a card keeps what authors wrote outside the generated parts. A generated part that
they changed (its comment holds a hash of what was generated) is theirs from then on, and one that
they removed stays away. In the metadata, what they set stays.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from jaxlm.card import loss_plot, model_sections, training_sections
from jaxlm.card.facts import LIBRARIES, Facts
from jaxlm.card.training_record import write_card_file
from jaxlm.card.tuning_sections import TUNED_OBJECTIVES, hub_task
from jaxlm.config import UserError
from jaxlm.markdown import one_line, plain

CARD_FILE, PLOT_FILE = "README.md", "loss.svg"
GENERATED_PART = re.compile(
    r"<!-- jaxlm:begin (\w+) (\w*) -->\n(.*?)<!-- jaxlm:end \1 -->", re.DOTALL
)
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")

PARTS: dict[str, Callable[[Facts], str]] = {
    "summary": model_sections.summary,
    "description": model_sections.description,
    "usage": model_sections.usage,
    "architecture": model_sections.architecture,
    "data": training_sections.data,
    "tokenizer": training_sections.tokenizer,
    "hyperparameters": training_sections.hyperparameters,
    "speed": training_sections.speed,
    "testing": training_sections.testing,
    "results": training_sections.results,
    "curves": training_sections.curves,
    "hardware": training_sections.hardware,
    "software": training_sections.software,
    "reproducing": training_sections.reproducing,
}

# tag of an evaluation -> (metric's type, its name) in the metadata
METRICS = {
    "eval/loss": ("loss", "Loss (nats per target)"),
    "eval/perplexity": ("perplexity", "Perplexity"),
    "eval/bits_per_byte": ("bits_per_byte", "Bits per byte"),
    "eval/masked_accuracy": ("accuracy", "Masked accuracy"),
    "eval/detection_accuracy": ("accuracy", "Accuracy of replaced-token detection"),
    "eval/accuracy": ("accuracy", "Accuracy"),
    "eval/macro_f1": ("f1", "Macro F1"),
    "eval/micro_f1": ("f1", "Micro F1"),
    "eval/entity_f1": ("f1", "F1 of entities (seqeval)"),
    "eval/matthews": ("matthews_correlation", "Matthews correlation"),
    "eval/spearman": ("spearmanr", "Spearman correlation"),
    "eval/pearson": ("pearsonr", "Pearson correlation"),
    "eval/mse": ("mse", "Mean squared error"),
    "eval/reward_accuracy": ("accuracy", "Pairs whose better answer has the higher reward"),
}
LISTED_METRICS = (
    "perplexity",
    "accuracy",
    "f1",
    "matthews_correlation",
    "spearmanr",
    "pearsonr",
)
DATASET_TYPE = "text"  # the loader of `datasets` for text files: the data has no public name


def write_card(directory: Path, facts: Facts) -> Path:
    """Write README.md, and loss.svg where there are losses; return the path of the card.

    What authors wrote into the present card, or else into that of the run directory, stays. Raises
    UserError if its metadata is no YAML (the card is left as it is then) or if a file can't be
    written.
    """
    path = directory / CARD_FILE
    candidates = (path, facts.run_directory / CARD_FILE)
    previous = next((file for file in candidates if file.is_file()), None)
    try:
        text = previous.read_text(encoding="utf-8-sig") if previous else ""
    except (OSError, ValueError) as error:
        raise UserError(f"{previous}: can't be read: {error}") from error

    metadata = merge_metadata(read_metadata(previous, text), generate_metadata(facts))
    body = update_body(REGEX_YAML_BLOCK.sub("", text, count=1), facts)
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n{body}")

    if plot := plot_losses(facts):
        write_card_file(directory / PLOT_FILE, plot)
    write_card_file(path, str(card))
    return path


# The text


def update_body(body: str, facts: Facts) -> str:
    """Return the text with its generated parts made anew; a new card for an empty text."""
    if GENERATED_PART.search(body):
        return GENERATED_PART.sub(lambda match: update_part(match, facts), body)

    template = TEMPLATE.replace("{{name}}", plain(facts.name))
    new = PLACEHOLDER.sub(lambda place: generate_part(place[1], facts), template)
    # A text without our parts is an author's own: it stays, before what is generated.
    return f"{body.rstrip()}\n\n{new}" if body.strip() else f"\n{new}"


def update_part(match: re.Match[str], facts: Facts) -> str:
    name, recorded_hash, text = match.groups()
    untouched = not text.strip() or recorded_hash == text_hash(text)
    return generate_part(name, facts) if untouched and name in PARTS else match[0]


def generate_part(name: str, facts: Facts) -> str:
    # Foreign text stands in blocks of code as it is, but must not end a part.
    text = PARTS[name](facts).replace("<!--", "<!- -")
    return f"<!-- jaxlm:begin {name} {text_hash(text)} -->\n\n{text}\n\n<!-- jaxlm:end {name} -->"


def text_hash(text: str) -> str:
    """Hash the words alone: an editor that wraps lines or aligns tables leaves a part as it is."""
    return hashlib.sha256(re.sub(r"\s|-{3,}", "", text).encode()).hexdigest()[:12]


def plot_losses(facts: Facts) -> str:
    """Return the SVG of losses over tokens, which the batch schedule gives exactly; "" if none."""
    if not facts.trained:
        return ""
    train, validation = (
        [(facts.tokens(step), loss) for step, loss in facts.curves.get(tag, {}).items()]
        for tag in ("train/loss", "eval/loss")
    )
    return loss_plot.draw_loss_curves(train, validation, "tokens")


# The metadata


def generate_metadata(facts: Facts) -> ModelCardData:
    results = evaluation_results(facts)
    index = {"model_name": index_name(facts), "eval_results": results} if results else {}
    types = {result.metric_type for result in results}
    is_tuned = facts.config.objective.kind in (*TUNED_OBJECTIVES, "classify")
    kind = "fine-tuning" if is_tuned else "pretraining"
    return ModelCardData(
        library_name=facts.library,
        pipeline_tag=hub_task(facts.config.model),
        tags=["jaxlm", "jax", kind, *([facts.exported] if facts.exported else [])],
        metrics=[metric for metric in LISTED_METRICS if metric in types] or None,
        **index,
    )


def index_name(facts: Facts) -> str:
    """Return a name that no YAML parser takes for a number: 1e5 is one in YAML 1.2, not in 1.1."""
    name = one_line(facts.name)
    return f"model-{name}" if re.fullmatch(r"[\d.e+x_-]*", name, re.IGNORECASE) else name


def evaluation_results(facts: Facts) -> list[EvalResult]:
    """Return the last evaluation, for the `model-index`."""
    if not facts.evaluated_steps:
        return []

    scores = facts.scores(facts.evaluated_steps[-1])
    sources = ", ".join(one_line(source.name) for source in facts.config.data.sources)
    return [
        EvalResult(
            task_type=hub_task(facts.config.model),
            dataset_type=DATASET_TYPE,
            dataset_name=f"{sources} (held out)",
            dataset_split="validation",
            dataset_revision=f"store-{facts.store}" if facts.store else None,
            metric_type=metric,
            metric_name=name,
            metric_value=float(f"{scores[tag]:.7g}"),
        )
        for tag, (metric, name) in METRICS.items()
        # The loss of a detection is no mean over targets, and that of a regression no nats.
        if tag in scores
        and (tag != "eval/loss" or not scores.keys() & {"eval/detection_loss", "eval/mse"})
    ]


def read_metadata(path: Path | None, text: str) -> ModelCardData:
    """Read the metadata of a card. Raises UserError where that can't be done."""
    block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        return ModelCardData()
    try:
        return ModelCardData(**(yaml.safe_load(block[2]) or {}))
    except (yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        reason = f"the metadata between the lines --- can't be read: {one_line(error)}"
        raise UserError(f"{path}: {reason}") from error


def merge_metadata(old: ModelCardData, new: ModelCardData) -> ModelCardData:
    """Keep what authors set, and fill in what they did not; their evaluations stand beside ours."""

    def dataset(result: EvalResult) -> tuple:
        return result.dataset_type, result.dataset_name, result.dataset_split

    ours = new.eval_results or []
    our_datasets = {dataset(result) for result in ours}
    theirs = [result for result in old.eval_results or [] if dataset(result) not in our_datasets]

    fields = dict(new.__dict__)
    fields |= {key: value for key, value in old.__dict__.items() if value is not None}
    if old.library_name in LIBRARIES:
        fields["library_name"] = new.library_name
    fields["tags"] = list(dict.fromkeys([*(old.tags or []), *(new.tags or [])]))
    fields["metrics"] = list(dict.fromkeys([*(old.metrics or []), *(new.metrics or [])])) or None
    fields["eval_results"] = [*ours, *theirs] or None
    if fields["eval_results"] is None:
        fields["model_name"] = None
    return ModelCardData(**fields)


# A new card: the headings of Hugging Face's template, generated parts as {{name}}, and what the
# authors have to write marked as such.

TO_FILL_IN = "**To be filled in by the authors:**"

TEMPLATE = f"""<!--
The parts between "jaxlm:begin" and "jaxlm:end" are generated, and renewed when the card is
written again. All else is yours and stays,
the metadata at the top too. A generated part that you change is yours from then on; empty it to
have it generated again.
-->

# Model Card for {{{{name}}}}

{{{{summary}}}}

## Model Details

### Model Description

{{{{description}}}}

- **Developed by:** {TO_FILL_IN} names, organisation
- **Language(s) (NLP):** {TO_FILL_IN} the languages of the training data (and as `language:` in the
  metadata at the top)
- **License:** {TO_FILL_IN} the license of the weights (and as `license:` in the metadata at the
  top)

### Model Sources

- **Repository:** {TO_FILL_IN} if there is one
- **Paper:** {TO_FILL_IN} if there is one

## Uses

### Direct Use

{TO_FILL_IN} what the model was made for, and for whom. As it is, a pretrained model continues,
fills in
or encodes text like that of its
training data.

### Downstream Use

{TO_FILL_IN} what it may be fine-tuned for. Fine-tuned, it needs an evaluation of its own on
that task.

### Out-of-Scope Use

{TO_FILL_IN} uses that you advise against. It was not made for decisions about people, for advice in
medicine, law or finance, or as a source of
facts: nothing here checks that what it writes is true.

## Bias, Risks, and Limitations

- It reproduces what its training data holds: errors, stereotypes and insults included, in the
  proportions of its sources.
- It may repeat passages of the training data word for word, names and personal data among them.
- What it writes or predicts may be fluent and wrong. Its loss says how well it predicts text like
  its validation split, no more.
- Languages, subjects and forms of text that the sources hold little of are served badly.

{TO_FILL_IN} what is known about the data, and what was tested.

### Recommendations

Users should be made aware of these risks. Before the model is put to use, test it on that use,
with those that it will affect in mind.

## How to Get Started with the Model

{{{{usage}}}}

## Training Details

### Training Data

{{{{data}}}}

{TO_FILL_IN} where the sources come from, who wrote them, their licenses, and what was removed
from them.

### Training Procedure

#### Preprocessing

{{{{tokenizer}}}}

#### Training Hyperparameters

{{{{hyperparameters}}}}

#### Speeds, Sizes, Times

{{{{speed}}}}

## Evaluation

### Testing Data, Factors & Metrics

{{{{testing}}}}

### Results

{{{{results}}}}

{{{{curves}}}}

## Environmental Impact

{{{{hardware}}}}

- **Cloud Provider and Compute Region:** {TO_FILL_IN} where it was trained
- **Carbon Emitted:** {TO_FILL_IN} such as by [Lacoste et al.
  (2019)](https://arxiv.org/abs/1910.09700)

## Technical Specifications

### Model Architecture and Objective

{{{{architecture}}}}

### Software

{{{{software}}}}

### Reproducing

{{{{reproducing}}}}

## Citation

{TO_FILL_IN} how to cite the model

## Model Card Contact

{TO_FILL_IN} whom to write to
"""
