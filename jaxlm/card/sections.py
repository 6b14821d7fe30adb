"""The generated parts of a card, each a function of the facts to Markdown. The words are plain where nothing is known."""

from collections.abc import Callable

from jaxlm.card import similar_models, usage
from jaxlm.card.facts import Facts, SourceFacts
from jaxlm.card.markdown import (
    PETAFLOP_DAYS,
    about,
    code,
    count,
    hours,
    number,
    percent,
    plain,
    properties,
    scientific,
    table,
)

FAMILIES = {
    "decoder": "decoder (causal language model)",
    "encoder": "encoder",
    "encoder_decoder": "encoder-decoder",
}
OBJECTIVES = {
    "causal": "causal language modelling: the next token from those before it",
    "prefix": "prefix language modelling: the next token after a prefix that sees itself in both directions",
    "masked": "masked language modelling: tokens that were hidden, from both sides",
    "span": "span corruption: spans that were cut out of the text",
    "infilling": "text infilling: the text before spans of it were hidden and its sentences shuffled",
    "pairs": "source-target pairs: a target from its source",
}
PRECISIONS = {
    "bfloat16": "bf16 mixed precision",
    "float16": "fp16 mixed precision",
    "float32": "fp32",
}
TOKENIZERS = {
    "bytes": "bytes",
    "bpe": "byte-level BPE, trained on the training split",
    "file": "from a tokenizer.json",
}
SCORES = {  # tag -> (name, digits)
    "eval/loss": ("loss, nats per target", 5),
    "eval/perplexity": ("perplexity", 5),
    "eval/bits_per_byte": ("bits per byte", 5),
    "eval/masked_accuracy": ("masked accuracy", 4),
    "eval/unigram_entropy": ("unigram entropy of the targets, nats", 5),
    "eval/targets": ("targets", 7),
}
NOT_TRAINED = (
    "No training is on record here: the directory holds the weights and their shape alone."
)


def summary(facts: Facts) -> str:
    model = facts.config.model
    shape = (
        f", of the shape of {similar_models.similar_models(model)}"
        if similar_models.similar_models(model)
        else ""
    )
    found = f"A transformer {FAMILIES[model.family]} of {about(facts.parameters)} parameters{shape}"
    if not facts.trained:
        return f"{found}. {NOT_TRAINED}"
    text = f"{found}, trained with jaxlm on {about(facts.tokens(facts.step))} tokens."
    if facts.imported:
        origin = f"Its first weights were imported from another model ({plain(facts.imported)}), whose training is not counted here"
        return f"{text} {origin}: see that model's card."
    tuned = facts.config.objective.kind == "pairs"
    return (
        text
        if tuned
        else f"{text} It is a pretrained model: it was not tuned to follow instructions or to be safe."
    )


def description(facts: Facts) -> str:
    model = facts.config.model
    objective = (
        [f"- **Objective:** {OBJECTIVES[facts.config.objective.kind]}"] if facts.trained else []
    )
    return "\n".join(
        [
            f"- **Model type:** {FAMILIES[model.family]}"
            + (
                f", like {similar_models.similar_models(model)}"
                if similar_models.similar_models(model)
                else ""
            ),
            *objective,
        ]
    )


def architecture(facts: Facts) -> str:
    model = facts.config.model
    stacks = (
        {"encoder": model.encoder, "decoder": model}
        if model.family == "encoder_decoder"
        else {"": model}
    )
    sizes = [
        ("layers", [stack.layers for stack in stacks.values()]),
        ("attention heads", [stack.heads for stack in stacks.values()]),
        ("key/value heads", [stack.key_value_heads for stack in stacks.values()]),
        ("width of a head", [stack.width_per_head for stack in stacks.values()]),
        ("MLP width", [stack.hidden_width for stack in stacks.values()]),
    ]
    both = [
        ("parameters", facts.parameters),
        ("width", model.width),
        ("token embedding width", model.embedding_width),
        ("vocabulary", model.vocabulary_size),
        ("context window, tokens", model.context_length),
    ]
    words = [
        ("positions", similar_models.positions(model)),
        ("attention", similar_models.attention(model)),
        ("norm", similar_models.norm(model)),
        ("MLP", similar_models.mlp(model)),
        ("head", "the token embedding" if model.tied_head else "of its own"),
    ]
    rows = [(name, count(value)) for name, value in both if value is not None]
    rows += [
        (f"{name} ({where})" if where else name, count(n))
        for name, values in sizes
        for where, n in zip(stacks, values, strict=True)
    ]
    return properties([*rows, *words])


def tokenizer(facts: Facts) -> str:
    settings, objective = facts.config.tokenizer, facts.config.objective
    ids = facts.data.get("tokenizer", {}).get("size")
    needed = {
        name: getattr(settings, name)
        for name in ("end_of_text", "begin_of_text")
        if getattr(settings, name)
    }
    needed |= {name: getattr(settings, name) for name in ("pad", "mask") if name in objective.needs}
    special = [f"{role.replace('_', ' ')} {plain(name)}" for role, name in needed.items()]
    if "sentinels" in objective.needs:
        special.append(f"up to {settings.sentinels} sentinels &lt;extra\\_id\\_0&gt; ...")
    rows = [
        ("kind", TOKENIZERS[settings.kind]),
        ("ids", count(ids) if ids else None),
        ("special tokens", ", ".join(special)),
    ]
    return (
        properties(rows)
        + "\n\nIn text that is read, the names of special tokens are text like any other."
    )


def data(facts: Facts) -> str:
    if not facts.trained:
        return NOT_TRAINED
    found = facts.sources
    unit = "pairs" if any(source.pairs is not None for source in found) else "documents"
    heads = (
        "source",
        "format",
        "share of samples",
        unit,
        "tokens",
        "bytes",
        "tokens of it read",
        "times seen",
    )
    rows = [
        row(source, facts.objective.stride if unit == "documents" else None) for source in found
    ]
    if facts.held:
        rows.append(
            (
                "*held out for validation*",
                "",
                "",
                *map(count, (facts.held.documents, facts.held.tokens, facts.held.bytes)),
                "",
                "",
            )
        )
    validation = facts.config.data.validation
    share = f", share {validation.share:g}" if validation.method != "source" else ""
    method = {
        "hash": "documents chosen by a hash of their text",
        "tail": "the end of each source",
        "source": "files of its own",
    }[validation.method]
    return "\n\n".join(
        [
            table(heads, rows),
            f"Counts are of the training split. Held out: {method}{share}. Up to step {facts.step:,}.",
        ]
    )


def row(source: SourceFacts, stride: int | None) -> tuple[str, ...]:
    amount = source.documents if source.pairs is None else source.pairs
    read = "" if stride is None else count(source.samples * stride)
    seen = "unknown" if source.seen is None else number(source.seen, 3)
    counts = map(count, (amount, source.tokens, source.bytes))
    return (
        plain(source.name),
        source.format.replace("_", " "),
        percent(source.share),
        *counts,
        read,
        seen,
    )


def batches(facts: Facts) -> str:
    """The batch size in sequences and tokens, with its changes up to the step."""
    training, per = facts.config.training, facts.objective.tokens
    ramp = [(start, size) for start, size in training.batch_schedule if start < facts.step]
    shown = f"{training.batch_size:,} sequences, {training.batch_size * per:,} tokens"
    return shown + "".join(
        f"; from step {start:,} on {size:,} sequences, {size * per:,} tokens"
        for start, size in ramp
    )


def rate(facts: Facts) -> str:
    """The schedule of the learning rate in words."""
    of, steps = facts.config.optimizer, facts.config.training.steps
    end = f" to {of.final_learning_rate_ratio:g} of the peak"
    decay = {
        "cosine": f"cosine{end} at step {of.decay_steps or steps:,}",
        "linear": f"linear{end} at step {of.decay_steps or steps:,}",
        "wsd": f"constant, then linear{end} over the last {of.decay_share:.0%}",
    }
    warmup = min(of.warmup_steps, steps)
    start = f" from {of.warmup_start_ratio:g} of the peak" if of.warmup_start_ratio else ""
    return decay.get(of.schedule, of.schedule.replace("_", " ")) + (
        f"; linear warmup over {warmup:,} steps{start}" if warmup else ""
    )


def hyperparameters(facts: Facts) -> str:
    if not facts.trained:
        return NOT_TRAINED
    settings = facts.config
    of, training, mesh = settings.optimizer, settings.training, settings.parallel
    adam = f"AdamW, beta1 {of.beta1:g}, beta2 {of.beta2:g}, epsilon {of.epsilon:g}"
    regime = PRECISIONS[settings.precision.compute]
    split = [
        f"{name} {getattr(mesh, name)}"
        for name in ("data", "fsdp", "tensor")
        if getattr(mesh, name) not in (1, -1)
    ]
    rest = next(
        (f"{name}: the rest" for name in ("data", "fsdp", "tensor") if getattr(mesh, name) == -1),
        None,
    )
    rows = [
        ("optimizer", adam if of.kind == "adamw" else "Adafactor"),
        ("learning rate, peak", f"{of.learning_rate:g}"),
        ("schedule", rate(facts)),
        ("weight decay", f"{of.weight_decay:g}"),
        ("gradient clipping, global norm", of.gradient_clip and f"{of.gradient_clip:g}"),
        ("batch", batches(facts)),
        ("microbatches", training.microbatches if training.microbatches > 1 else None),
        ("tokens of a sample", count(facts.objective.tokens)),
        ("steps", f"{facts.step:,} of {training.steps:,}"),
        ("tokens seen by the model", count(facts.tokens(facts.step))),
        ("dropout", f"{settings.model.dropout:g}" if settings.model.dropout else None),
        ("z-loss", f"{training.z_loss:g}" if training.z_loss else None),
        ("seed", str(settings.seed)),
        ("sharding", ", ".join([f"ZeRO {mesh.zero}", *split, *([rest] if rest else [])])),
    ]
    parts = f"weights {settings.precision.params}, compute {settings.precision.compute}, gradients {settings.precision.gradients}"
    return f"- **Training regime:** {regime} ({parts})\n\n" + properties(rows)


def speed(facts: Facts) -> str:
    if not facts.trained:
        return NOT_TRAINED
    fast, mfu = facts.median("train/tokens_per_second"), facts.median("train/mfu")
    rows = [
        ("tokens per second, median", fast and number(fast)),
        ("MFU, median", mfu and percent(mfu)),
        ("compute, FLOPs", f"{scientific(facts.compute)} ({facts.compute:,})"),
        ("compute, petaFLOP/s-days", number(facts.compute / PETAFLOP_DAYS, 3)),
        ("FLOPs of a sample, forward and backward", f"{facts.flops_per_sample:,}"),
    ]
    notes = "FLOPs are those of the matrix products, forward and backward, recomputation left out. One petaFLOP/s-day is 8.64e19 FLOPs."
    return f"{properties(rows)}\n\n{notes}"


def hardware(facts: Facts) -> str:
    if not facts.starts:
        return "The hardware and the time are not on record."
    rows, total = [], 0.0
    for of in facts.starts:
        # A card of an earlier step than the last one takes its share of the time.
        share = min(1.0, (facts.step - of.first_step) / max(1, of.step - of.first_step))
        total += share * of.seconds * of.devices
        devices = f"{of.devices:,} x {plain(of.device_kind)}"
        steps = f"{of.first_step + 1:,}-{min(of.step, facts.step):,}"
        rows.append((of.began[:10], steps, devices, count(of.processes), hours(share * of.seconds)))
    listed = table(("began (UTC)", "steps", "devices", "processes", "time"), rows)
    missing = facts.step - covered(facts)
    gap = f" Of {missing:,} steps the time is not on record." if missing else ""
    return f"{listed}\n\nIn all {total / 3600:,.3g} device hours up to the last save of each start, with compilation and evaluation.{gap}"


def covered(facts: Facts) -> int:
    """Steps that some start has run, each counted once."""
    done = reached = 0
    for of in sorted(facts.starts, key=lambda of: of.first_step):
        end = min(of.step, facts.step)
        done += max(0, end - max(of.first_step, reached))
        reached = max(reached, end)
    return done


def results(facts: Facts) -> str:
    if not facts.evaluated:
        return "No evaluation is on record."
    columns = {f"step {facts.evaluated[-1]:,} (last)": facts.scores(facts.evaluated[-1])}
    if facts.best is not None and facts.best != facts.evaluated[-1]:
        columns[f"step {facts.best:,} (lowest loss)"] = facts.scores(facts.best)
    found = [tag for tag in SCORES if any(tag in scores for scores in columns.values())]
    rows = [
        (
            SCORES[tag][0],
            *(
                number(scores[tag], SCORES[tag][1]) if tag in scores else ""
                for scores in columns.values()
            ),
        )
        for tag in found
    ]
    if "eval/bits_per_byte" in found and facts.held:
        rows += [
            (f"{name}, bits per byte of the validation text", *[number(value, 5)] * len(columns))
            for name, value in facts.held.packed.items()
        ]
    return table(("", *columns), rows)


def curves(facts: Facts) -> str:
    if not any(facts.curves.get(tag) for tag in ("train/loss", "eval/loss")):
        return "No losses are on record."
    return "![Training and validation loss](loss.svg)"


def testing(facts: Facts) -> str:
    held = facts.held
    amount = f": {held.tokens:,} tokens, {held.bytes:,} bytes" if held else ""
    return f"The validation split that was held out of the training data{amount}. It comes from the same sources, the same windows each time."


def software(facts: Facts) -> str:
    found = [f"{plain(name)} {plain(version)}" for name, version in facts.versions.items()]
    return ", ".join(found) or "The versions are not on record."


def reproducing(facts: Facts) -> str:
    if not facts.trained:
        return NOT_TRAINED
    edits = "\n".join(usage.edits(facts.config))
    hash_ = f" The prepared data has the hash {plain(facts.store)}." if facts.store else ""
    words = "A run is a function of its config, data and devices. Settings that differ from jaxlm's defaults (where files lie is left out):"
    return f"{words}\n\n{code(edits, 'text')}\n\nSeed {facts.config.seed}.{hash_}"


PARTS: dict[str, Callable[[Facts], str]] = {
    "summary": summary,
    "description": description,
    "usage": usage.usage,
    "data": data,
    "tokenizer": tokenizer,
    "hyperparameters": hyperparameters,
    "speed": speed,
    "testing": testing,
    "results": results,
    "curves": curves,
    "hardware": hardware,
    "software": software,
    "architecture": architecture,
    "reproducing": reproducing,
}
