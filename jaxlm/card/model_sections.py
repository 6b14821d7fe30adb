"""The parts of a card about the model: what it is, its shape, how to use it."""

import json
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxlm import config as config_module
from jaxlm.card import tuning_sections
from jaxlm.card.facts import Facts
from jaxlm.card.tuning_sections import EXPORT_FOLDER, TASKS, TUNED_OBJECTIVES
from jaxlm.config import Config, ModelConfig
from jaxlm.markdown import about, code, count, one_line, plain, properties

FAMILIES = {
    "decoder": "decoder (causal language model)",
    "encoder": "encoder",
    "encoder_decoder": "encoder-decoder",
}
OBJECTIVES = {
    "causal": "causal language modelling: the next token from those before it",
    "prefix": "prefix language modelling: the next token after a prefix that is read in both "
    "directions",
    "fill_in_the_middle": "the next token, where the middle of some documents was moved behind "
    "their prefix and suffix",
    "masked": "masked language modelling: hidden tokens, from both sides",
    "replaced_tokens": "replaced-token detection: which tokens of a text are not its own, where a "
    "small generator, trained beside it, has filled the hidden ones",
    "span": "span corruption: spans that were cut out of the text",
    "infilling": "text infilling: the text before spans of it were hidden and its sentences "
    "shuffled",
    "pairs": "source-target pairs: a target from its source",
    "mixture_of_denoisers": "mixture of denoisers (UL2): spans that were cut out of the text in "
    "one of seven ways",
    **TUNED_OBJECTIVES,
}
NOT_TRAINED = (
    "No training is on record here: the directory holds the weights and their shape alone."
)


def summary(facts: Facts) -> str:
    model = facts.config.model
    text = f"A transformer {FAMILIES[model.family]} of {about(facts.parameters)} parameters"
    if name := similar_model(model):
        text += f", of the shape of {name}"

    if not facts.trained:
        return f"{text}. {NOT_TRAINED}"

    text += f", trained with jaxlm on {about(facts.tokens(facts.step))} tokens."
    if facts.imported:
        return (
            f"{text} Its first weights were imported from another model ({plain(facts.imported)}), "
            "whose training is not counted here: see that model's card."
        )
    if tuning := tuning_sections.summarize_tuning(facts):
        return f"{text} {tuning}"
    if facts.config.objective.kind == "pairs":
        return text
    return (
        f"{text} It is a pretrained model: it was not tuned to follow instructions or to be safe."
    )


def description(facts: Facts) -> str:
    model = facts.config.model
    name = similar_model(model)
    lines = [f"- **Model type:** {FAMILIES[model.family]}" + (f", like {name}" if name else "")]
    if facts.trained:
        lines.append(f"- **Objective:** {describe_objective(facts.config)}")
    return "\n".join([*lines, *tuning_sections.describe_tuning(facts)])


def describe_objective(config: Config) -> str:
    """Return what the model learned to predict; of a mixture, the parts with their shares."""
    objective = config.objective
    if objective.kind == "classify":
        return tuning_sections.describe_task(config.model.classifier)
    if not objective.parts:
        return OBJECTIVES[objective.kind]
    total = sum(part.weight for part in objective.parts)
    parts = [f"{part.weight / total:.3g} {OBJECTIVES[part.kind]}" for part in objective.parts]
    return f"a mixture by shares of the samples: {'; '.join(parts)}"


# The shape


class SimilarModel(NamedTuple):
    """A published model, and the fields of ModelConfig that a model like it has in common."""

    name: str
    family: str
    fields: dict[str, Any]


# The first that fits. Sizes are left open, and so are biases and the like, which vary within a
# family of models.
SIMILAR_MODELS = (
    SimilarModel(
        "Gemma 2",
        "decoder",
        {"norm_placement": "both", "norm": "rmsnorm", "positions": "rotary", "gated": True},
    ),
    SimilarModel(
        "GPT-NeoX",
        "decoder",
        {"residual": "parallel", "positions": "rotary", "norm": "layernorm", "gated": False},
    ),
    SimilarModel(
        "BLOOM",
        "decoder",
        {"positions": "alibi", "norm": "layernorm", "embedding_norm": True, "gated": False},
    ),
    SimilarModel(
        "Llama",
        "decoder",
        {
            "positions": "rotary",
            "norm": "rmsnorm",
            "gated": True,
            "activation": "silu",
            "norm_placement": "pre",
        },
    ),
    SimilarModel(
        "OPT",
        "decoder",
        {"positions": "learned", "norm": "layernorm", "activation": "relu", "gated": False},
    ),
    SimilarModel(
        "GPT-2",
        "decoder",
        {
            "positions": "learned",
            "norm": "layernorm",
            "norm_placement": "pre",
            "activation": "gelu_tanh",
            "gated": False,
        },
    ),
    SimilarModel(
        "ModernBERT", "encoder", {"positions": "rotary", "norm_placement": "pre", "gated": True}
    ),
    SimilarModel(
        "RoBERTa",
        "encoder",
        {"positions": "learned", "norm_placement": "post", "position_offset": 2, "gated": False},
    ),
    SimilarModel(
        "BERT",
        "encoder",
        {"positions": "learned", "norm_placement": "post", "position_offset": 0, "gated": False},
    ),
    SimilarModel(
        "T5 v1.1", "encoder_decoder", {"positions": "relative", "norm": "rmsnorm", "gated": True}
    ),
    SimilarModel(
        "T5",
        "encoder_decoder",
        {"positions": "relative", "norm": "rmsnorm", "activation": "relu", "gated": False},
    ),
    SimilarModel(
        "BART",
        "encoder_decoder",
        {"positions": "learned", "norm_placement": "post", "embedding_norm": True},
    ),
    SimilarModel(
        "the original Transformer",
        "encoder_decoder",
        {"positions": "sinusoidal", "norm_placement": "post"},
    ),
)

ACTIVATIONS = {
    "gelu": "GELU",
    "gelu_tanh": "GELU (tanh)",
    "relu": "ReLU",
    "relu_squared": "squared ReLU",
    "silu": "SiLU",
}
NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
PLACEMENTS = {
    "pre": "before each sublayer",
    "post": "after each sublayer and its residual",
    "both": "before each sublayer and on its output",
}


def similar_model(model: ModelConfig) -> str:
    """Return the name of the published model of this shape; "" if none is near."""
    if model.generator_share is not None:
        return "ELECTRA"
    for similar in SIMILAR_MODELS:
        same = (getattr(model, key) == value for key, value in similar.fields.items())
        if similar.family == model.family and all(same):
            return similar.name
    return ""


def architecture(facts: Facts) -> str:
    """Return the table of sizes, each stack of an encoder-decoder by itself, and of the layers."""
    model = facts.config.model
    rows = [
        ("parameters", count(facts.parameters)),
        ("width", count(model.width)),
        ("vocabulary", count(model.vocabulary_size)),
        ("context window, tokens", count(model.context_length)),
    ]
    if model.embedding_width is not None:
        rows.insert(2, ("token embedding width", count(model.embedding_width)))

    stacks = {"": model}
    if model.family == "encoder_decoder":
        stacks = {" (encoder)": model.encoder, " (decoder)": model}
    sizes = {
        "layers": lambda stack: stack.layers,
        "attention heads": lambda stack: stack.heads,
        "key/value heads": lambda stack: stack.key_value_heads,
        "width of a head": lambda stack: stack.width_per_head,
        "MLP width": lambda stack: stack.hidden_width,
    }
    for name, size in sizes.items():
        rows += [(f"{name}{where}", count(size(stack))) for where, stack in stacks.items()]

    rows += [
        ("positions", describe_positions(model)),
        ("attention", describe_attention(model)),
        ("norm", f"{NORMS[model.norm]}, {PLACEMENTS[model.norm_placement]}"),
        ("MLP", ("gated, " if model.gated else "") + ACTIVATIONS[model.activation]),
        ("head", "the token embedding" if model.tied_head else "of its own"),
    ]
    if model.generator is not None:
        width, heads, mlp = (
            count(getattr(model.generator, name)) for name in ("width", "heads", "hidden_width")
        )
        text = f"width {width}, heads {heads}, MLP width {mlp}, the same embeddings"
        rows[-1] = ("head", "one logit per token: is it another than the text's?")
        rows.append(("generator, which replaces tokens in training", text))
    return properties(rows)


def describe_positions(model: ModelConfig) -> str:
    if model.positions == "rotary":
        text = f"rotary, theta {model.rotary_theta:,.0f}"
        if model.rotary_share != 1:
            text += f", {model.rotary_share:.0%} of each head"
        if model.rotary_scaling != "none":
            text += f", {model.rotary_scaling} scaling by {model.rotary_scaling_factor:g}"
        return text
    if model.positions == "relative":
        distance = model.relative_max_distance
        return f"relative, {model.relative_buckets} buckets up to distance {distance}"
    return {"alibi": "ALiBi"}.get(model.positions, model.positions)


def describe_attention(model: ModelConfig) -> str:
    if model.sliding_window is None:
        return "full"
    text = f"sliding window of {model.sliding_window:,}"
    if model.attention_pattern:
        text += f"; layers in turn: {', '.join(model.attention_pattern)}"
    return text


# How to use it: commands for a run directory, a snippet of `transformers` for an exported one

PIPELINE_SNIPPET = """from transformers import pipeline

run = pipeline("{task}", model="{folder}")
print(run({prompt}{options}))"""

SEQ2SEQ_SNIPPET = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSeq2SeqLM.from_pretrained("{folder}")
inputs = tokenizer({prompt}, return_tensors="pt")
written = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], \
max_new_tokens=64)
print(tokenizer.decode(written[0], skip_special_tokens={skip}))"""


def usage(facts: Facts) -> str:
    if facts.config.model.classifier.kind != "none":
        return tuning_sections.label_usage(facts)
    return usage_of_export(facts) if facts.exported else usage_of_run(facts)


def usage_of_export(facts: Facts) -> str:
    family = facts.config.model.family
    if family == "encoder_decoder":
        text = SEQ2SEQ_SNIPPET.format(
            folder=EXPORT_FOLDER,
            prompt=json.dumps(example_prompt(facts.config)),
            skip=facts.config.objective.mixed[0].kind != "span",
        )
    else:
        # A mask is asked of the tokenizer, which knows how it is spelled.
        masked = facts.config.objective.mixed[0].kind in ("masked", "replaced_tokens")
        filler = "/generator" if facts.config.model.generator_share is not None else ""
        prompt = 'f"The {run.tokenizer.mask_token} in the morning."'
        text = PIPELINE_SNIPPET.format(
            task=TASKS[family],
            folder=EXPORT_FOLDER + filler,
            prompt=prompt if masked else json.dumps(example_prompt(facts.config)),
            options=", max_new_tokens=50" if family == "decoder" else "",
        )

    return "Install `transformers` and `torch`, then:\n\n" + code(text, "python")


def usage_of_run(facts: Facts) -> str:
    folder = shlex.quote(one_line(facts.shown_directory))
    prompt = shlex.quote(example_prompt(facts.config))
    export = shlex.quote(one_line(facts.name) + "-hf")

    lines = [
        f"python -m jaxlm.generate {folder} --prompt {prompt}",
        f"python -m jaxlm.convert export {folder} {export}    # for transformers",
    ]
    if facts.trained:
        steps = 2 * facts.config.training.steps
        lines.append(
            f"python -m jaxlm.train --config {folder}/config.json training.steps={steps}"
            "    # continues training"
        )
    return code("\n".join(lines), "sh")


def example_prompt(config: Config) -> str:
    """Return a text to complete, with a mask or sentinel where the objective has one."""
    first = config.objective.mixed[0]
    kind = first.kind
    if kind == "span":
        # The token of a denoiser, where the source begins with one.
        tokens = dict(zip("RSX", config.tokenizer.denoiser_tokens, strict=True))
        begin = f"{one_line(tokens[first.denoiser])} " if first.denoiser else ""
        return f"{begin}The <extra_id_0> in the morning."
    if kind in ("masked", "replaced_tokens", "infilling"):
        return f"The {one_line(config.tokenizer.mask)} in the morning."
    return "In the morning"


# The config

# Where files lie, how a process is set up and what is shown: nothing that the weights depend on.
PRIVATE_KEYS = (
    "run_directory",
    "data.store",
    "runtime",
    "logging",
    "checkpoint",
    "evaluation.samples",
    "evaluation.sample_prompt",
)


def config_edits(config: Config) -> list[str]:
    """Return what differs from the defaults as edits of the command line, without paths."""
    document = config_module.to_dict(config)
    defaults = config_module.to_dict(Config())

    source_defaults = defaults["data"]["sources"][0] | {"format": "auto"}
    for source in document["data"]["sources"]:
        for key in list(source):
            if key == "path" or (key != "name" and source[key] == source_defaults[key]):
                del source[key]

    for part in document["objective"]["parts"]:
        for key in list(part):
            if key != "kind" and part[key] == defaults["objective"][key]:
                del part[key]

    edits = []
    for key, value in changed_values(document, defaults, ""):
        if not is_private(key):
            text = value if isinstance(value, str) else json.dumps(value)
            edits.append(one_line(f"{key}={text}"))
    return edits


def is_private(key: str) -> bool:
    hidden = any(key == name or key.startswith(f"{name}.") for name in PRIVATE_KEYS)
    return hidden or key.endswith(".path")


def changed_values(document: Any, defaults: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of everything that differs from the defaults."""
    for key, value in document.items():
        full_key = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from changed_values(value, defaults[key], full_key)
        elif value != defaults[key]:
            yield full_key, value
