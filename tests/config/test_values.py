"""Values that a config refuses, in Python and as an edit: one line that names the key."""

import ast
import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from jaxlm import config
from jaxlm.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    SourceConfig,
    TrainingConfig,
    adapter,
    classifier,
    data,
    fields,
    model,
    objective,
    schema,
    training,
)
from jaxlm.config import runtime as runtime_section

SECTIONS = (schema, model, classifier, adapter, objective, data, training, runtime_section)


def edit_mistake(*edits):
    with pytest.raises(ConfigError) as caught:
        config.apply_edits(Config(), edits)
    return caught.value


WRONG = [  # a section, a wrong value and what the message says of it
    (ModelConfig, {"layrs": 3}, "model.layrs: unknown key (did you mean 'layers'?)"),
    (ModelConfig, {"layers": True}, "model.layers: must be a whole number, got True"),
    (ModelConfig, {"layers": 3.0}, "model.layers: must be a whole number, got 3.0"),
    (ModelConfig, {"layers": "3"}, "model.layers: must be a whole number, got '3'"),
    (ModelConfig, {"layers": [3]}, "model.layers: must be a whole number, got [3]"),
    (ModelConfig, {"layers": None}, "model.layers: must be a whole number, got None"),
    (ModelConfig, {"kv_heads": "all"}, "model.kv_heads: must be a whole number or none, got 'all'"),
    (ModelConfig, {"gated": 1}, "model.gated: must be true or false, got 1"),
    (
        ModelConfig,
        {"norm": "rmsnrm"},
        "model.norm: must be one of 'layernorm', 'rmsnorm', got 'rmsnrm' (did you mean 'rmsnorm'?)",
    ),
    (ModelConfig, {"norm": None}, "model.norm: must be one of 'layernorm', 'rmsnorm', got None"),
    (ModelConfig, {"layers": 0}, "model.layers: must be at least 1, got 0"),
    (ModelConfig, {"dropout": 1.0}, "model.dropout: must be below 1, got 1.0"),
    (ModelConfig, {"dropout": -0.1}, "model.dropout: must be at least 0, got -0.1"),
    (ParallelConfig, {"zero": True}, "parallel.zero: must be one of 0, 1, 2, 3, got True"),
    (ParallelConfig, {"zero": "1"}, "parallel.zero: must be one of 0, 1, 2, 3, got '1'"),
    (
        OptimizerConfig,
        {"learning_rate": "3e-4"},
        "optimizer.learning_rate: must be a number, got '3e-4'",
    ),
    (
        OptimizerConfig,
        {"learning_rate": False},
        "optimizer.learning_rate: must be a number, got False",
    ),
    (OptimizerConfig, {"learning_rate": 0}, "optimizer.learning_rate: must be above 0, got 0.0"),
    (
        OptimizerConfig,
        {"learning_rate": float("nan")},
        "optimizer.learning_rate: must be finite, got nan",
    ),
    (
        OptimizerConfig,
        {"learning_rate": float("inf")},
        "optimizer.learning_rate: must be finite, got inf",
    ),
    (OptimizerConfig, {"decay_share": 1.5}, "optimizer.decay_share: must be at most 1, got 1.5"),
    (
        OptimizerConfig,
        {"weight_decay_exclude": "bias"},
        "optimizer.weight_decay_exclude: must be a list, got 'bias'",
    ),
    (
        OptimizerConfig,
        {"weight_decay_exclude": ["bias", 1]},
        "optimizer.weight_decay_exclude.1: must be a string, got 1",
    ),
    (
        TrainingConfig,
        {"batch_schedule": [[1, 2, 3]]},
        "training.batch_schedule.0: must have 2 values, got [1, 2, 3]",
    ),
    (
        TrainingConfig,
        {"batch_schedule": [[1, True]]},
        "training.batch_schedule.0.1: must be a whole number, got True",
    ),
    (Config, {"seed": 2**32}, "seed: must be at most 4294967295, got 4294967296"),
    (Config, {"run_directory": ""}, "run_directory: must not be empty"),
    (Config, {"run_directory": "a\0b"}, "run_directory: must not have a zero byte, got 'a\\x00b'"),
    (
        OptimizerConfig,
        {"learning_rate": 10**400},
        "optimizer.learning_rate: must be finite, got inf",
    ),
    (
        OptimizerConfig,
        {"kind": "Adam-W"},
        "optimizer.kind: must be one of 'adamw', 'adafactor', 'lion', 'muon', 'schedule_free', "
        "'sgd', 'shampoo', got 'Adam-W' (did you mean 'adamw'?)",
    ),
    (Config, {"model": {"layers": 3}}, "model: must be ModelConfig, got {'layers': 3}"),
    (Config, {"modle": ModelConfig()}, "modle: unknown key (did you mean 'model'?)"),
    (
        DataConfig,
        {"sources": ({"name": "a"},)},
        "data.sources.0: must be SourceConfig, got {'name': 'a'}",
    ),
    (SourceConfig, {}, "data.sources.name: is required"),
    (SourceConfig, {"name": "a", "path": ""}, "data.sources.path: must not be empty"),
    (DataConfig, {"self": 1}, "data.self: unknown key"),
]


@pytest.mark.parametrize(
    ("cls", "values", "message"), WRONG, ids=[message.partition(",")[0] for *_, message in WRONG]
)
def test_a_wrong_value_names_its_key(cls, values, message):
    with pytest.raises(ConfigError) as caught:
        cls(**values)
    assert str(caught.value) == message


def test_a_long_value_is_cut():
    other_section: Any = DataConfig()
    with pytest.raises(ConfigError) as caught:
        Config(model=other_section)
    assert (
        str(caught.value).startswith("model: must be ModelConfig, got DataConfig(")
        and len(str(caught.value)) < 150
    )


def test_sections_take_names_only():
    with pytest.raises(
        ConfigError, match=r"model: takes ModelConfig\(key=value, \.\.\.\), not positional"
    ):
        ModelConfig(12)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.layers = 3  # type: ignore[misc]


WRONG_EDITS = [
    ("model.layrs=3", "model.layrs: unknown key (did you mean 'model.layers'?)"),
    ("modle.layers=3", "modle: unknown key (did you mean 'model'?)"),
    ("layers=3", "layers: unknown key (did you mean 'model.layers'?)"),
    ("steps=3", "steps: unknown key (did you mean 'training.steps' or 'evaluation.steps'?)"),
    (
        "model.learning_rate=3",
        "model.learning_rate: unknown key (did you mean 'optimizer.learning_rate'?)",
    ),
    (
        "data.validation.shar=0.1",
        "data.validation.shar: unknown key (did you mean 'data.validation.share'?)",
    ),
    (
        "data.sources.0.wight=1",
        "data.sources.0.wight: unknown key (did you mean 'data.sources.0.weight'?)",
    ),
    ("data.sources.0.weight=0", "data.sources.0.weight: must be above 0, got 0.0"),
    (
        "data.sources.1.weight=1",
        "data.sources.1: no such item: data.sources has 1, numbered from 0",
    ),
    (
        "data.sources.first.weight=1",
        "data.sources.first: no such item: data.sources has 1, numbered from 0",
    ),
    (
        "weight=0.5",
        "weight: unknown key (did you mean 'objective.weight' or 'data.sources.0.weight'?)",
    ),
    ("layrs=3", "layrs: unknown key (did you mean 'model.layers'?)"),
    ("Model.layers=3", "Model: unknown key (did you mean 'model'?)"),
    ("model.kv-heads=3", "model.kv-heads: unknown key (did you mean 'model.kv_heads'?)"),
    (
        "data.sources.text_key=body",
        "data.sources.text_key: data.sources is a list: write data.sources.0.text_key=...",
    ),
    ("data.sources.0=a", "data.sources.0: data.sources is a list: write data.sources.0.KEY=..."),
    ("data.sources.²=a", "data.sources.²: data.sources is a list: write data.sources.0.²=..."),
    ("model.layers.x=1", "model.layers.x: model.layers is a value, not a section"),
    ("model.layers", "model.layers: is not an edit: write section.key=value"),
    ("=3", "=3: is not an edit: write section.key=value"),
    ("model.layers=", "model.layers: must be a whole number, got ''"),
    ("model.layers=many", "model.layers: must be a whole number, got 'many'"),
    ("model.layers=1.5", "model.layers: must be a whole number, got '1.5'"),
    ("model.layers=inf", "model.layers: must be a whole number, got 'inf'"),
    ("model.layers=1e400", "model.layers: must be a whole number, got '1e400'"),
    ("model.layers=0", "model.layers: must be at least 1, got 0"),
    ("optimizer.learning_rate=fast", "optimizer.learning_rate: must be a number, got 'fast'"),
    ("optimizer.learning_rate=nan", "optimizer.learning_rate: must be finite, got nan"),
    ("optimizer.learning_rate=none", "optimizer.learning_rate: must be a number, got 'none'"),
    ("model.gated=yes", "model.gated: must be true or false, got 'yes'"),
    ("model.norm=batchnorm", "model.norm: must be one of 'layernorm', 'rmsnorm', got 'batchnorm'"),
    (
        "optimizer.weight_decay_exclude=bias",
        "optimizer.weight_decay_exclude: must be a list in JSON, got 'bias'",
    ),
    ("model=3", "model: must be an object with the keys of ModelConfig, got 3"),
    (
        "data.sources=[3]",
        "data.sources.0: must be an object with the keys of SourceConfig, got 3"
        " (with data.sources=[3])",
    ),
    ("data.store=", "data.store: must not be empty"),
]


@pytest.mark.parametrize(("edit", "message"), WRONG_EDITS, ids=[edit for edit, _ in WRONG_EDITS])
def test_a_wrong_edit_names_its_key_once(edit, message):
    assert str(edit_mistake(edit)).partition(" (did you mean 'layernorm'")[0] == message


def test_a_contradiction_shows_the_edits():
    assert str(edit_mistake("model.heads=7", "seed=1")).endswith("(with model.heads=7 seed=1)")
    assert "with" not in str(edit_mistake("model.width=7"))


MIXTURE = "objective.kind=mixture"


def parts(*kinds):
    """Return the edit that sets the parts of a mixture."""
    return f"objective.parts={json.dumps([dict(kind=kind) for kind in kinds])}"


PAIRED = ("model.family=encoder_decoder", "objective.kind=span")
TRANSLATED = (
    "model.family=encoder_decoder",
    "objective.kind=pairs",
    "data.sources.0.format=pairs",
    "data.sources.0.path=x",
)


def fields_of(kind, cls: Any = Config, path=""):
    """Yield (key, bounds) of the fields of a type, such as float."""
    for name, annotation in fields.field_types(cls).items():
        key = fields.join(path, name)
        inner, bounds = fields.split_bounds(fields.split_optional(annotation)[0])
        if dataclasses.is_dataclass(inner):
            yield from fields_of(kind, inner, key)
        elif inner is kind:
            yield key, bounds
    if cls is DataConfig:
        yield from fields_of(kind, SourceConfig, "data.sources.0")


HOST_ONLY = (
    "tokenizer.training_megabytes",
    "data.sources.0.weight",
    "data.sources.0.max_epochs",
    "data.mixture_temperature",
)
HOST_COUNTS = ("seed", "data.sources.0.tokens")
FLOATS = [key for key, _ in fields_of(float) if key not in HOST_ONLY]


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("value", ["1e39", "-1e39", "1e400", "nan", "1" * 400])
def test_no_number_overflows_float32_on_the_device(key, value):
    assert edit_mistake(f"{key}={value}").path == key


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ("optimizer.learning_rate=1e39", "is too large for float32, got 1e+39"),
        ("optimizer.learning_rate=1e-39", "is 0 in float32, got 1e-39"),
        ("optimizer.epsilon=1e-50", "is 0 in float32, got 1e-50"),
        ("model.norm_epsilon=1e-50", "is 0 in float32, got 1e-50"),
        ("optimizer.beta2=0.99999999", "is 1 in float32, got 0.99999999"),
    ],
)
def test_bounds_hold_in_float32(edit, reason):
    assert edit_mistake(edit).reason == reason


@pytest.mark.parametrize("key", [key for key, _ in fields_of(int) if key not in HOST_COUNTS])
@pytest.mark.parametrize("value", ["1e12", "9" * 5000, "1e400", "-1e12", "1.5", "", "[]"])
def test_whole_numbers_are_refused_where_the_device_could_not_count_them(key, value):
    if not key.startswith("parallel."):  # their product is compared with the devices
        assert edit_mistake(f"{key}={value}").path == key


@pytest.mark.parametrize(
    ("key", "bounds"), list(fields_of(str)), ids=[key for key, _ in fields_of(str)]
)
def test_strings_are_unicode_and_paths_may_be_bytes(key, bounds):
    assert edit_mistake(f"{key}=\ud800").path == key
    if bounds.path:
        assert "zero byte" in edit_mistake(f"{key}=a\0").reason
    else:
        assert edit_mistake(f"{key}=\udcff").reason == "must be Unicode text, got '\\udcff'"


def test_a_path_of_other_bytes_is_kept():
    assert config.apply_edits(Config(), ["data.store=\udcff"]).data.store == "\udcff"
    (source,) = config.apply_edits(Config(), [], "\udcff.txt").data.sources
    assert (source.name, source.path) == ("?", "\udcff.txt")


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (["model=3", "model.layers=2"], "model: must be an object, got 3"),
        (["data.sources=[3]", "data.sources.0.path=x"], "data.sources.0: must be an object, got 3"),
        (["data.sources={}", "data.sources.0.path=x"], "data.sources: must be a list, got {}"),
        (["data={}", "data.sources.0.path=x"], "data.sources.0: no such item: data.sources has 0"),
        (["data.sources=" + "[" * 100_000], "data.sources: must be a list in JSON, got '[[[["),
    ],
)
def test_edits_on_top_of_wrong_edits_name_the_key(edits, message):
    assert str(edit_mistake(*edits)).startswith(message)


CONTRADICTIONS = [  # edits of the defaults, the key at fault, a part of the reason
    (
        ["precision.matmul=float8", "precision.compute=float16"],
        "precision.matmul",
        "has values that float16 can't hold",
    ),
    (
        ["optimizer.decay_steps=500", "optimizer.schedule=wsd"],
        "optimizer.decay_steps",
        "only used by the schedules",
    ),
    (
        ["optimizer.decay_steps=100"],
        "optimizer.decay_steps",
        "100 is not after the warmup (warmup_steps=100)",
    ),
    (
        ["optimizer.kind=schedule_free", "optimizer.ema_decay=0.9"],
        "optimizer.ema_decay",
        "'schedule_free' evaluates an average of its own",
    ),
    (
        ["optimizer.cooldown_shape=1-sqrt"],
        "optimizer.cooldown_shape",
        "is only used by the schedule 'wsd', got schedule='cosine'",
    ),
    (
        ["optimizer.momentum=0.9"],
        "optimizer.momentum",
        "is only used with kind='adafactor' or 'muon' or 'sgd', got 'adamw'",
    ),
    (
        ["optimizer.kind=lion", "optimizer.newton_schulz_steps=5"],
        "optimizer.newton_schulz_steps",
        "is only used with kind='muon', got 'lion'",
    ),
    (
        ["optimizer.kind=schedule_free", "optimizer.first_moment=bfloat16"],
        "optimizer.first_moment",
        "is only used with kind='adamw' or 'adafactor' or 'lion' or 'muon' or 'sgd' or 'shampoo'",
    ),
    (
        ["optimizer.kind=adafactor", "optimizer.first_moment=bfloat16"],
        "optimizer.first_moment",
        "'adafactor' has no first moment without momentum",
    ),
    (
        ["optimizer.kind=sgd", "optimizer.second_moment=bfloat16"],
        "optimizer.second_moment",
        "is only used with kind='adamw' or 'muon' or 'shampoo', got 'sgd'",
    ),
    (
        ["optimizer.kind=schedule_free", "optimizer.beta1=0"],
        "optimizer.beta1",
        "must be above 0 with kind='schedule_free'",
    ),
    (
        ["optimizer.kind=schedule_free", "precision.params=bfloat16"],
        "precision.params",
        "the average of 'schedule_free' needs 'float32', got 'bfloat16'",
    ),
    (["optimizer.layer_decay=0"], "optimizer.layer_decay", "must be above 0, got 0.0"),
    (
        ['optimizer.groups=[{"parameters": "head", "rate": 2}]'],
        "optimizer.groups.0.rate",
        "unknown key",
    ),
    (["model.heads=7"], "model.width", "768 is not a multiple of heads (7)"),
    (["model.kv_heads=5"], "model.kv_heads", "5 does not divide heads (12)"),
    (
        ["model.positions=rotary", "model.head_width=63"],
        "model.head_width",
        "even number of channels, got 63",
    ),
    (
        ["model.positions=sinusoidal", "model.width=9", "model.heads=3"],
        "model.width",
        "even width, got 9",
    ),
    (
        ["model.rotary_scaling=linear"],
        "model.rotary_scaling",
        "needs positions='rotary', got 'learned'",
    ),
    (
        ["model.positions=rotary", "model.rotary_scaling=yarn", "model.rotary_theta=1"],
        "model.rotary_theta",
        "above 1 with rotary_scaling='yarn', got 1.0",
    ),
    (
        ["model.rotary_high_frequency_factor=1"],
        "model.rotary_high_frequency_factor",
        "above rotary_low_frequency_factor",
    ),
    (
        ["model.encoder_layers=3"],
        "model.encoder_layers",
        "only used with family='encoder_decoder', got 'decoder'",
    ),
    (
        ["model.shared_embedding=false"],
        "model.shared_embedding",
        "needs family='encoder_decoder', got 'decoder'",
    ),
    ([*PAIRED, "model.encoder_heads=7"], "model.encoder_heads", "7 does not divide width (768)"),
    (
        [*PAIRED, "model.encoder_kv_heads=5"],
        "model.encoder_kv_heads",
        "5 does not divide the encoder's heads (12)",
    ),
    (
        ["model.token_types=2"],
        "model.token_types",
        "only used with family='encoder', got 'decoder'",
    ),
    (
        [*PAIRED, "model.sliding_window=8"],
        "model.sliding_window",
        "only used with family='decoder' and 'encoder', got",
    ),
    (
        ["model.residual=parallel", "model.norm_placement=post"],
        "model.residual",
        "'parallel' needs norm_placement='pre', got 'post'",
    ),
    (
        ["model.first_norm=false", "model.norm_placement=both"],
        "model.first_norm",
        "needs norm_placement='pre', got 'both'",
    ),
    (
        ['model.attention_pattern=["full", "sliding"]'],
        "model.attention_pattern",
        "'sliding' layers, which need sliding_window",
    ),
    (
        ["model.rotary_theta_sliding=100"],
        "model.rotary_theta_sliding",
        "needs positions='rotary' and an attention_pattern",
    ),
    (
        ["model.positions=relative", "model.relative_buckets=6"],
        "model.relative_buckets",
        "6: needs a multiple of 4",
    ),
    (
        ["model.positions=relative", "model.relative_max_distance=16"],
        "model.relative_buckets",
        "relative_max_distance (16) above its half",
    ),
    (
        ["model.positions=rotary", "model.position_offset=2"],
        "model.position_offset",
        "only used with positions='learned', got 'rotary'",
    ),
    (
        ["objective.kind=masked"],
        "objective.kind",
        "trains model.family='encoder', got 'decoder' "
        "(it takes 'causal', 'prefix', 'fill_in_the_middle', 'instruction', 'classify', "
        "'preference')",
    ),
    (
        ["objective.kind=classify", 'data.sources=[{"name":"a","path":"a","format":"labelled"}]'],
        "model.classifier.kind",
        "'classify' needs one of 'sequence' and 'token', got 'none'",
    ),
    (
        ["model.classifier.kind=sequence", 'model.classifier.labels=["a","b"]'],
        "model.classifier.kind",
        "objective.kind='causal' predicts tokens, which needs 'none', got 'sequence'",
    ),
    (
        ["objective.beta=0.2"],
        "objective.beta",
        "is only used with kind='preference', got 'causal'",
    ),
    (
        ['model.classifier.labels=["a"]'],
        "model.classifier.labels",
        "are only used with kind='sequence' and 'token', got 'none'",
    ),
    (
        ["model.classifier.kind=sequence"],
        "model.classifier.labels",
        "kind='sequence' needs the names of the labels",
    ),
    (
        ["model.classifier.kind=sequence", 'model.classifier.labels=["a","a"]'],
        "model.classifier.labels",
        "a label stands there twice: a, a",
    ),
    (
        ["model.classifier.kind=token", 'model.classifier.labels=["a"]'],
        "model.classifier.labels",
        "problem='single_label' needs two at least, got a",
    ),
    (
        [
            "model.classifier.kind=token",
            'model.classifier.labels=["a"]',
            "model.classifier.problem=regression",
        ],
        "model.classifier.problem",
        "'regression' is only used with kind='sequence', got 'token'",
    ),
    (
        [
            "model.classifier.kind=token",
            'model.classifier.labels=["a","b"]',
            "model.classifier.pooling=mean",
        ],
        "model.classifier.pooling",
        "is only used with kind='sequence', got 'token'",
    ),
    (
        [
            "model.classifier.kind=token",
            'model.classifier.labels=["a","b"]',
            "model.classifier.transform=head",
        ],
        "model.classifier.transform",
        "'head' needs model.head_transform=true: it is that layer",
    ),
    (
        [
            "objective.kind=classify",
            'data.sources=[{"name":"a","path":"a","format":"labelled"}]',
            "model.classifier.kind=sequence",
            'model.classifier.labels=["a"]',
            "model.classifier.problem=regression",
            "training.z_loss=1e-4",
        ],
        "training.z_loss",
        "is for cross-entropy, got model.classifier.problem='regression'",
    ),
    (["adapter.rank=4", "adapter.targets=[]"], "adapter.targets", "names no matrix"),
    (
        ["adapter.rank=4", 'adapter.targets=["up","up"]'],
        "adapter.targets",
        "names a matrix twice: up, up",
    ),
    (
        ["adapter.rank=4", 'adapter.targets=["qkv","key"]'],
        "adapter.targets",
        "'qkv' has query, key and value already",
    ),
    (
        ["adapter.rank=4", 'adapter.targets=["gate"]'],
        "adapter.targets",
        "'gate' needs model.gated=true",
    ),
    (
        [
            "adapter.rank=4",
            'adapter.targets=["qkv"]',
            "model.family=encoder_decoder",
            "objective.kind=span",
        ],
        "adapter.targets",
        "'qkv' has one input, and cross attention has two: use 'query', 'key', 'value'",
    ),
    (
        ["adapter.rank=4", "precision.weights=int8"],
        "precision.weights",
        "rounds weights that are trained, and those beside adapters are frozen: "
        "adapter.base='int8' keeps them rounded",
    ),
    (
        ["adapter.rank=4", "adapter.base=int8", "precision.matmul=float8"],
        "precision.matmul",
        "'float8' does not go with adapter.base='int8'",
    ),
    (
        ["adapter.rank=4", "model.parametrization=mup", "model.mup_base_width=128"],
        "model.parametrization",
        "'mup' has no learning rates for adapters: set adapter.rank=0",
    ),
    (
        ["adapter.rank=4", "optimizer.kind=muon"],
        "optimizer.kind",
        "'muon' is for whole matrices, not for those of adapters: use 'adamw'",
    ),
    (
        ["model.family=encoder", "objective.kind=replaced_tokens"],
        "model.generator_share",
        "objective.kind='replaced_tokens' needs a generator: 0.25 or 0.33333, got None",
    ),
    (
        [
            "model.family=encoder",
            "model.head_transform=true",
            "objective.kind=masked",
            "model.generator_share=0.25",
        ],
        "objective.kind",
        "'masked' trains no generator (model.generator_share): use 'replaced_tokens'",
    ),
    (
        ["model.generator_share=0.25"],
        "model.generator_share",
        "is only used with family='encoder', got 'decoder'",
    ),
    (
        ["model.family=encoder", "model.generator_share=0.25"],
        "model.head_transform",
        "the head of a generator (generator_share) has one",
    ),
    (
        ["model.family=encoder", "model.head_transform=true", "model.generator_share=0.3"],
        "model.generator_share",
        "which is no whole number",
    ),
    (
        ["model.parametrization=mup"],
        "model.mup_base_width",
        "parametrization='mup' needs it: the width at which the learning rate is tuned",
    ),
    (
        ["model.mup_base_width=128"],
        "model.mup_base_width",
        "is only used with parametrization='mup', got 'standard'",
    ),
    (["model.zero_head=true"], "model.zero_head", "needs tied_head=false"),
    (["objective.noise_share=0"], "objective.noise_share", "between 0 and 1, got 0.0"),
    (
        ["objective.random_share=0.3"],
        "objective.random_share",
        "0.3 and mask_share (0.8) are more than 1",
    ),
    (["objective.denoiser=R"], "objective.denoiser", "for kind='span' and 'infilling'"),
    (["objective.weight=2"], "objective.weight", "only used in objective.parts"),
    (["objective.kind=mixture"], "objective.parts", "needs objectives in parts"),
    (
        ['objective.parts=[{"kind": "causal"}]'],
        "objective.parts",
        "kind='causal' has no parts",
    ),
    ([MIXTURE, parts("causal", "pairs")], "objective.parts", "'pairs' can't be part"),
    (
        [MIXTURE, parts("causal", "masked")],
        "objective.parts",
        "'masked' trains model.family='encoder': all must be the same",
    ),
    (
        [MIXTURE, 'objective.parts=[{"kind": "causal"}, {"kind": "causal", "noise_share": 0}]'],
        "objective.parts.1.noise_share",
        "between 0 and 1, got 0.0",
    ),
    (
        ['tokenizer.fim_tokens=["<pad>", "b", "c"]'],
        "tokenizer.fim_tokens",
        "one of them is another special token",
    ),
    ([*PAIRED, "objective.mean_span=0.5"], "objective.mean_span", "at least one token, got 0.5"),
    (
        ["objective.target_length=5"],
        "objective.target_length",
        "only used with kind='pairs', got 'causal'",
    ),
    (
        ["data.sources.0.format=pairs", "data.sources.0.path=x"],
        "data.sources.0.format",
        "does not go with objective.kind='causal'",
    ),
    (
        [*TRANSLATED, "data.validation.method=tail"],
        "data.validation.method",
        "'tail' would cut pairs in two",
    ),
    (
        [*TRANSLATED, "objective.target_length=2000"],
        "objective.target_length",
        "exceeds model.context_length (1024)",
    ),
    (
        [*PAIRED, "model.vocabulary_size=300"],
        "model.vocabulary_size",
        "below the 358 ids of the 256 bytes, the end of text and 101 special",
    ),
    (["tokenizer.kind=file"], "tokenizer.path", "needs the path of a tokenizer.json"),
    (
        ["tokenizer.path=tokenizer.json"],
        "tokenizer.path",
        "only read with tokenizer.kind='file', got kind='bpe'",
    ),
    (
        ["tokenizer.kind=bytes", "tokenizer.vocabulary_size=300"],
        "tokenizer.vocabulary_size",
        "only used with tokenizer.kind='bpe', 'wordpiece', 'unigram', got kind='bytes'",
    ),
    (
        ["tokenizer.kind=wordpiece", "tokenizer.pre_tokenization=gpt4"],
        "tokenizer.pre_tokenization",
        "'gpt4' does not go with tokenizer.kind='wordpiece' (it takes 'bert', 'whitespace')",
    ),
    (
        ["tokenizer.kind=unigram", "model.vocabulary_size=352"],
        "model.vocabulary_size",
        "352 is below the 353 ids of the 256 bytes, the unknown token and",
    ),
    (["tokenizer.mask=<pad>"], "tokenizer.mask", "'<pad>' is another special token too"),
    (["tokenizer.vocabulary_size=256"], "tokenizer.vocabulary_size", "256 is below the 257 ids"),
    (
        ["tokenizer.vocabulary_size=60000"],
        "tokenizer.vocabulary_size",
        "60000 exceeds model.vocabulary_size (50257)",
    ),
    (["model.vocabulary_size=256"], "model.vocabulary_size", "256 is below the 257 ids"),
    (
        ["tokenizer.kind=bytes", "model.vocabulary_size=256"],
        "model.vocabulary_size",
        "256 is below the 257 ids",
    ),
    (["data.sources.0.path=x"], "data.sources.0.path", "'python_stdlib' takes no path"),
    (["data.sources.0.format=text"], "data.sources.0.path", "'python_stdlib' needs a path"),
    (['data.sources.0.text_keys=["a"]'], "data.sources.0.text_keys", "has no such keys"),
    (['data.curation.rules=["c4", "c4"]'], "data.curation.rules", "names a rule twice: c4, c4"),
    (
        ["data.sources.0.path=x", "data.sources.0.format=tokens"],
        "data.sources.0.format",
        "it needs tokenizer.kind='file', got 'bpe'",
    ),
    (
        [
            'data.sources=[{"name": "a", "path": "x", "format": "tokens"}]',
            'data.curation.rules=["c4"]',
        ],
        "data.curation.rules",
        "'c4' removes lines, and source 'a' has format 'tokens', whose text can't be changed",
    ),
    (["data.sources=[]"], "data.sources", "at least one source"),
    (
        [
            'data.sources=[{"name": "a", "path": "x", "weight": 1e308},'
            ' {"name": "b", "path": "y", "weight": 1e308}]'
        ],
        "data.sources",
        "the sum of the weights is too large: 1e+308, 1e+308",
    ),
    (
        ["data.mixture_schedule=[[5, [1.0]], [5, [2.0]]]"],
        "data.mixture_schedule",
        "steps must increase",
    ),
    (
        ["data.mixture_schedule=[[5, [1.0, 2.0]]]"],
        "data.mixture_schedule",
        "step 5 has 2 weights for 1 sources",
    ),
    (
        ["data.mixture_schedule=[[5, [0.0]]]"],
        "data.mixture_schedule",
        "step 5: the sum of the weights must be above 0 and finite, got 0",
    ),
    (["data.sources.0.weight=0"], "data.sources.0.weight", "must be above 0, got 0.0"),
    (
        ["data.sources.0.weight=0", "data.mixture_schedule=[[5, [1.0]]]"],
        "data.sources",
        "one source needs a weight above 0",
    ),
    (
        ["data.sources.0.tokens=5", "data.sources.0.max_epochs=1"],
        "data.sources.0.max_epochs",
        "data.sources.0.tokens says already how much is read",
    ),
    (
        ["data.sources.0.tokens=5", "data.sources.0.weight=2"],
        "data.sources.0.weight",
        "data.sources.0.tokens says already how much is read",
    ),
    (
        ["data.mixture_temperature=2", "data.sources.0.weight=2"],
        "data.sources.0.weight",
        "data.mixture_temperature sets the weights",
    ),
    (
        [
            'data.sources=[{"name": "a", "path": "x", "format": "labelled",'
            ' "keys": [["lable", "x"]]}]',
        ],
        "data.sources.0.keys",
        "has no 'lable': it has 'text', 'pair', 'label', 'tokens' (did you mean 'label'?)",
    ),
    (
        ['data.sources.0.keys=[["text", "x"]]'],
        "data.sources.0.keys",
        "has no 'text': it has none",
    ),
    (
        ["data.mixture_cap=2", "data.sources.0.weight=2"],
        "data.sources.0.weight",
        "data.mixture_cap sets the weights",
    ),
    (
        ["data.mixture_temperature=2", "data.mixture_schedule=[[5, [1.0]]]"],
        "data.mixture_schedule",
        "takes the weights of the sources alone",
    ),
    (
        ['data.sources=[{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]'],
        "data.sources",
        "same name: a, a",
    ),
    (
        ["data.validation.method=source"],
        "data.validation.path",
        "needs the path of the validation files",
    ),
    (["data.validation.path=x"], "data.validation.path", "method='hash' does not read a path"),
    (["data.validation.share=0"], "data.validation.share", "between 0 and 1, got 0.0"),
    (["parallel.data=0"], "parallel.data", "at least 1, or -1 for the rest, got 0"),
    (["parallel.tensor=-2"], "parallel.tensor", "at least 1, or -1 for the rest, got -2"),
    (["parallel.data=-1"], "parallel", "only one of data, fsdp and tensor"),
    (
        ["training.batch_schedule=[[20, 32], [10, 32]]"],
        "training.batch_schedule",
        "steps must increase",
    ),
    (["training.microbatches=3"], "training.microbatches", "3 does not divide the batch size 32"),
    (["data.sequence_length=1025"], "data.sequence_length", "exceeds model.context_length (1024)"),
    (
        ["runtime.processes=2", "runtime.process=2"],
        "runtime.process",
        "must be below runtime.processes (2), got 2",
    ),
    (["runtime.coordinator=host"], "runtime.coordinator", "must be HOST:PORT, got 'host'"),
    (["runtime.coordinator=::1:99"], "runtime.coordinator", "must be HOST:PORT, got '::1:99'"),
    (
        ["runtime.attention=cudnn", "precision.compute=float32"],
        "runtime.attention",
        "needs precision.compute='bfloat16' or 'float16'",
    ),
]


@pytest.mark.parametrize(
    ("edits", "key", "reason"),
    CONTRADICTIONS,
    ids=[" ".join(edits) for edits, *_ in CONTRADICTIONS],
)
def test_contradictions_are_refused(edits, key, reason):
    error = edit_mistake(*edits)
    assert error.path == key and reason in error.reason


def refusals(source):
    """Yield the lines at which a section is refused: `raise ConfigError()` and `refuse()`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "refuse"
        ):
            assert node.end_lineno is not None
            yield range(node.lineno, node.end_lineno + 1)


def test_every_refusal_of_the_schema_is_among_them():
    reached = set()
    for edits, *_ in CONTRADICTIONS:
        error = edit_mistake(*edits)
        while error is not None:
            trace = error.__traceback__
            while trace is not None:
                reached.add((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
                trace = trace.tb_next
            error = error.__cause__

    for module in SECTIONS:
        file = inspect.getfile(module)
        for lines in refusals(Path(file).read_text()):
            assert any((file, line) in reached for line in lines), f"{file}:{lines.start}"
