"""Tables of tensors, run in both directions: layouts, what may be missing or left over, shards, memory."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import multiprocess

from jaxlm import config, interop, models, sharding
from jaxlm.config import UserError
from jaxlm.interop import files, layout, weights, writer
from jaxlm.interop.mapping import Architecture, Rule
from jaxlm.interop.match_architecture import canonical_fields, parameter_shapes

D, H, K, F, V, PADDED, LAYERS = 6, 2, 3, 5, 100, 128, 3

# layout, dims, and theirs made of ours by what numpy calls it; ours are written [d, h, k], [f, d] and so on.
LAYOUTS = {
    "torch's query": ("hk d", "dhk", lambda q: q.reshape(D, H * K).T),
    "torch's output": ("d hk", "hkd", lambda o: o.reshape(H * K, D).T),
    "as it is": ("d hk", "dhk", lambda q: q.reshape(D, H * K)),
    "GPT-2's fused": (
        "d 3hk",
        "dhk",
        lambda *q: np.concatenate([x.reshape(D, H * K) for x in q], 1),
    ),
    "ModernBERT's fused": (
        "3hk d",
        "dhk",
        lambda *q: np.concatenate([x.reshape(D, H * K).T for x in q], 0),
    ),
    "BLOOM's fused": (
        "h3k d",
        "dhk",
        lambda *q: np.stack([x.transpose(1, 2, 0) for x in q], 1).reshape(3 * H * K, D),
    ),
    "its bias": ("h3k", "hk", lambda *b: np.stack(b, 1).reshape(-1)),
    "gate and up": ("2f d", "df", lambda gate, up: np.concatenate([gate.T, up.T])),
    "BART's bias": ("o v", "v", lambda b: b[None, :V]),
    "the vocabulary": ("v d", "dv", lambda head: head.T[:V]),
    "a vector": ("d", "d", lambda b: b),
}
SIZES = {"d": D, "h": H, "k": K, "f": F, "v": PADDED}


def random(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts_are_what_numpy_makes_of_them(case):
    text, dims, reference = LAYOUTS[case]
    count = next((int(letter) for letter in text if letter.isdigit()), 1)
    shape = tuple(SIZES[letter] for letter in dims)
    ours = [random(shape, seed) for seed in range(count)]
    rule = Rule("theirs", text, tuple(f"ours_{number}" for number in range(count)), dims)
    sizes = layout.dimension_sizes(rule, [shape] * count, V)
    expected = np.ascontiguousarray(reference(*ours))
    assert layout.tensor_shape(rule, sizes) == expected.shape
    for view, values in zip(layout.parameter_views(rule, expected, sizes), ours, strict=True):
        assert np.shares_memory(view, expected)
        assert np.array_equal(view, values[tuple(slice(size) for size in view.shape)])


@pytest.mark.parametrize(
    "rule",
    [
        Rule("t", "d f", ("a", "b"), "df"),
        Rule("t", "d hk", ("a",), "df"),
        Rule("t", "2d f", ("a",), "df"),
    ],
)
def test_a_wrong_layout_is_our_own_mistake(rule):
    with pytest.raises((ValueError, KeyError)):
        layout.parameter_views(rule, np.zeros((4, 6)), {"d": 4, "f": 6, "h": 2, "k": 3})
    with pytest.raises(ValueError, match="can't describe"):
        layout.dimension_sizes(rule, [(1, 2, 3)] * len(rule.ours), V)


# A table with a row of each kind, on a tree of shapes: no model is needed for it.
TABLE = Architecture(
    model_type="toy",
    classes=("Toy",),
    family="decoder",
    read=lambda settings, weights: MODEL,
    write=lambda model: {},
    rules=(
        Rule("base.words", "v d", ("embedding.tokens",), "vd", copies=("base.again",)),
        Rule("base.h.{}.norm", "d", ("blocks.attention_norm.scale",), "d", first=1),
        Rule("base.h.{}.shift", "d", ("blocks.attention_norm.bias",), "d", first=1),
        Rule(
            "base.h.{}.qkv",
            "h3k d",
            tuple(f"blocks.attention.{name}_kernel" for name in ("query", "key", "value")),
            "dhk",
        ),
        Rule(
            "base.h.{}.wi", "f d", ("blocks.mlp.up_kernel",), "df", when="!blocks.mlp.gate_kernel"
        ),
        Rule(
            "base.h.{}.wi_1", "f d", ("blocks.mlp.up_kernel",), "df", when="blocks.mlp.gate_kernel"
        ),
        Rule("base.h.{}.absent", "f", ("blocks.mlp.up_bias",), "f"),
        Rule("base.h.{}.zero", "d", ("blocks.mlp.down_bias",), "d", zeros=True),
        Rule("base.h.0.bias", "b h", ("relative_bias.table",), "bh"),
        Rule("head", "v d", ("head.kernel",), "dv"),
        Rule("logits", "o v", ("head.bias",), "v", zeros=True),
    ),
    root="base.",
    ignored=(r"(base\.)?h\.\d+\.mask", r"base\.pooler"),
    aliases={"head": "base.words", "base.other": "base.words"},
    renamed={r"gamma$": "norm"},
)
MODEL = config.ModelConfig(vocabulary_size=V, layers=LAYERS, width=D, heads=H, mlp_width=F)


def tree(**more):
    """Shapes of the parameters."""
    blocks = {
        "attention_norm": {"scale": (D,), "bias": (D,)},
        "attention": {f"{name}_kernel": (D, H, K) for name in ("query", "key", "value")},
        "mlp": {"up_kernel": (D, F)},
    }
    stacked = jax.tree.map(
        lambda shape: (LAYERS, *shape), blocks, is_leaf=lambda x: isinstance(x, tuple)
    )
    shapes = {
        "embedding": {"tokens": (PADDED, D)},
        "blocks": stacked,
        "relative_bias": {"table": (4, H)},
    } | more
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def filled(shapes, model=MODEL, seed=0):
    """Random parameters; rows that only pad the vocabulary are zeros, and so on: what reading gives for what isn't in files."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    for leaf in jax.tree.leaves(params):
        for axis in np.flatnonzero(np.array(leaf.shape) == PADDED):
            np.moveaxis(leaf, axis, 0)[V:] = 0
    if "attention_norm" in params["blocks"]:
        params["blocks"]["attention_norm"]["scale"][0] = 0 if model.norm_offset else 1
        params["blocks"]["attention_norm"]["bias"][0] = 0
    return params


def write(directory, params, architecture=TABLE, dtype="F32", shard_bytes=1 << 30, model=MODEL):
    shapes = jax.eval_shape(lambda: params)
    rows = weights.map_tensors(architecture, model, shapes)
    with writer.staged_files(directory) as staged:
        writer.write_safetensors(
            staged,
            weights.tensor_specs(rows, dtype),
            weights.iterate_tensors(rows, params, dtype),
            shard_bytes,
        )
    return shapes


def read(directory, shapes, architecture=TABLE, model=MODEL, shardings=None, dtype=np.float32):
    return weights.read_weights(
        architecture, model, files.read_tensor_index(directory), shapes, shardings, dtype
    )


def assert_same(one, other):
    """The same trees, bit by bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        assert (
            a.dtype == b.dtype
            and a.shape == b.shape
            and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        ), path


@pytest.mark.parametrize("shard_bytes", [1 << 30, 400])
@pytest.mark.parametrize("norm_offset", [False, True])
def test_a_table_both_ways(tmp_path, shard_bytes, norm_offset):
    model = replace(MODEL, norm_offset=norm_offset)
    params = filled(tree(), model)
    shapes = write(tmp_path, params, model=model, shard_bytes=shard_bytes)
    theirs = {
        name: tensor
        for path in tmp_path.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    per_layer = {
        f"base.h.{layer}.{name}"
        for layer in range(LAYERS)
        for name in ("norm", "shift", "qkv", "wi", "zero")
    }
    without_first = per_layer - {"base.h.0.norm", "base.h.0.shift"}
    assert theirs.keys() == {"base.words", "base.again", "base.h.0.bias", "logits", *without_first}
    assert np.array_equal(theirs["base.words"], params["embedding"]["tokens"][:V])
    assert np.array_equal(theirs["base.again"], theirs["base.words"])
    assert (
        theirs["logits"].shape == (1, V)
        and not theirs["logits"].any()
        and not theirs["base.h.2.zero"].any()
    )
    assert np.array_equal(theirs["base.h.2.wi"], params["blocks"]["mlp"]["up_kernel"][2].T)
    assert_same(read(tmp_path, shapes, model=model), params)


def test_rows_that_depend_on_the_parameters(tmp_path):
    shapes = tree(head={"kernel": (D, PADDED), "bias": (PADDED,)})
    mlp = {
        name: jax.ShapeDtypeStruct((LAYERS, D, F), jnp.float32)
        for name in ("up_kernel", "gate_kernel")
    }
    mlp["down_bias"] = jax.ShapeDtypeStruct((LAYERS, D), jnp.float32)
    shapes["blocks"]["mlp"] = mlp
    gate = Rule("base.h.{}.wi_0", "f d", ("blocks.mlp.gate_kernel",), "df")
    table = TABLE._replace(rules=(*TABLE.rules, gate))
    params = filled(shapes)
    write(tmp_path, params, table)
    theirs = load_file(tmp_path / "model.safetensors")
    assert "base.h.1.wi" not in theirs and np.array_equal(
        theirs["base.h.1.wi_1"], params["blocks"]["mlp"]["up_kernel"][1].T
    )
    assert np.array_equal(theirs["logits"][0], params["head"]["bias"][:V]) and not np.array_equal(
        theirs["head"], theirs["base.words"]
    )
    assert np.array_equal(theirs["base.h.1.zero"], params["blocks"]["mlp"]["down_bias"][1])
    assert_same(read(tmp_path, shapes, table), params)
    # Where theirs may be absent it is zeros.
    save_file(
        {
            name: tensor
            for name, tensor in theirs.items()
            if name != "logits" and "zero" not in name
        },
        tmp_path / "model.safetensors",
    )
    expected = jax.tree.map(np.copy, params)
    expected["head"]["bias"][:] = 0
    expected["blocks"]["mlp"]["down_bias"][:] = 0
    assert_same(read(tmp_path, shapes, table), expected)


def altered(directory, change):
    """Changes the tensors of a file."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors = change(tensors) or tensors
    save_file(tensors, path)


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def moved(tensors, old, new):
    return {new if name == old else name: tensor for name, tensor in tensors.items()}


ACCEPTED = {
    "a base model's names": lambda t: {
        name.removeprefix("base."): tensor for name, tensor in t.items()
    },
    "ignored ones": lambda t: (
        t
        | {
            "base.h.1.mask": np.arange(3),
            "base.pooler": np.ones(2, np.float32),
            "h.0.mask": np.ones(2, bool),
        }
    ),
    "an ignored one of a base model": lambda t: t | {"pooler": np.ones(2, np.float32)},
    "a repeated one": lambda t: t | {"head": t["base.words"]},
    "the repeated one alone": lambda t: moved(t, "base.words", "head"),
    "two repeated ones without the original": lambda t: (
        moved(t, "base.words", "head") | {"base.other": t["base.words"]}
    ),
    "an old name": lambda t: moved(t, "base.h.1.norm", "base.h.1.gamma"),
    "without the copy": lambda t: without(t, "base.again"),
    "another copy": lambda t: t | {"base.again": np.zeros(3, np.float32)},
    "negative zeros": lambda t: t | {"logits": -t["logits"]},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_files_may_have_or_lack(tmp_path, case):
    params = filled(tree())
    shapes = write(tmp_path, params)
    altered(tmp_path, ACCEPTED[case])
    assert_same(read(tmp_path, shapes), params)


FLOAT8 = ml_dtypes.float8_e4m3fn
REFUSED = {
    "missing": (
        lambda t: without(t, "base.h.1.wi"),
        "base.h.1.wi: there is no such tensor, expected [5, 6]",
    ),
    "a table missing": (
        lambda t: without(t, "base.words"),
        "base.words: there is no such tensor, expected [100, 6]",
    ),
    "left over": (
        lambda t: t | {"base.h.0.extra": t["base.words"]},
        "base.h.0.extra: is no tensor of a toy model with this config.json",
    ),
    "four left over": (
        lambda t: t | {f"x{i}": t["base.words"] for i in range(5)},
        "; nor is x1, x2 and 2 more",
    ),
    "a bias that config.json is without": (
        lambda t: t | {"base.h.0.absent": np.ones(F, np.float32)},
        "base.h.0.absent: is no tensor of a toy",
    ),
    "a layer too many": (
        lambda t: t | {"base.h.3.wi": t["base.h.2.wi"]},
        "base.h.3.wi: is no tensor",
    ),
    "the first layer's norm": (
        lambda t: t | {"base.h.0.norm": t["base.h.1.norm"]},
        "base.h.0.norm: is no tensor",
    ),
    "transposed": (
        lambda t: t | {"base.h.1.wi": t["base.h.1.wi"].T.copy()},
        "base.h.1.wi: has shape [6, 5], expected [5, 6]",
    ),
    "the padded vocabulary": (
        lambda t: t | {"base.words": random((PADDED, D))},
        "base.words: has shape [128, 6], expected [100, 6]",
    ),
    "flat": (
        lambda t: t | {"base.h.1.wi": t["base.h.1.wi"].reshape(-1)},
        "base.h.1.wi: has shape [30], expected [5, 6]",
    ),
    "whole numbers": (
        lambda t: t | {"base.h.1.wi": np.ones((F, D), np.int8)},
        "base.h.1.wi: has dtype I8; weights are read as F64, F32, F16, BF16",
    ),
    "eight bits": (
        lambda t: t | {"base.h.1.wi": np.ones((F, D), FLOAT8)},
        "base.h.1.wi: has dtype F8_E4M3",
    ),
    "repeated with a difference": (
        lambda t: t | {"head": np.nextafter(t["base.words"], np.float32(9))},
        "head: differs from base.words",
    ),
    "repeated in another dtype": (
        lambda t: t | {"head": t["base.words"].astype(np.float64)},
        "head: differs from base.words",
    ),
    "two unequal ones without the original": (
        lambda t: moved(t, "base.words", "head") | {"base.other": random((V, D), 9)},
        "base.other: differs",
    ),
    "numbers without a place": (
        lambda t: t | {"base.h.1.zero": np.eye(1, D, 4, dtype=np.float32)[0]},
        "base.h.1.zero: has numbers other than 0",
    ),
    "both names": (lambda t: t | {"words": t["base.words"]}, "words: is no tensor"),
    "old and new name": (
        lambda t: t | {"base.h.1.gamma": t["base.h.1.norm"]},
        "is there as base.h.1.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tensors_that_are_refused_in_one_line(tmp_path, case):
    change, expected = REFUSED[case]
    shapes = write(tmp_path, filled(tree()))
    altered(tmp_path, change)
    with pytest.raises(UserError) as refused:
        read(tmp_path, shapes)
    message = str(refused.value)
    assert (
        expected in message
        and message.startswith(str(tmp_path / "model.safetensors"))
        and "\n" not in message
    )


def test_what_is_missing_from_shards_names_the_index(tmp_path):
    shapes = write(tmp_path, filled(tree()), shard_bytes=400)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = tmp_path / index["weight_map"].pop("base.h.2.wi")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(without(load_file(shard), "base.h.2.wi"), shard)
    with pytest.raises(
        UserError, match=r"model\.safetensors\.index\.json: base\.h\.2\.wi: there is no such tensor"
    ):
        read(tmp_path, shapes)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (TABLE.rules[1:], "no rule for embedding.tokens"),
        ((*TABLE.rules, TABLE.rules[0]), "or in an earlier rule too"),
        (
            (*TABLE.rules[1:], Rule("w", "v d", ("embedding.tokens", "nowhere"), "vd")),
            "are not all in the model",
        ),
    ],
)
def test_a_table_covers_each_parameter_once(rules, expected):
    with pytest.raises(ValueError, match=expected) as mistake:
        weights.map_tensors(TABLE._replace(rules=rules), MODEL, tree())
    assert not isinstance(mistake.value, UserError)


@pytest.mark.parametrize("stored", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_dtypes(tmp_path, stored, wanted):
    params = filled(tree())
    shapes = write(tmp_path, params, dtype=stored)
    got = read(tmp_path, shapes, dtype=wanted)
    assert_same(
        got, jax.tree.map(lambda x: x.astype(files.FLOAT_DTYPES[stored]).astype(wanted), params)
    )


def test_numbers_are_rounded_to_the_nearest_bfloat16(tmp_path):
    params = filled(tree())
    write(tmp_path, params, dtype="BF16")
    theirs = load_file(tmp_path / "model.safetensors")["base.words"]
    expected = np.asarray(jnp.asarray(params["embedding"]["tokens"][:V]).astype(jnp.bfloat16))
    assert theirs.tobytes() == expected.tobytes()


# Real models from here on.
GPT2 = config.ModelConfig(vocabulary_size=300, layers=3, width=48, heads=4, context_length=32)
ROBERTA = config.ModelConfig(
    family="encoder",
    vocabulary_size=300,
    layers=2,
    width=48,
    heads=4,
    context_length=32,
    position_offset=2,
    token_types=1,
    norm_placement="post",
    embedding_norm=True,
    activation="gelu",
    head_bias=True,
    head_transform=True,
    norm_epsilon=1e-12,
)
T5 = config.ModelConfig(
    family="encoder_decoder",
    vocabulary_size=300,
    layers=2,
    heads=4,
    mlp_width=40,
    encoder_layers=3,
    width=32,
    head_width=8,
    norm="rmsnorm",
    norm_epsilon=1e-6,
    positions="relative",
    activation="gelu_tanh",
    gated=True,
    attention_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    attention_scale=1.0,
    tied_head=False,
)
MODELS = {"gpt2": GPT2, "roberta": ROBERTA, "t5": T5}


def random_params(model):
    """Random numbers everywhere but in the rows that pad the vocabulary."""
    padded = -(-model.vocabulary_size // 128) * 128
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), parameter_shapes(model)
    )
    for leaf in jax.tree.leaves(params):
        for axis in np.flatnonzero(np.array(leaf.shape) == padded):
            np.moveaxis(leaf, axis, 0)[model.vocabulary_size :] = 0
    return params


def placement(model, **parallel):
    mesh = sharding.make_mesh(config.ParallelConfig(**parallel), jax.devices())
    return sharding.Placement(mesh, models.build(model).axes, parallel["zero"])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 50_000])
def test_round_trip(tmp_path, name, max_shard_bytes):
    model, params = MODELS[name], random_params(MODELS[name])
    assert interop.save(tmp_path, model, params, max_shard_bytes=max_shard_bytes).model_type == name
    assert (tmp_path / "model.safetensors").exists() == (max_shard_bytes > 50_000)
    again, loaded = interop.load(tmp_path)
    assert canonical_fields(again) == canonical_fields(model)
    assert_same(loaded, params)
    assert all(
        isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32
        for leaf in jax.tree.leaves(loaded)
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "parallel",
    [
        dict(zero=3, data=2, fsdp=2, tensor=2),
        dict(zero=3, data=1, fsdp=8, tensor=1),
        dict(zero=0, data=8, fsdp=1),
    ],
)
def test_shards_hold_what_the_whole_has(tmp_path, name, parallel):
    """Loaded in shards and saved from them."""
    model, params = MODELS[name], random_params(MODELS[name])
    interop.save(tmp_path / "one", model, params)
    shardings = placement(model, **parallel).tree("parameters", parameter_shapes(model))
    _, loaded = interop.load(tmp_path / "one", shardings=shardings)
    assert_same(loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == shardings
    for leaf, whole in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        for shard in leaf.addressable_shards:
            assert np.array_equal(shard.data, whole[shard.index])
    interop.save(tmp_path / "two", model, loaded, max_shard_bytes=1 << 30)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


def test_layers_are_fetched_one_by_one_from_devices_without_host_memory(tmp_path, monkeypatch):
    params = random_params(GPT2)
    shardings = placement(GPT2, zero=3, data=2, fsdp=2, tensor=2).tree(
        "parameters", parameter_shapes(GPT2)
    )
    interop.save(tmp_path / "one", GPT2, params)
    fetched, one_layer = [], weights.slice_layer
    monkeypatch.setattr(weights, "on_host", lambda shard: False)
    monkeypatch.setattr(
        weights, "one_layer", lambda stack, layer: fetched.append(layer) or one_layer(stack, layer)
    )
    interop.save(tmp_path / "two", GPT2, jax.device_put(params, shardings))
    assert set(fetched) == set(range(GPT2.layers))
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


def test_a_step_may_overwrite_what_was_loaded(tmp_path):
    """Devices with the same shard share their memory on a CPU; donating it must not let one write what another one reads."""
    params = random_params(GPT2)
    interop.save(tmp_path, GPT2, params)
    shardings = placement(GPT2, zero=0, data=8, fsdp=1).tree("parameters", parameter_shapes(GPT2))
    _, loaded = interop.load(tmp_path, shardings=shardings)
    step = jax.jit(
        lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0, out_shardings=shardings
    )
    for leaf, whole in zip(
        jax.tree.leaves(jax.block_until_ready(step(loaded))), jax.tree.leaves(params), strict=True
    ):
        assert all(np.array_equal(shard.data, whole + 1) for shard in leaf.addressable_shards)


def test_a_model_saved_in_bfloat16(tmp_path):
    params = random_params(GPT2)
    interop.save(tmp_path, GPT2, params, dtype="bfloat16")
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["dtype"] == values["torch_dtype"] == "bfloat16"
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    assert_same(interop.load(tmp_path, dtype="bfloat16")[1], rounded)
    interop.save(
        tmp_path / "again", GPT2, rounded, dtype="bfloat16"
    )  # also from parameters of that dtype
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "model.safetensors"
    ).read_bytes()
    with pytest.raises(UserError, match="dtype: 'int8' is not supported; known: float32, bfloat16"):
        interop.save(tmp_path / "no", GPT2, params, dtype="int8")


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_what_was_saved(tmp_path, name):
    """In bfloat16 and several shards."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    params = random_params(MODELS[name])
    interop.save(
        tmp_path,
        MODELS[name],
        params,
        dtype="bfloat16",
        max_shard_bytes=20_000,
        tokens={"eos_token_id": 0, "pad_token_id": 1},
    )
    cls = getattr(
        transformers, json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    )
    peer, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert peer.dtype == torch.bfloat16 and len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = {
        key: tensor
        for path in tmp_path.glob("*.safetensors")
        for key, tensor in load_file(path).items()
    }
    for key, tensor in peer.state_dict().items():
        if key in ours:
            assert tensor.view(torch.int16).numpy().tobytes() == ours[key].tobytes(), key


def test_config_of_a_directory(tmp_path):
    interop.save(
        tmp_path, GPT2, random_params(GPT2), tokens={"eos_token_id": 7, "bos_token_id": None}
    )
    architecture, model = interop.read_config(tmp_path)
    assert architecture.model_type == "gpt2" and canonical_fields(model) == canonical_fields(GPT2)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (
        values["architectures"] == ["GPT2LMHeadModel"]
        and values["model_type"] == "gpt2"
        and values["eos_token_id"] == 7
    )


CONFIGS = {
    "unknown type": (
        {"model_type": "falcon"},
        r'model_type: "falcon" is not supported; known: gpt2, ',
    ),
    "no type": ({"model_type": None}, r"model_type: null is not supported"),
    "type is a list": ({"model_type": ["gpt2"]}, r'model_type: \["gpt2"\] is not supported'),
    "another head": (
        {"architectures": ["GPT2ForSequenceClassification"]},
        r"architectures: GPT2ForSequenceClassification is not supported, only GPT2",
    ),
    "architectures is a word": (
        {"architectures": "GPT2LMHeadModel"},
        r"architectures: must be a list of words",
    ),
    "code": ({"auto_map": {"AutoConfig": "x.Y"}}, r"auto_map: names code"),
    "heads": (
        {"n_head": 5},
        r"gives a model that can't be: model\.width: 48 is not a multiple of heads \(5\)",
    ),
    "a vocabulary of another size": (
        {"vocab_size": 299},
        r"wte\.weight: has shape \[300, 48\], expected \[299, 48\]",
    ),
    "more layers": ({"n_layer": 4}, r"transformer\.h\.3\..*: there is no such tensor"),
    "fewer layers": (
        {"n_layer": 2},
        r"transformer\.h\.2\..*: is no tensor of a gpt2 model with this config\.json; nor is .* more",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_does_not_fit_is_refused_in_one_line(tmp_path, case):
    changes, expected = CONFIGS[case]
    interop.save(tmp_path, GPT2, random_params(GPT2))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=expected) as refused:
        interop.load(tmp_path)
    assert str(refused.value).startswith(str(tmp_path)) and "\n" not in str(refused.value)


def test_token_ids_that_contradict_the_model(tmp_path):
    params = random_params(ROBERTA)
    interop.save(tmp_path / "good", ROBERTA, params, tokens={"pad_token_id": 1, "eos_token_id": 2})
    interop.save(tmp_path / "none", ROBERTA, params)
    for name in ("good", "none"):
        assert json.loads((tmp_path / name / "config.json").read_text())["pad_token_id"] == 1
    with pytest.raises(
        UserError,
        match=r"pad_token_id: 0 can't be written: a roberta .* has 1; model\.position_offset \(2\) is pad_token_id \+ 1",
    ):
        interop.save(tmp_path / "bad", ROBERTA, params, tokens={"pad_token_id": 0})
    with pytest.raises(UserError, match=r"eos_token_id: 300 is not in the vocabulary \(0 to 299\)"):
        interop.save(tmp_path / "bad", ROBERTA, params, tokens={"eos_token_id": [2, 300]})
    assert not (tmp_path / "bad").exists()


UNSPEAKABLE = {
    "decoder": (
        replace(GPT2, norm="rmsnorm", positions="sinusoidal"),
        r"known here is this model: \w+, the nearest, has model\.",
    ),
    "one field": (
        replace(GPT2, logit_softcap=3.0),
        r"gpt2, the nearest, has model\.logit_softcap = None \(here 3\.0\)$",
    ),
}


@pytest.mark.parametrize("case", UNSPEAKABLE)
def test_a_model_that_no_architecture_is(tmp_path, case):
    model, expected = UNSPEAKABLE[case]
    with pytest.raises(UserError, match=expected):
        interop.save(tmp_path / "out", model, random_params(model))
    assert not (tmp_path / "out").exists()


LLAMA = dict(
    norm="rmsnorm",
    positions="rotary",
    activation="silu",
    gated=True,
    attention_bias=False,
    mlp_bias=False,
)
EQUAL = {
    "kv_heads": (GPT2, dict(kv_heads=4)),
    "sizes that None stands for": (
        GPT2,
        dict(mlp_width=192, head_width=12, attention_scale=12**-0.5),
    ),
    "training": (
        GPT2,
        dict(initializer="normal", initializer_std=0.3, dropout=0.1, attention_dropout=0.2),
    ),
    "unused rotary": (GPT2, dict(rotary_theta=5.0, rotary_scaling_factor=3.0)),
    "unused buckets": (GPT2, dict(relative_buckets=8)),
    "positions without a table": (replace(GPT2, **LLAMA), dict(context_length=999)),
    "biases that RMSNorm has not": (replace(GPT2, **LLAMA), dict(norm_bias=False)),
    "a pattern without an end": (
        replace(GPT2, sliding_window=4, attention_pattern=("full", "sliding")),
        dict(attention_pattern=("full", "sliding", "full")),
    ),
    "all sliding": (replace(GPT2, sliding_window=4), dict(attention_pattern=("sliding",))),
    "none sliding": (GPT2, dict(sliding_window=4, attention_pattern=("full",))),
    "scaling by 1 part": (
        replace(GPT2, **LLAMA, rotary_scaling="linear"),
        dict(rotary_original_length=7),
    ),
    "encoder": (T5, dict(encoder_heads=4, encoder_mlp_width=40)),
}
UNEQUAL = {
    "rows": (GPT2, dict(context_length=33)),
    "theta": (replace(GPT2, **LLAMA), dict(rotary_theta=5.0)),
    "share": (replace(GPT2, **LLAMA), dict(rotary_share=0.5)),
    "window": (replace(GPT2, sliding_window=4), dict(sliding_window=5)),
    "pattern": (replace(GPT2, sliding_window=4), dict(attention_pattern=("full", "sliding"))),
    "encoder": (T5, dict(encoder_layers=4)),
    "buckets": (T5, dict(relative_max_distance=64)),
    "scaling": (replace(GPT2, **LLAMA, rotary_scaling="llama3"), dict(rotary_original_length=7)),
}


@pytest.mark.parametrize("case", EQUAL)
def test_fields_that_change_nothing_are_equal(case):
    model, fields = EQUAL[case]
    assert canonical_fields(model) == canonical_fields(replace(model, **fields))


@pytest.mark.parametrize("case", UNEQUAL)
def test_fields_that_change_the_function_are_not(case):
    model, fields = UNEQUAL[case]
    assert canonical_fields(model) != canonical_fields(replace(model, **fields))


def test_parameters_of_another_model_are_our_own_mistake(tmp_path):
    with pytest.raises(ValueError, match=r"blocks\.attention\.\w+: shape .* given"):
        interop.save(tmp_path / "out", GPT2, random_params(replace(GPT2, layers=2)))
    assert not (tmp_path / "out").exists()


CHILD = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from jaxlm import config, interop, models, sharding
from jaxlm.interop.match_architecture import shapes_of

def bytes_of(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

_, model = interop.read_config(sys.argv[1])
shapes, shardings = shapes_of(model), None
if sys.argv[2] == "sharded":
    mesh = sharding.make_mesh(config.ParallelConfig(zero=3, data=2, fsdp=2, tensor=2), jax.devices())
    shardings = sharding.Placement(mesh, models.build(model).axes, 3).tree("parameters", shapes)
jax.block_until_ready(jax.device_put(np.zeros(8)))
before = bytes_of("VmRSS")
_, params = interop.load(sys.argv[1], shardings=shardings)
loaded = bytes_of("VmHWM") - before
interop.save(sys.argv[1] + "/out", model, params)
print(loaded, bytes_of("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(("how", "dtype"), [("whole", "float32"), ("sharded", "bfloat16")])
def test_memory_is_the_shards_and_one_tensor(tmp_path, how, dtype):
    """In a process of its own, from what it has before to its peak. Devices with equal shards share them on a CPU."""
    model = config.ModelConfig(
        vocabulary_size=50257, layers=6, width=384, heads=6, context_length=32
    )
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 0.5, np.float32), parameter_shapes(model)
    )
    interop.save(tmp_path, model, params, dtype=dtype)
    largest = model.vocabulary_size * model.width * (4 if dtype == "float32" else 2)
    shards = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert (
        largest > 0.25 * shards and shards > 100_000_000
    )  # neither is lost in the noise of the other
    child = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path, how],
        capture_output=True,
        text=True,
        env=multiprocess.environment(),
    )
    assert child.returncode == 0, child.stderr
    loading, saving = map(int, child.stdout.split())
    assert shards < loading < shards + 1.2 * largest
    assert saving < shards + 1.2 * model.vocabulary_size * model.width * 4  # written in float32


PEER = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]), coordinator_bind_address=sys.argv[2])
from jaxlm import config, interop, models, sharding
from jaxlm.interop.match_architecture import shapes_of

_, model = interop.read_config(sys.argv[1])
mesh = sharding.make_mesh(config.ParallelConfig(zero=3, data=1, fsdp=4, tensor=2), jax.devices())
shardings = sharding.Placement(mesh, models.build(model).axes, 3).tree("parameters", shapes_of(model))
_, params = interop.load(sys.argv[1], shardings=shardings)
_, whole = interop.load(sys.argv[1])
shards = 0
for leaf, expected in zip(jax.tree.leaves(params), jax.tree.leaves(whole), strict=True):
    for shard in leaf.addressable_shards:
        assert np.array_equal(shard.data, np.asarray(expected)[shard.index])
        shards += shard.data.shape != leaf.shape
try:
    interop.save(sys.argv[1] + "/out", model, params)
except ValueError as error:
    print(jax.process_count(), shards, error)
"""


@pytest.mark.slow
def test_two_processes_load_their_shards(tmp_path):
    interop.save(tmp_path, GPT2, random_params(GPT2))
    address = f"127.0.0.1:{multiprocess.free_port()}"
    arguments = [sys.executable, "-c", PEER, tmp_path, address]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peers = [
        subprocess.Popen([*arguments, str(number)], env=multiprocess.environment(), **pipes)
        for number in range(2)
    ]
    try:
        for peer in peers:
            out, err = peer.communicate(timeout=multiprocess.LIMIT)
            assert peer.returncode == 0, err
            processes, split, error = out.splitlines()[-1].split(maxsplit=2)
            assert (
                processes == "2"
                and int(split) > 40
                and error
                == "parameters that are spread over several processes can't be written by one"
            )
    finally:
        for peer in peers:
            peer.kill()
    assert not (tmp_path / "out").exists()
