"""The parts of a card about training: data, hyperparameters, speed, hardware, results."""

from collections import Counter
from typing import Any

from jaxlm.card.facts import Facts, SourceFacts
from jaxlm.card.model_sections import NOT_TRAINED, config_edits
from jaxlm.config import OptimizerConfig
from jaxlm.markdown import (
    PETAFLOP_DAYS,
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

PRECISIONS = {
    "bfloat16": "bf16 mixed precision",
    "float16": "fp16 mixed precision",
    "float32": "fp32",
}
TOKENIZERS = {
    "bytes": "bytes",
    "bpe": "byte-level BPE, trained on the training split",
    "wordpiece": "WordPiece, trained on the training split",
    "unigram": "Unigram with byte fallback, trained on the training split",
    "file": "from a file",
}
VALIDATION_METHODS = {
    "hash": "documents chosen by a hash of their text",
    "tail": "the end of each source",
    "source": "files of its own",
}
SCORES = {  # tag -> (name, digits)
    "eval/loss": ("loss, nats per target", 5),
    "eval/ema_loss": ("loss of the averaged weights", 5),
    "eval/perplexity": ("perplexity", 5),
    "eval/bits_per_byte": ("bits per byte", 5),
    "eval/masked_accuracy": ("masked accuracy", 4),
    "eval/accuracy": ("accuracy", 5),
    "eval/macro_f1": ("macro F1", 5),
    "eval/micro_f1": ("micro F1", 5),
    "eval/matthews": ("Matthews correlation", 5),
    "eval/entity_f1": ("F1 of entities", 5),
    "eval/spearman": ("Spearman correlation", 5),
    "eval/pearson": ("Pearson correlation", 5),
    "eval/mse": ("mean squared error", 5),
    "eval/reward_accuracy": ("share of the pairs whose better answer has the higher reward", 5),
    "eval/reward_margin": ("margin of the rewards", 5),
    "eval/unigram_entropy": ("unigram entropy of the targets, nats", 5),
    "eval/targets": ("targets", 7),
}
DETECTION_SCORES = {  # of a model with a generator, whose targets the generator fills
    "eval/loss": ("loss: the generator's, and the detection's times its weight", 5),
    "eval/ema_loss": ("loss of the averaged weights", 5),
    "eval/detection_loss": ("detection loss, nats per token", 5),
    "eval/detection_accuracy": ("detection accuracy", 5),
    "eval/replaced_share": ("share of the tokens that were replaced", 5),
    "eval/generator_loss": ("loss of the generator, nats per target", 5),
    "eval/generator_perplexity": ("perplexity of the generator", 5),
    "eval/masked_accuracy": ("masked accuracy of the generator", 4),
    "eval/unigram_entropy": SCORES["eval/unigram_entropy"],
    "eval/targets": SCORES["eval/targets"],
}


def tokenizer(facts: Facts) -> str:
    config, needs = facts.config.tokenizer, facts.config.objective.needs
    ids = facts.data.get("tokenizer", {}).get("size")

    special = [f"end of text {plain(config.end_of_text)}"]
    if config.begin_of_text:
        special.append(f"begin of text {plain(config.begin_of_text)}")
    if "pad" in needs:
        special.append(f"pad {plain(config.pad)}")
    if "mask" in needs:
        special.append(f"mask {plain(config.mask)}")
    if "sentinels" in needs:
        special.append(f"up to {config.sentinels} sentinels &lt;extra\\_id\\_0&gt; ...")
    for need, names in (("fim", config.fim_tokens), ("denoisers", config.denoiser_tokens)):
        if need in needs:
            special += map(plain, names)

    rows = [
        ("kind", TOKENIZERS[config.kind]),
        ("ids", count(ids) if ids else None),
        ("special tokens", ", ".join(special)),
    ]
    note = "In text that is read, the names of special tokens are text like any other."
    return f"{properties(rows)}\n\n{note}"


def data(facts: Facts) -> str:
    if not facts.trained:
        return NOT_TRAINED

    unit = "documents"
    if any(source.examples is not None for source in facts.sources):
        unit = "pairs" if facts.config.objective.kind == "pairs" else "examples"
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
    stride = facts.objective.stride if unit == "documents" else None
    rows = [source_row(source, stride) for source in facts.sources]
    if split := facts.validation:
        counts = map(count, (split.documents, split.tokens, split.bytes))
        rows.append(("*held out for validation*", "", "", *counts, "", ""))

    validation = facts.config.data.validation
    held_out = VALIDATION_METHODS[validation.method]
    if validation.method != "source":
        held_out += f", share {validation.share:g}"
    note = f"Counts are of the training split. Held out: {held_out}. Up to step {facts.step:,}."
    return f"{table(heads, rows)}\n\n{note}{dropped_documents(facts)}"


def dropped_documents(facts: Facts) -> str:
    """Return a sentence about what the preparation dropped, or ""."""
    counts: Counter[str] = Counter()
    for dropped in facts.data.get("dropped", {}).values():
        counts.update(dropped)
    reasons = ", ".join(
        f"{number:,} {reason.replace('_', ' ')}" for reason, number in counts.items()
    )
    return f" Documents that were dropped before: {reasons}." if reasons else ""


def source_row(source: SourceFacts, stride: int | None) -> tuple[str, ...]:
    """Return the cells of a source; without a `stride` its samples are examples."""
    return (
        plain(source.name),
        source.format.replace("_", " "),
        percent(source.share),
        count(source.documents if source.examples is None else source.examples),
        count(source.tokens),
        count(source.bytes),
        "" if stride is None else count(source.samples * stride),
        "unknown" if source.epochs is None else number(source.epochs, 3),
    )


def hyperparameters(facts: Facts) -> str:
    if not facts.trained:
        return NOT_TRAINED

    config = facts.config
    optimizer, training, precision = config.optimizer, config.training, config.precision
    detects = config.model.generator_share is not None
    rows = [
        ("optimizer", describe_optimizer(optimizer)),
        ("learning rate, peak", f"{optimizer.learning_rate:g}"),
        ("schedule", describe_schedule(facts)),
        ("weight decay", f"{optimizer.weight_decay:g}"),
        ("groups of parameters", describe_groups(optimizer)),
        ("frozen parameters", ", ".join(optimizer.frozen) or None),
        (
            "gradient clipping, global norm",
            optimizer.gradient_clip and f"{optimizer.gradient_clip:g}",
        ),
        ("batch", describe_batches(facts)),
        ("microbatches", training.microbatches if training.microbatches > 1 else None),
        ("tokens of a sample", count(facts.objective.tokens)),
        ("steps", f"{facts.step:,} of {training.steps:,}"),
        ("tokens seen by the model", count(facts.tokens(facts.step))),
        ("dropout", f"{config.model.dropout:g}" if config.model.dropout else None),
        ("weight of the detection", f"{training.detection_weight:g}" if detects else None),
        ("z-loss", f"{training.z_loss:g}" if training.z_loss else None),
        ("seed", str(config.seed)),
        ("sharding", describe_sharding(facts)),
    ]
    regime = (
        f"{PRECISIONS[precision.compute]} (weights {precision.params}, "
        f"compute {precision.compute}, gradients {precision.gradients})"
    )
    if precision.matmul is not None:
        regime += f", products with the weights of blocks in {precision.matmul}"
    return f"- **Training regime:** {regime}\n\n{properties(rows)}"


def describe_optimizer(config: OptimizerConfig) -> str:
    """Describe the optimizer and the constants that it reads."""
    betas = f"beta1 {config.beta1:g}, beta2 {config.beta2:g}"
    adam = f"AdamW, {betas}, epsilon {config.epsilon:g}"
    momentum = "" if config.momentum is None else f", momentum {config.momentum:g}"
    rate = config.rest_learning_rate or config.learning_rate
    rest = f"embeddings, head, norms and biases: {adam}, peak {rate:g}"
    names = {
        "adamw": adam,
        "adafactor": f"Adafactor{momentum}",
        "lion": f"Lion, {betas}",
        "muon": f"Muon{momentum}; {rest}",
        "schedule_free": f"schedule-free {adam}",
        "sgd": f"SGD{momentum}",
        "shampoo": f"Shampoo, {betas}; {rest}",
    }
    moments = dict.fromkeys((config.first_moment, config.second_moment))
    formats = "" if set(moments) == {"float32"} else f"; moments {', '.join(moments)}"
    return names[config.kind] + formats


def describe_groups(config: OptimizerConfig) -> str | None:
    """Describe the groups with rates and decays of their own, and layer-wise decay."""
    texts = []
    for group in config.groups:
        decay = "" if group.weight_decay is None else f", weight decay {group.weight_decay:g}"
        texts.append(f"{group.parameters}: rate x {group.learning_rate_ratio:g}{decay}")
    if config.layer_decay != 1.0:
        texts.append(f"each layer: rate x {config.layer_decay:g} of the one above")
    return "; ".join(texts) or None


def describe_schedule(facts: Facts) -> str:
    """Describe the schedule of the learning rate."""
    optimizer, steps = facts.config.optimizer, facts.config.training.steps
    end = f" to {optimizer.final_learning_rate_ratio:g} of the peak"
    decays = {
        "cosine": f"cosine{end} at step {optimizer.decay_steps or steps:,}",
        "linear": f"linear{end} at step {optimizer.decay_steps or steps:,}",
        "wsd": f"constant, then {optimizer.cooldown_shape}{end} over the last "
        f"{optimizer.decay_share:.0%}",
    }
    text = decays.get(optimizer.schedule, optimizer.schedule.replace("_", " "))

    warmup = min(optimizer.warmup_steps, steps)
    if warmup:
        text += f"; linear warmup over {warmup:,} steps"
        if optimizer.warmup_start_ratio:
            text += f" from {optimizer.warmup_start_ratio:g} of the peak"
    return text


def describe_batches(facts: Facts) -> str:
    """Describe the batch size in sequences and tokens, with its changes up to the step."""
    training, tokens = facts.config.training, facts.objective.tokens
    text = f"{training.batch_size:,} sequences, {training.batch_size * tokens:,} tokens"
    for start, size in training.batch_schedule:
        if start < facts.step:
            text += f"; from step {start:,} on {size:,} sequences, {size * tokens:,} tokens"
    return text


def describe_sharding(facts: Facts) -> str:
    mesh = facts.config.parallel
    parts, rest = [f"ZeRO {mesh.zero}"], []
    for axis in ("data", "fsdp", "tensor"):
        size = getattr(mesh, axis)
        if size == -1:
            rest.append(f"{axis}: the rest")
        elif size != 1:
            parts.append(f"{axis} {size}")
    return ", ".join([*parts, *rest[:1]])


def speed(facts: Facts) -> str:
    if not facts.trained:
        return NOT_TRAINED

    tokens_per_second, mfu = facts.median("train/tokens_per_second"), facts.median("train/mfu")
    rows = [
        ("tokens per second, median", tokens_per_second and number(tokens_per_second)),
        ("MFU, median", mfu and percent(mfu)),
        ("compute, FLOPs", f"{scientific(facts.compute)} ({facts.compute:,})"),
        ("compute, petaFLOP/s-days", number(facts.compute / PETAFLOP_DAYS, 3)),
        ("FLOPs of a sample, forward and backward", f"{facts.flops_per_sample:,}"),
    ]
    note = (
        "FLOPs are those of the matrix products, forward and backward, without recomputation. "
        "One petaFLOP/s-day is 8.64e19 FLOPs."
    )
    return f"{properties(rows)}\n\n{note}"


def hardware(facts: Facts) -> str:
    if not facts.starts:
        return "The hardware and the time are not on record."

    rows, device_seconds = [], 0.0
    for start in facts.starts:
        # The card of a step before the last one takes its share of the time.
        steps = max(1, start.step - start.first_step)
        seconds = start.seconds * min(1.0, (facts.step - start.first_step) / steps)
        device_seconds += seconds * start.devices
        rows.append(
            (
                start.began[:10],
                f"{start.first_step + 1:,}-{min(start.step, facts.step):,}",
                f"{start.devices:,} x {plain(start.device_kind)}",
                count(start.processes),
                hours(seconds),
            )
        )

    note = (
        f"In all {device_seconds / 3600:,.3g} device hours up to the last save of each start, "
        "with compilation and evaluation."
    )
    if missing := facts.step - recorded_steps(facts):
        note += f" Of {missing:,} steps the time is not on record."
    return f"{table(('began (UTC)', 'steps', 'devices', 'processes', 'time'), rows)}\n\n{note}"


def recorded_steps(facts: Facts) -> int:
    """Return how many steps some start has run, each counted once."""
    done = reached = 0
    for start in sorted(facts.starts, key=lambda start: start.first_step):
        end = min(start.step, facts.step)
        done += max(0, end - max(start.first_step, reached))
        reached = max(reached, end)
    return done


def results(facts: Facts) -> str:
    """Return the table of the last evaluation and of the best, beside compressors of the text."""
    if not facts.evaluated_steps:
        return "No evaluation is on record."

    last, best = facts.evaluated_steps[-1], facts.best_step
    columns = {f"step {last:,} (last)": facts.scores(last)}
    if best is not None and best != last:
        figure, name = facts.config.checkpoint.best, "lowest loss"
        if figure != "eval/loss":
            name = f"best {SCORES[figure][0]}"
        columns[f"step {best:,} ({name})"] = facts.scores(best)

    rows: list[tuple[Any, ...]] = []
    detects = facts.config.model.generator_share is not None
    for tag, (name, digits) in (DETECTION_SCORES if detects else SCORES).items():
        values = [scores.get(tag) for scores in columns.values()]
        if any(value is not None for value in values):
            shown = ["" if value is None else number(value, digits) for value in values]
            rows.append((name, *shown))

    if facts.validation and any("eval/bits_per_byte" in scores for scores in columns.values()):
        for name, bits in facts.validation.compressed.items():
            shown = [number(bits, 5)] * len(columns)
            rows.append((f"{name}, bits per byte of the validation text", *shown))
    return table(("", *columns), rows)


def curves(facts: Facts) -> str:
    if not any(facts.curves.get(tag) for tag in ("train/loss", "eval/loss")):
        return "No losses are on record."
    return "![Training and validation loss](loss.svg)"


def testing(facts: Facts) -> str:
    split = facts.validation
    amount = f": {split.tokens:,} tokens, {split.bytes:,} bytes" if split else ""
    return (
        f"The validation split that was held out of the training data{amount}. "
        "It comes from the same sources, the same windows each time."
    )


def software(facts: Facts) -> str:
    versions = [f"{plain(name)} {plain(version)}" for name, version in facts.versions.items()]
    return ", ".join(versions) or "The versions are not on record."


def reproducing(facts: Facts) -> str:
    if not facts.trained:
        return NOT_TRAINED

    introduction = (
        "A run is a function of its config, data and devices. Settings that differ from jaxlm's "
        "defaults (where files lie is left out):"
    )
    edits = code("\n".join(config_edits(facts.config)), "text")
    seed = f"Seed {facts.config.seed}."
    if facts.store:
        seed += f" The prepared data has the hash {plain(facts.store)}."
    return f"{introduction}\n\n{edits}\n\n{seed}"
