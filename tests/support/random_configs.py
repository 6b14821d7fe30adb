"""Random configs of tiny runs over the whole schema, and what becomes of them.

`draw_config` gives every key a value. In most configs the values then go together; the others get
some values that their type allows and that nothing else has looked at.
"""

import contextlib
import dataclasses
import io
import json
import math
import random
import typing
from pathlib import Path
from typing import Any

import jax

from jaxlm.config import Config, fields
from jaxlm.config.data import SPLIT_BY
from jaxlm.config.objective import TRAINED_BY
from support import tiny_run, tokenizer_files

DIVERGED, REFUSED, STEPS, MORE_STEPS = 4, 2, 2, 4

# Keys that stay as they are: they say which machine this is or what else it runs, change the
# process that the tests run in, or are chosen by the test.
KEPT = (
    "run_directory",
    "training.steps",
    "runtime.platform",
    "runtime.compilation_cache",
    "runtime.measure_cpu",
    "runtime.processes",
    "runtime.process",
    "runtime.coordinator",
    "runtime.coordinator_bind",
    "data.store",
    "objective.weight",  # belongs to the parts of a mixture
)

# Values that make a tiny run. Keys that are not here take any value of their type (WILD).
TINY: dict[str, tuple] = {
    "seed": (0, 1, 2**32 - 1),
    "model.vocabulary_size": (300, 384, 500),
    "model.layers": (1, 1, 1, 1, 2, 3),
    "model.heads": (1, 2, 4),
    "model.kv_heads": (None, None, 1, 2),
    "model.mlp_width": (None, 12, 16, 32),
    "model.encoder_layers": (None, 1, 1, 1, 2),
    "model.encoder_heads": (None, 1, 2, 4),
    "model.encoder_kv_heads": (None, None, 1, 2),
    "model.encoder_mlp_width": (None, 16, 20),
    "model.width": (8, 16, 24, 32),
    "model.head_width": (None, None, 4, 6, 8),
    "model.context_length": (16, 24, 32),
    "model.norm_epsilon": (1e-5, 1e-12, 1e-3),
    "model.embedding_width": (None, None, 8, 12, 40),
    "model.token_types": (0, 1, 2),
    "model.position_offset": (0, 0, 2),
    "model.relative_buckets": (4, 8, 32),
    "model.relative_max_distance": (20, 128),
    "model.rotary_theta": (10000.0, 10.0, 1e6),
    "model.rotary_theta_sliding": (None, None, 1000.0),
    "model.rotary_share": (1.0, 0.5, 0.25),
    "model.rotary_scaling_factor": (1.0, 2.0, 8.0),
    "model.rotary_low_frequency_factor": (1.0, 0.5),
    "model.rotary_high_frequency_factor": (4.0, 32.0),
    "model.rotary_original_length": (8, 16, 8192),
    "model.rotary_attention_factor": (None, 1.0, 1.3),
    "model.attention_scale": (None, None, 1.0, 0.1),
    "model.attention_softcap": (None, None, 50.0, 1.0),
    "model.logit_softcap": (None, None, 30.0, 1.0),
    "model.sliding_window": (None, None, 1, 4, 100),
    "model.attention_pattern": (
        (),
        (),
        ("full",),
        ("sliding", "full"),
        ("full", "sliding", "full"),
    ),
    "model.dropout": (0.0, 0.0, 0.1, 0.5),
    "model.attention_dropout": (0.0, 0.0, 0.1, 0.5),
    "model.initializer_std": (0.02, 1e-4, 0.3),
    "objective.parts": (
        ({"kind": "prefix"}, {"kind": "fill_in_the_middle", "weight": 3.0}),
        ({"kind": "masked", "noise_share": 0.4}, {"kind": "masked", "whole_words": True}),
        ({"kind": "span", "denoiser": "S"}, {"kind": "infilling", "decoder_start": "pad"}),
    ),
    "objective.denoiser": (None, "R", "X"),
    "objective.fim_rate": (0.5, 0.0, 1.0),
    "objective.spm_rate": (0.5, 0.0, 1.0),
    "objective.noise_share": (None, 0.15, 0.5),
    "objective.mean_span": (3.0, 1.0, 1.5, 10.0),
    "objective.target_length": (None, 8, 16),
    "tokenizer.vocabulary_size": (None, 290, 300),
    "tokenizer.longest_piece": (None, 256, 16),
    "tokenizer.begin_of_text": (None, "<s>"),
    "tokenizer.pad": ("<pad>",),
    "tokenizer.mask": ("<mask>",),
    "tokenizer.end_of_text": ("<|endoftext|>", "</s>"),
    "tokenizer.sentinels": (8, 20),
    "tokenizer.fim_tokens": (("<P>", "<M>", "<S>"), ("<1>", "<2>", "<3>")),
    "tokenizer.denoiser_tokens": (("[R]", "[S]", "[X]"), ("[NLU]", "[S2S]", "[NLG]")),
    "tokenizer.training_megabytes": (256.0, 0.001),
    "data.sequence_length": (16, 17, 32),
    "data.validation.share": (0.3, 0.5),
    "data.prefetch_batches": (1, 4),
    "data.prefetch_threads": (1, 2),
    "optimizer.learning_rate": (1e-3, 1e-6, 1e-2),
    "optimizer.warmup_steps": (0, 1, 3, 100),
    "optimizer.warmup_start_ratio": (0.0, 0.5, 1.0),
    "optimizer.decay_steps": (None, None, 2, 1000),
    "optimizer.beta1": (0.9, 0.0, 0.999),
    "optimizer.beta2": (0.95, 0.5, 0.9999),
    "optimizer.epsilon": (1e-8, 1e-12, 1e-3),
    "optimizer.weight_decay": (0.1, 0.0, 1.0),
    "optimizer.weight_decay_exclude": (("bias", "norm"), (), ("",), ("nothing", "kernel")),
    "optimizer.gradient_clip": (1.0, None, 1e-3, 1e6),
    "precision.compute": ("float32", "bfloat16"),
    "training.z_loss": (0.0, 1e-4, 0.1),
    "training.loss_tile": (None, None, 1, 5, 16, 1000),
    "training.microbatches": (1, 1, 2, 3),
    "evaluation.every_steps": (0, 1, 2, 3),
    "evaluation.steps": (None, 1, 2),
    "evaluation.draws": (1, 2),
    "evaluation.samples": (0, 0, 0, 1),
    "evaluation.sample_tokens": (1, 4),
    "evaluation.sample_temperature": (0.8, 0.0, 1e-6, 1e30),
    "evaluation.sample_prompt": ("", "the river", "\u6f22"),
    "checkpoint.every_steps": (0, 1, 3),
    "checkpoint.keep": (1, 2, 5),
    "logging.every_steps": (1, 2, 10),
    "runtime.attention": ("auto", "xla"),
    "runtime.initialization_timeout_seconds": (300, 30),
    "runtime.preparation_timeout_seconds": (3600, 30),
    "runtime.heartbeat_timeout_seconds": (100, 30),
}

WILD_FLOATS = (0.0, 1.2e-38, 1e-30, 1e-3, 0.3, 1 - 1e-7, 1.0, 1.5, 7.0, 1e4, 1e30, 3.4e38)
WILD_INTEGERS = (0, 1, 2, 3, 5, 7, 33, 64)
WILD_TEXTS = ("", " ", "the", "\u6f22 \n", "<pad>", "</s>")
MOST_WILD = 3  # values of a config that were not looked at

# The special tokens of each tokenizer file.
FILE_TOKENS = {
    "gpt2": {"end_of_text": "<|endoftext|>", "begin_of_text": None},
    "roberta": {"end_of_text": "</s>", "begin_of_text": "<s>"},
    "bert": {
        "end_of_text": "[SEP]",
        "begin_of_text": "[CLS]",
        "pad": "[PAD]",
        "mask": "[MASK]",
    },
    "t5": {"end_of_text": "</s>", "begin_of_text": None, "sentinels": 8},
    "llama": {"end_of_text": "</s>", "begin_of_text": "<s>"},
}
NEW_TOKENS = ("fill_in_the_middle", "mixture_of_denoisers")  # no file has their tokens
FILES_FOR = {  # objective -> the tokenizer files that have the tokens that it needs
    "masked": ("bert", "roberta"),
    "infilling": ("bert", "roberta"),
    "span": ("t5",),
    "pairs": ("bert", "roberta", "t5"),
}


# Drawing


def leaf_types(cls: type = Config, path: str = "") -> dict[str, Any]:
    """Return the type of every key of the schema, by dotted key; a list of sections is one key."""
    leaves: dict[str, Any] = {}
    for name, annotation in fields.field_types(cls).items():
        key = fields.join(path, name)
        if dataclasses.is_dataclass(annotation):
            leaves |= leaf_types(typing.cast(type, annotation), key)
        else:
            leaves[key] = annotation
    return leaves


LEAVES = leaf_types()


def draw_wild(key: str, draw: random.Random) -> Any:
    """Return a value that the type of a key allows, whatever the other keys are."""
    inner, optional = fields.split_optional(LEAVES[key])
    inner, bounds = fields.split_bounds(inner)
    choices: tuple = WILD_TEXTS
    if typing.get_origin(inner) is typing.Literal:
        choices = typing.get_args(inner)
    elif typing.get_origin(inner) is tuple:
        choices = TINY.get(key, ((), ((1, 3), (3, 6)), ((2, 4),)))
    elif inner is bool:
        choices = (False, True)
    elif inner in (int, float):
        numbers = WILD_INTEGERS if inner is int else WILD_FLOATS
        choices = tuple(number for number in numbers if is_within(number, bounds))
    return draw.choice((*choices, None) if optional else choices)


def is_within(number: float, bounds: fields.Bounds) -> bool:
    """Return whether the bounds of a key allow a number."""
    if (bounds.above and number == bounds.low) or (bounds.below and number == bounds.high):
        return False
    return bounds.low <= number <= bounds.high


def draw_config(seed: int) -> tuple[dict[str, Any], list[str]]:
    """Return a config as values by dotted key, and the keys whose values nothing has looked at."""
    draw = random.Random(seed)
    config = {
        key: draw.choice(TINY[key]) if key in TINY else draw_wild(key, draw)
        for key in LEAVES
        if key not in KEPT and key != "data.sources"
    }
    choose_data(config, draw)
    choose_shape(config, draw)
    choose_training(config, draw)

    wild = []
    if seed % 3 == 2:
        keys = [key for key in config if key not in ("data.sources", "tokenizer.path")]
        wild = draw.sample(keys, draw.randint(1, MOST_WILD))
        config |= {key: draw_wild(key, draw) for key in wild}
    return config, wild


def choose_data(config: dict[str, Any], draw: random.Random) -> None:
    """Choose a family, a tokenizer and sources that the objective can be trained with."""
    kind = config["objective.kind"]
    if kind != "mixture":
        config["objective.parts"] = ()
    parts = config["objective.parts"]
    config["model.family"] = TRAINED_BY[parts[0]["kind"] if parts else kind][0]
    config["model.generator_share"] = 1.0 if kind == "replaced_tokens" else None
    if kind == "replaced_tokens":
        config["model.head_transform"] = True
    if kind not in ("span", "infilling"):
        config["objective.denoiser"] = None
    if parts or kind in NEW_TOKENS or config["objective.denoiser"]:
        config["tokenizer.kind"] = draw.choice(("bytes", "bpe"))
    config["objective.mask_share"], config["objective.random_share"] = draw.choice(
        ((0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5))
    )
    if kind != "pairs":
        config["objective.target_length"] = None

    config["tokenizer.path"] = None
    if config["tokenizer.kind"] == "file":
        name = draw.choice(FILES_FOR.get(kind, tuple(FILE_TOKENS)))
        config["tokenizer.path"] = f"{name}/tokenizer.json"
        config |= {f"tokenizer.{role}": value for role, value in FILE_TOKENS[name].items()}
        config["model.vocabulary_size"] = 500
    if config["tokenizer.kind"] != "bpe":
        config["tokenizer.vocabulary_size"] = None
    if config["tokenizer.kind"] in ("wordpiece", "unigram"):
        config["model.vocabulary_size"] = 500
    splits = (None, *SPLIT_BY.get(config["tokenizer.kind"], ()))
    config["tokenizer.pre_tokenization"] = draw.choice(splits)

    method = config["data.validation.method"]
    if kind == "pairs" and method == "tail":
        method = config["data.validation.method"] = "hash"
    files = [("documents.jsonl", "auto"), ("documents.jsonl", "jsonl")]
    if method != "hash":  # which chooses among documents
        files += [("a.txt", "auto"), ("b.txt", "text")]
    count = draw.choice((1, 1, 1, 2, 3))
    sources = []
    for number in range(count):
        path, form = ("pairs.jsonl", "pairs") if kind == "pairs" else draw.choice(files)
        weight = draw.choice((1.0, 0.25, 3.0, 1e-3, 1e300 if count == 1 else 1e-3))
        sources.append({"name": f"source {number}", "path": path, "format": form, "weight": weight})
    config["data.sources"] = sources

    validation = {"pairs.jsonl": "pairs.jsonl", "documents.jsonl": "validation.jsonl"}
    is_source, first = method == "source", sources[0]["path"]
    config["data.validation.path"] = validation.get(first, "validation.txt") if is_source else None


def choose_shape(config: dict[str, Any], draw: random.Random) -> None:
    """Make the fields of the model go together."""
    model = {key.removeprefix("model."): key for key in config if key.startswith("model.")}

    def keep(name: str, value: Any, condition: bool) -> None:
        if not condition:
            config[model[name]] = value

    def of(name: str) -> Any:
        return config[model[name]]

    family = of("family")
    is_encoder_decoder = family == "encoder_decoder"
    for name in ("layers", "heads", "kv_heads", "mlp_width"):
        keep(f"encoder_{name}", None, is_encoder_decoder)
    keep("shared_embedding", True, is_encoder_decoder)
    keep("token_types", 0, family == "encoder")
    keep("sliding_window", None, not is_encoder_decoder)
    keep("kv_heads", None, of("heads") % (of("kv_heads") or 1) == 0)
    encoder_heads = of("encoder_heads") or of("heads")
    keep("encoder_kv_heads", None, encoder_heads % (of("encoder_kv_heads") or 1) == 0)

    pattern = of("attention_pattern")
    keep("attention_pattern", (), "sliding" not in pattern or of("sliding_window") is not None)
    is_rotary, has_sliding = of("positions") == "rotary", "sliding" in of("attention_pattern")
    keep("rotary_theta_sliding", None, is_rotary and has_sliding)
    keep("rotary_scaling", "none", is_rotary)
    keep("position_offset", 0, of("positions") == "learned")
    if is_rotary:
        width = of("head_width") or of("width") // of("heads")
        keep("rotary_share", 1.0, int(width * of("rotary_share")) // 2 * 2 == 2)
    if of("positions") == "learned":
        lengths = (config["data.sequence_length"], config["objective.target_length"] or 0)
        keep("context_length", max(lengths), max(lengths) <= of("context_length"))

    keep("residual", "serial", of("norm_placement") == "pre")
    keep("first_norm", True, of("norm_placement") == "pre")


def choose_training(config: dict[str, Any], draw: random.Random) -> None:
    """Choose a mesh that divides the model, and batches that it divides."""
    warmup, decay = config["optimizer.warmup_steps"], config["optimizer.decay_steps"]
    if config["optimizer.schedule"] not in ("cosine", "linear") or (decay or math.inf) <= warmup:
        config["optimizer.decay_steps"] = None

    devices = config["runtime.devices"] = draw.choice((1, 1, 2, 2, 4))
    heads = (config["model.heads"], config["model.encoder_heads"])
    heads += (config["model.mlp_width"], config["model.encoder_mlp_width"])
    fitting = [n for n in (1, 2, 4) if devices % n == 0 and not any((h or n) % n for h in heads)]
    tensor = draw.choice(fitting)
    zero = config["parallel.zero"]
    fsdp = draw.choice([n for n in (1, 2, 4) if devices // tensor % n == 0])
    if zero and fsdp == 1:
        fsdp = devices // tensor
    if fsdp == 1 and devices > 1:
        config["parallel.zero"] = 0
    sizes = {"data": devices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}
    rest = draw.choice((None, None, *sizes))
    config |= {f"parallel.{name}": -1 if name == rest else size for name, size in sizes.items()}

    rows = devices // tensor
    unit = rows * config["training.microbatches"]
    config["training.batch_size"] = unit * draw.choice((1, 2))
    changes = draw.choice(((), (), (), (), (), ((1, 2 * unit),), ((2, unit), (3, 3 * unit))))
    config["training.batch_schedule"] = changes
    config["evaluation.batch_size"] = draw.choice((None, None, rows, 2 * rows))


# Running


def write_inputs(folder: Path) -> None:
    """Write the texts, pairs and tokenizer files that the configs name."""
    words = ["the", "tree", "of", "wisdom", "was", "a", "river", "in", "times", "and", "birds"]

    def documents(seed: int, count: int) -> list[str]:
        draw = random.Random(seed)
        return [" ".join(draw.choices(words, k=draw.randint(3, 60))) + "." for _ in range(count)]

    for number, name in enumerate(("a.txt", "b.txt", "validation.txt")):
        (folder / name).write_text("\n\n".join(documents(number, 30)))
    for number, name in enumerate(("documents.jsonl", "validation.jsonl")):
        lines = [json.dumps({"text": text}) for text in documents(3 + number, 30)]
        (folder / name).write_text("\n".join(lines))
    pairs = zip(documents(5, 40), documents(6, 40), strict=True)
    lines = [json.dumps({"source": source, "target": target}) for source, target in pairs]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    for name in FILE_TOKENS:
        tokenizer_files.write(folder / name, name)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write the values as random.json."""
    document: dict[str, Any] = {}
    for key, value in config.items():
        *sections, name = key.split(".")
        section = document
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    (folder / "random.json").write_text(json.dumps(document))


def train(steps: int) -> tuple[int, str]:
    """Train random.json in the working directory; return the exit code and what stderr says."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        code = tiny_run.run(f"training.steps={steps}", recipe="random.json")
    jax.clear_caches()
    return code, errors.getvalue().strip()


def check_seed(folder: Path, seed: int) -> str:
    """Train the config of a seed for two steps in `folder`, resume it to four, and check both.

    Returns "trained", or the one line that refused the config or that says why it diverged.
    """
    config, wild = draw_config(seed)
    write_config(folder, config)
    about = f"seed {seed}, wild { ({key: config[key] for key in wild}) }"

    with contextlib.chdir(folder):
        for steps in (STEPS, MORE_STEPS):
            code, errors = train(steps)
            may_diverge = any(isinstance(config[key], float) for key in wild)
            allowed = {0, DIVERGED} if may_diverge else {0}
            if steps == STEPS:
                allowed.add(REFUSED)
            assert code in allowed, f"{about}, {steps} steps: exit code {code}\n{errors}"
            if code:
                lines = errors.splitlines()
                assert len(lines) == 1 and lines[0].startswith("error: "), f"{about}: {errors}"
                return f"{'diverged' if code == DIVERGED else 'refused'}: {lines[0]}"

            for tag, rows in tiny_run.rows().items():
                finite = all(math.isfinite(value) for _, value in rows)
                assert finite, f"{about}: {tag} is {rows}"
            logged = [step for step, _ in tiny_run.rows()["train/loss"]]
            every = config["logging.every_steps"]
            expected = [n for n in range(1, steps + 1) if n % every == 0 or n in (STEPS, steps)]
            assert logged == expected, f"{about}: rows of the steps {logged}, not {expected}"
    return "trained"
