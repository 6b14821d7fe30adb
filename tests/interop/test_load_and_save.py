"""interop.load and interop.save on whole models: shards, memory, dtypes, and errors."""

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
from safetensors.numpy import load_file
from support import multiprocess
from support.hf_directories import random_weights
from support.interop_models import GPT2, MODELS, ROBERTA
from support.trees import assert_same

from jaxlm import config, interop, models, sharding
from jaxlm.config import UserError
from jaxlm.interop import write_weights
from jaxlm.interop.match_architecture import canonical_fields, parameter_shapes


def placement(model, **parallel):
    mesh = sharding.make_mesh(config.ParallelConfig(**parallel), jax.devices())
    return sharding.Placement(mesh, models.build(model).axes, parallel["zero"])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 50_000])
def test_round_trip(tmp_path, name, max_shard_bytes):
    model, params = MODELS[name], random_weights(MODELS[name])
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
    model, params = MODELS[name], random_weights(MODELS[name])
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


def test_stacks_may_be_sharded_over_their_layers(tmp_path):
    model = replace(GPT2, layers=4)
    params = random_weights(model)
    interop.save(tmp_path / "one", model, params)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("layers",))

    def sharding_of(path, leaf):
        axes = ("layers",) if path[0].key == "blocks" else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    shardings = jax.tree_util.tree_map_with_path(sharding_of, parameter_shapes(model))
    _, loaded = interop.load(tmp_path / "one", shardings=shardings)
    assert_same(loaded, params)
    interop.save(tmp_path / "two", model, loaded)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_layers_are_fetched_one_by_one_from_devices_without_host_memory(tmp_path, monkeypatch):
    params = random_weights(GPT2)
    shardings = placement(GPT2, zero=3, data=2, fsdp=2, tensor=2).tree(
        "parameters", parameter_shapes(GPT2)
    )
    interop.save(tmp_path / "one", GPT2, params)
    fetched, slice_layer = [], write_weights.slice_layer
    monkeypatch.setattr(write_weights, "is_on_host", lambda shard: False)
    monkeypatch.setattr(
        write_weights,
        "slice_layer",
        lambda stack, layer: fetched.append(layer) or slice_layer(stack, layer),
    )
    interop.save(tmp_path / "two", GPT2, jax.device_put(params, shardings))
    assert set(fetched) == set(range(GPT2.layers))
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


def test_a_step_may_overwrite_what_was_loaded(tmp_path):
    """Devices with the same shard share memory on a CPU: donating it must not harm others."""
    params = random_weights(GPT2)
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
    params = random_weights(GPT2)
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
    params = random_weights(MODELS[name])
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
        tmp_path, GPT2, random_weights(GPT2), tokens={"eos_token_id": 7, "bos_token_id": None}
    )
    architecture, model = interop.read_config(tmp_path)
    assert architecture.model_type == "gpt2" and canonical_fields(model) == canonical_fields(GPT2)
    values = json.loads((tmp_path / "config.json").read_text())
    assert "bos_token_id" in values and values["bos_token_id"] is None
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
        {"architectures": ["GPT2ForQuestionAnswering"]},
        r"architectures: GPT2ForQuestionAnswering is not supported, only GPT2",
    ),
    "architectures is a word": (
        {"architectures": "GPT2LMHeadModel"},
        r"architectures: must be a list of strings",
    ),
    "code": ({"auto_map": {"AutoConfig": "x.Y"}}, r"auto_map: names code"),
    "heads": (
        {"n_head": 5},
        r"describes an impossible model: model\.width: 48 is not a multiple of heads \(5\)",
    ),
    "a vocabulary of another size": (
        {"vocab_size": 299},
        r"wte\.weight: has shape \[300, 48\], expected \[299, 48\]",
    ),
    "more layers": ({"n_layer": 4}, r"transformer\.h\.3\..*: there is no such tensor"),
    "fewer layers": (
        {"n_layer": 2},
        r"transformer\.h\.2\..*: is not a tensor of a gpt2 model .*; nor are .* more",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_does_not_fit_is_refused_in_one_line(tmp_path, case):
    changes, expected = CONFIGS[case]
    interop.save(tmp_path, GPT2, random_weights(GPT2))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=expected) as refused:
        interop.load(tmp_path)
    assert str(refused.value).startswith(str(tmp_path)) and "\n" not in str(refused.value)


def test_token_ids_that_contradict_the_model(tmp_path):
    params = random_weights(ROBERTA)
    interop.save(tmp_path / "good", ROBERTA, params, tokens={"pad_token_id": 1, "eos_token_id": 2})
    interop.save(tmp_path / "none", ROBERTA, params)
    for name in ("good", "none"):
        assert json.loads((tmp_path / name / "config.json").read_text())["pad_token_id"] == 1
    with pytest.raises(
        UserError,
        match=r"pad_token_id: 0 can't be written: a roberta .* has 1; "
        r"its model\.position_offset \(2\) is pad_token_id \+ 1",
    ):
        interop.save(tmp_path / "bad", ROBERTA, params, tokens={"pad_token_id": 0})
    with pytest.raises(UserError, match=r"eos_token_id: 300 is not in the vocabulary \(0 to 299\)"):
        interop.save(tmp_path / "bad", ROBERTA, params, tokens={"eos_token_id": [2, 300]})
    assert not (tmp_path / "bad").exists()


def test_parameters_of_another_model_are_our_own_mistake(tmp_path):
    with pytest.raises(ValueError, match=r"blocks\.attention\.\w+: shape .* given"):
        interop.save(tmp_path / "out", GPT2, random_weights(replace(GPT2, layers=2)))
    assert not (tmp_path / "out").exists()


CHILD = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from jaxlm import config, interop, models, sharding
from jaxlm.interop.match_architecture import parameter_shapes

def bytes_of(key):
    lines = open("/proc/self/status").readlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

_, model = interop.read_config(sys.argv[1])
shapes, shardings = parameter_shapes(model), None
if sys.argv[2] == "sharded":
    parallel = config.ParallelConfig(zero=3, data=2, fsdp=2, tensor=2)
    mesh = sharding.make_mesh(parallel, jax.devices())
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
    """From the memory of a process before to its peak. Devices with equal shards share them."""
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
from jaxlm.interop.match_architecture import parameter_shapes

_, model = interop.read_config(sys.argv[1])
mesh = sharding.make_mesh(config.ParallelConfig(zero=3, data=1, fsdp=4, tensor=2), jax.devices())
placement = sharding.Placement(mesh, models.build(model).axes, 3)
shardings = placement.tree("parameters", parameter_shapes(model))
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
    interop.save(tmp_path, GPT2, random_weights(GPT2))
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
