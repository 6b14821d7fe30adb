"""The parts of a card about tuning: the task, the base, the labels, how to use such a model."""

import json
import shlex
from pathlib import Path

from jaxlm.card.facts import Facts
from jaxlm.config import AdapterConfig, ClassifierConfig, ModelConfig
from jaxlm.markdown import code, one_line, plain

TASKS = {
    "decoder": "text-generation",
    "encoder": "fill-mask",
    "encoder_decoder": "text2text-generation",
}
LABEL_TASKS = {"sequence": "text-classification", "token": "token-classification"}

# Objectives that tune a model for a use, beside classification.
TUNED_OBJECTIVES = {
    "instruction": "instruction tuning: the assistant's turns of conversations",
    "preference": "preferences (DPO): the better one of two answers to a prompt",
}
PROBLEMS = {
    "single_label": "one of {count} labels",
    "multi_label": "any of {count} labels",
    "regression": "{count} numbers",
}

MOST_LABELS = 50  # that are listed
EXPORT_FOLDER = "path/to/this/folder"
EXAMPLE_TEXT = "In the morning the street was quiet."

LABEL_SNIPPET = """from transformers import pipeline

classify = pipeline("{task}", model="{folder}"{options})
print(classify({text}))"""


def hub_task(model: ModelConfig) -> str:
    """Return the task for which the Hugging Face Hub lists a model."""
    if model.classifier.kind != "none":
        return LABEL_TASKS[model.classifier.kind]
    return TASKS[model.family] if model.generator_share is None else "feature-extraction"


def describe_task(classifier: ClassifierConfig) -> str:
    """Return what a classifier gives, as the objective of the card."""
    what = PROBLEMS[classifier.problem].format(count=len(classifier.labels))
    return f"classification: {what} for each {'word' if classifier.kind == 'token' else 'text'}"


def describe_tuning(facts: Facts) -> list[str]:
    """Return the lines of the description about labels, base, adapters and chat template."""
    config, lines = facts.config, []
    classifier = config.model.classifier
    if classifier.kind != "none":
        names = [plain(label) for label in classifier.labels[:MOST_LABELS]]
        more = len(classifier.labels) - len(names)
        names += [f"{more:,} more"] if more else []
        lines.append(f"- **Labels:** {', '.join(names)}")
    if config.base is not None:
        lines.append(f"- **Base:** {describe_base(facts)}")
    if config.adapter.rank:
        lines.append(f"- **Adapters:** {describe_adapter(config.adapter)}")
    if config.objective.kind in ("instruction", "preference"):
        template = config.tokenizer.chat_template
        name = "that of the base" if template is None else plain(Path(template).name)
        lines.append(f"- **Chat template:** {name}")
    return lines


def describe_base(facts: Facts) -> str:
    """Return the name of the model whose weights the run started from, and which weights."""
    record = facts.base
    text = plain(record.get("name") or Path(facts.config.base or "").name)
    if record.get("step") is not None:
        text += f", after step {record['step']:,}"
    if record.get("hash"):
        text += f", weights with the hash {plain(record['hash'])}"
    return text


def describe_adapter(adapter: AdapterConfig) -> str:
    """Return the rank and the matrices of LoRA."""
    kind = "DoRA" if adapter.dora else "LoRA"
    scale = ", scale alpha / sqrt(rank)" if adapter.rank_stabilised else ""
    targets = ", ".join(adapter.targets)
    return f"{kind} of rank {adapter.rank}, alpha {adapter.alpha:g}{scale}, on {targets}"


def summarize_tuning(facts: Facts) -> str:
    """Return sentences of the summary about what the model was tuned for; "" for no tuning."""
    kind, base = facts.config.objective.kind, facts.config.base
    texts = []
    if base is not None:
        texts.append(f"Its first weights were those of {describe_base(facts)}.")
    if kind == "classify":
        texts.append(f"It was tuned for {describe_task(facts.config.model.classifier)}.")
    elif kind in TUNED_OBJECTIVES:
        texts.append(f"It was tuned by {TUNED_OBJECTIVES[kind]}.")
    return " ".join(texts)


def label_usage(facts: Facts) -> str:
    """Return how a classifier is used: commands for a run, a pipeline for an export."""
    classifier = facts.config.model.classifier
    if not facts.exported:
        return code("\n".join(label_commands(facts)), "sh")

    options = {"token": ', aggregation_strategy="none"', "sequence": ", top_k=None"}
    if classifier.problem == "regression":
        options["sequence"] = ', function_to_apply="none"'
    text = LABEL_SNIPPET.format(
        task=hub_task(facts.config.model),
        folder=EXPORT_FOLDER,
        options=options[classifier.kind],
        text=json.dumps(EXAMPLE_TEXT),
    )
    return "Install `transformers` and `torch`, then:\n\n" + code(text, "python")


def label_commands(facts: Facts) -> list[str]:
    """Return the commands for the run directory of a classifier."""
    folder = shlex.quote(one_line(facts.shown_directory))
    export = shlex.quote(one_line(facts.name) + "-hf")
    return [
        f"python -m jaxlm.predict {folder} --texts texts.txt    # a text on each line",
        f"python -m jaxlm.convert export {folder} {export}    # for transformers",
    ]
