"""How to use a model: commands for a run directory, a snippet of `transformers` for an exported one."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm import config
from jaxlm.card.facts import Facts
from jaxlm.card.markdown import code, one_line

TASKS = {
    "decoder": "text-generation",
    "encoder": "fill-mask",
    "encoder_decoder": "text2text-generation",
}
# What says where files lie, how a process is set up and what is shown: nothing that the weights depend on.
PRIVATE = (
    "run_directory",
    "data.store",
    "runtime",
    "logging",
    "checkpoint",
    "evaluation.samples",
    "evaluation.sample_prompt",
)

PIPELINE = """from transformers import pipeline

run = pipeline("{task}", model="{where}")
print(run({prompt}{options}))"""

SEQ2SEQ = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{where}")
model = AutoModelForSeq2SeqLM.from_pretrained("{where}")
inputs = tokenizer({prompt}, return_tensors="pt")
written = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=64)
print(tokenizer.decode(written[0], skip_special_tokens={skip}))"""

WHERE = "path/to/this/folder"


def usage(facts: Facts) -> str:
    return exported(facts) if facts.exported else trained(facts)


def exported(facts: Facts) -> str:
    family = facts.config.model.family
    if family == "encoder_decoder":
        text = SEQ2SEQ.format(
            where=WHERE,
            prompt=json.dumps(prompt(facts.config)),
            skip=facts.config.objective.kind != "span",
        )
    else:
        options = ", max_new_tokens=50" if family == "decoder" else ""
        text = PIPELINE.format(
            task=TASKS[family], where=WHERE, prompt=python_prompt(facts.config), options=options
        )
    return "Install `transformers` and `torch`, then:\n\n" + code(text, "python")


def prompt(settings: config.Config) -> str:
    """A text to complete, with what the objective hides."""
    kind, hidden = settings.objective.kind, one_line(settings.tokenizer.mask)
    if kind == "span":
        return "The <extra_id_0> in the morning."
    return f"The {hidden} in the morning." if kind in ("masked", "infilling") else "In the morning"


def python_prompt(settings: config.Config) -> str:
    """The same as Python; a mask is asked of the tokenizer, which knows how it is spelled."""
    if settings.objective.kind == "masked":
        return 'f"The {run.tokenizer.mask_token} in the morning."'
    return json.dumps(prompt(settings))


def trained(facts: Facts) -> str:
    """The commands of jaxlm."""
    where = shlex.quote(one_line(shown_path(facts)))
    steps = 2 * facts.config.training.steps
    lines = [
        f"python -m jaxlm.generate {where} --prompt {shlex.quote(prompt(facts.config))}",
        f"python -m jaxlm.convert export {where} {shlex.quote(one_line(facts.name) + '-hf')}    # for transformers",
    ]
    if facts.trained:
        lines.append(
            f"python -m jaxlm.train --config {where}/config.json training.steps={steps}    # goes on training"
        )
    return code("\n".join(lines), "sh")


def shown_path(facts: Facts) -> str:
    """The run directory as the config has it; of an absolute path the name alone, the rest is nobody's business."""
    path = Path(facts.config.run_directory or facts.name)
    return facts.name if path.is_absolute() or ".." in path.parts else str(path)


def edits(settings: config.Config) -> list[str]:
    """The settings that differ from the defaults, as edits of the command line, without paths."""
    found, default = config.to_dict(settings), config.to_dict(config.Config())
    usual = config.to_dict(config.Config())["data"]["sources"][0] | {"format": "auto"}
    for source in found["data"]["sources"]:
        for key in [
            key
            for key, value in source.items()
            if key == "path" or (key != "name" and value == usual[key])
        ]:
            del source[key]
    shown = (
        (key, value if isinstance(value, str) else json.dumps(value))
        for key, value in differing(found, default, "")
    )
    return [one_line(f"{key}={value}") for key, value in shown if not private(key)]


def private(key: str) -> bool:
    return key.endswith(".path") or any(
        key == hidden or key.startswith(hidden + ".") for hidden in PRIVATE
    )


def differing(found: Any, default: Any, path: str) -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from differing(value, default[key], here)
        elif value != default[key]:
            yield here, value
