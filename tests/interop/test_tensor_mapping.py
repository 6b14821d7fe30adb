"""Tables of tensors, run in both directions: layouts, what may be missing or left over."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.hf_directories import change_tensors
from support.trees import assert_same

from jaxlm import config
from jaxlm.config import UserError
from jaxlm.interop.layout import dimension_sizes, parameter_views, tensor_shape
from jaxlm.interop.mapping import Architecture, Rule
from jaxlm.interop.read_weights import read_weights
from jaxlm.interop.safetensors_reader import FLOAT_DTYPES, read_tensor_index
from jaxlm.interop.safetensors_writer import staged_files, write_safetensors
from jaxlm.interop.tensor_mapping import map_tensors
from jaxlm.interop.write_weights import iterate_tensors, tensor_specs

D, H, K, F, V, PADDED, LAYERS = 6, 2, 3, 5, 100, 128, 3

# Layout, dims, and how numpy makes the tensor of parameters [d, h, k], [f, d] and so on.
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
    sizes = dimension_sizes(rule, [shape] * count, V)
    expected = np.ascontiguousarray(reference(*ours))
    assert tensor_shape(rule, sizes) == expected.shape
    for view, values in zip(parameter_views(rule, expected, sizes), ours, strict=True):
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
        parameter_views(rule, np.zeros((4, 6)), {"d": 4, "f": 6, "h": 2, "k": 3})
    with pytest.raises(ValueError, match="can't describe"):
        dimension_sizes(rule, [(1, 2, 3)] * len(rule.parameters), V)


# A table with a row of each kind, on a tree of shapes: no model is needed for it.
TABLE = Architecture(
    model_type="toy",
    classes=("Toy",),
    family="decoder",
    read=lambda hf_config, tensors: MODEL,
    write=lambda model: {},
    rules=(
        Rule("base.words", "v d", ("embedding.tokens",), "vd", copies=("base.again",)),
        Rule("base.h.{}.norm", "d", ("blocks.attention_norm.scale",), "d", first_layer=1),
        Rule("base.h.{}.shift", "d", ("blocks.attention_norm.bias",), "d", first_layer=1),
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
    """Return the shapes of the parameters."""
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
    """Return random parameters, with what reading gives where a file has no number."""
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
    rows = map_tensors(architecture, model, shapes)
    with staged_files(directory) as staged:
        write_safetensors(
            staged,
            tensor_specs(rows, dtype),
            iterate_tensors(rows, params, dtype),
            shard_bytes,
        )
    return shapes


def read(directory, shapes, architecture=TABLE, model=MODEL, shardings=None, dtype=np.float32):
    return read_weights(
        architecture,
        model,
        read_tensor_index(directory),
        shapes=shapes,
        shardings=shardings,
        dtype=dtype,
    )


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
    change_tensors(tmp_path, ACCEPTED[case])
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
        "base.h.0.extra: is not a tensor of a toy model with this config.json",
    ),
    "four left over": (
        lambda t: t | {f"x{i}": t["base.words"] for i in range(5)},
        "; nor are x1, x2 and 2 more",
    ),
    "a bias that config.json is without": (
        lambda t: t | {"base.h.0.absent": np.ones(F, np.float32)},
        "base.h.0.absent: is not a tensor of a toy",
    ),
    "a layer too many": (
        lambda t: t | {"base.h.3.wi": t["base.h.2.wi"]},
        "base.h.3.wi: is not a tensor",
    ),
    "the first layer's norm": (
        lambda t: t | {"base.h.0.norm": t["base.h.1.norm"]},
        "base.h.0.norm: is not a tensor",
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
        "base.h.1.zero: has values other than 0",
    ),
    "both names": (lambda t: t | {"words": t["base.words"]}, "words: is not a tensor"),
    "old and new name": (
        lambda t: t | {"base.h.1.gamma": t["base.h.1.norm"]},
        "the file has the same tensor under the name base.h.1.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tensors_that_are_refused_in_one_line(tmp_path, case):
    change, expected = REFUSED[case]
    shapes = write(tmp_path, filled(tree()))
    change_tensors(tmp_path, change)
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
        map_tensors(TABLE._replace(rules=rules), MODEL, tree())
    assert not isinstance(mistake.value, UserError)


@pytest.mark.parametrize("stored", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_dtypes(tmp_path, stored, wanted):
    params = filled(tree())
    shapes = write(tmp_path, params, dtype=stored)
    got = read(tmp_path, shapes, dtype=wanted)
    assert_same(got, jax.tree.map(lambda x: x.astype(FLOAT_DTYPES[stored]).astype(wanted), params))


def test_numbers_are_rounded_to_the_nearest_bfloat16(tmp_path):
    params = filled(tree())
    write(tmp_path, params, dtype="BF16")
    theirs = load_file(tmp_path / "model.safetensors")["base.words"]
    expected = np.asarray(jnp.asarray(params["embedding"]["tokens"][:V]).astype(jnp.bfloat16))
    assert theirs.tobytes() == expected.tobytes()
