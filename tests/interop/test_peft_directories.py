"""Directories of PEFT adapters: the commands that write and read them, and what is refused.

They are made here: `peft` is not needed.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import tiny_run
from support.conversions import converted
from support.interop_models import GPT2
from support.marks import quick_and_slow
from support.trees import assert_same

from jaxlm import config, interop, models
from jaxlm.config import AdapterConfig, ModelConfig, UserError
from jaxlm.interop.peft_directory import load_adapter, save_adapter
from jaxlm.load_model import load_model
from jaxlm.models.adapters import adapter_part

ADAPTER = AdapterConfig(rank=2, targets=("qkv", "down"), base="float32")
WEIGHTS = "adapter_model.safetensors"
FIRST_B = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"


def write_adapter(
    folder: Path, model: ModelConfig = GPT2, adapter: AdapterConfig = ADAPTER
) -> dict:
    """Write an adapter of random values; return its parameters."""
    built = models.build(model, adapter=adapter)
    random = np.random.default_rng(0)
    shapes = adapter_part(jax.eval_shape(built.init, jax.random.key(0)))
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes)
    save_adapter(folder, model, adapter, params)
    return params


@pytest.mark.parametrize("dora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_is_written_is_read_again_bit_for_bit(dora, tmp_path):
    adapter = replace(ADAPTER, dora=dora, dropout=0.25, alpha=3.0, rank_stabilised=dora)
    params = write_adapter(tmp_path / "a", adapter=adapter)
    read = load_adapter(tmp_path / "a", GPT2)
    assert read.config == adapter
    assert_same(read.params, params)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    assert tensors[FIRST_B].shape == (3 * GPT2.width, 2)
    assert len(tensors) == GPT2.layers * 2 * (3 if dora else 2)


@pytest.mark.slow
def test_names_of_a_class_without_a_head_are_read(tmp_path):
    """PEFT on a GPT2Model leaves `transformer.` out."""
    params = write_adapter(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({n.replace("transformer.", ""): x for n, x in tensors.items()}, tmp_path / WEIGHTS)
    assert_same(load_adapter(tmp_path, GPT2).params, params)


def change_values(**values):
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def change_tensors(edit):
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS)

    return change


def make_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def drop_all(tensors: dict) -> None:
    name = "base_model.model.transformer.wte.lora_embedding_A"
    tensors.update({name: np.zeros((2, 3), np.float32)})
    for other in [n for n in tensors if n != name]:
        del tensors[other]


A_NAME = "base_model.model.transformer.h.1.mlp.c_proj.lora_A.weight"
MISTAKES = {
    "a pickle": (make_pickle, "adapter_model.bin: is a pickle, which can run code"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: there is no such file"),
    "no JSON": (
        lambda f: (f / "adapter_config.json").write_text("{"),
        "adapter_config.json: is not JSON",
    ),
    "another method": (
        change_values(peft_type="LOHA"),
        'adapter_config.json: peft_type: "LOHA" is not read, only "LORA"',
    ),
    "biases": (change_values(bias="all"), 'bias: "all" is not read, only "none"'),
    "ranks by module": (
        change_values(rank_pattern={"c_attn": 4}),
        'rank_pattern: {"c_attn": 4} is not read',
    ),
    "some layers": (
        change_values(layers_to_transform=[0]),
        "layers_to_transform: [0] is not read",
    ),
    "another base": (
        change_values(init_lora_weights="pissa_niter_4"),
        'init_lora_weights: "pissa_niter_4" changes the weights of the base',
    ),
    "a rank that is none": (change_values(r=0), "r: r=0 and lora_alpha=16.0 must be above 0"),
    "a rank of text": (change_values(r="8"), 'r: must be a whole number, got "8"'),
    "another rank": (change_values(r=4), "has shape [2, 48], expected [4, 48]"),
    "a missing layer": (
        change_tensors(lambda t: t.pop(A_NAME)),
        "h.1.mlp.c_proj.lora_A.weight: there is no such tensor, expected [2, 192]",
    ),
    "an unknown tensor": (
        change_tensors(lambda t: t.update({f"{A_NAME}.x": np.zeros(3, np.float32)})),
        "lora_A.weight.x: is not a tensor of a gpt2 model with this config.json",
    ),
    "no matrix of a block": (
        change_tensors(drop_all),
        "target_modules: [",
    ),
    "integers": (
        change_tensors(lambda t: t.update({A_NAME: np.zeros((2, 192), np.int32)})),
        "has dtype I32",
    ),
}


QUICK = ("a pickle", "biases", "a missing layer", "another rank")


@pytest.mark.parametrize(
    ("name",), quick_and_slow([(name,) for name in QUICK], [(name,) for name in MISTAKES])
)
def test_a_directory_that_is_no_lora_is_refused_in_one_line(name, tmp_path):
    change, message = MISTAKES[name]
    write_adapter(tmp_path / "a")
    change(tmp_path / "a")
    with pytest.raises(UserError) as caught:
        load_adapter(tmp_path / "a", GPT2)
    assert str(tmp_path) in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_one_matrix_elsewhere_have_one_adapter(tmp_path):
    adapter = replace(ADAPTER, targets=("query", "value"))
    with pytest.raises(UserError, match=r"adapter.targets: gpt2 has query, key, value as one"):
        write_adapter(tmp_path, adapter=adapter)
    gated = replace(
        GPT2,
        norm="rmsnorm",
        positions="rotary",
        gated=True,
        activation="silu",
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
    )
    write_adapter(tmp_path / "llama", gated, adapter)  # as matrices of their own
    assert len(load_file(tmp_path / "llama" / WEIGHTS)) == GPT2.layers * 4


@pytest.mark.slow
def test_ends_of_names_that_mean_other_modules_are_given_whole(tmp_path):
    bert = replace(
        GPT2,
        family="encoder",
        norm_placement="post",
        embedding_norm=True,
        token_types=2,
        activation="gelu",
        head_bias=True,
        head_transform=True,
        norm_epsilon=1e-12,
    )
    targets = {}
    for name in ("down", "value"):
        write_adapter(tmp_path / name, bert, replace(ADAPTER, targets=(name,)))
        values = json.loads((tmp_path / name / "adapter_config.json").read_text())
        targets[name] = values["target_modules"]
    assert targets["value"] == ["attention.self.value"]
    assert targets["down"] == [f"bert.encoder.layer.{n}.output.dense" for n in range(3)]


# The commands


RECIPE = tiny_run.RECIPE.replace(
    "    tokenizer=", '    base="runs/tiny",\n    adapter=ADAPTER,\n    tokenizer=', 1
)


@pytest.mark.slow
def test_a_run_of_adapters_is_exported_and_imported(copied_run, capsys):
    copied_run("decoder")
    adapter = 'AdapterConfig(rank=2, targets=("qkv", "up"), base="int8", dropout=0.1)'
    lines = RECIPE.replace("ADAPTER", adapter).splitlines()
    start = next(i for i, line in enumerate(lines) if "model=ModelConfig" in line)
    del lines[start : start + 3]  # the model is that of the base, and so is the tokenizer
    lines = [line for line in lines if "tokenizer=" not in line]
    Path("lora.py").write_text("\n".join(lines))
    assert (
        tiny_run.run("optimizer.learning_rate=0.003", recipe="lora.py", directory="runs/lora") == 0
    )
    assert "of adapters" in capsys.readouterr().out

    # Resumed, it goes on as it would have.
    shutil.copytree("runs/lora", "runs/resumed")
    shutil.rmtree("runs/resumed/checkpoints/12")
    edits = ("optimizer.learning_rate=0.003",)
    assert tiny_run.run(*edits, recipe="lora.py", directory="runs/resumed") == 0
    assert tiny_run.rows("runs/resumed") == tiny_run.rows("runs/lora")

    # The whole model, and the adapters alone.
    assert converted("export", "runs/lora", "merged") == 0
    assert converted("export", "runs/lora", "peft", "--adapter") == 0
    _, merged = interop.load("merged")
    own = load_model("runs/lora").params["blocks"]
    assert_same(jax.device_get(merged["blocks"]), jax.device_get(own))

    Path("runs/tiny/chat_template.jinja").write_text("{{ messages }}")
    assert converted("import", "peft", "runs/back", "base=runs/tiny", "adapter.base=int8") == 0
    assert Path("runs/back/chat_template.jinja").exists()
    back, run_config = load_model("runs/back", merged=False), config.load("runs/back/config.json")
    own = load_model("runs/lora", merged=False)
    assert_same(jax.device_get(back.params), jax.device_get(own.params))
    assert run_config.base == "runs/tiny" and run_config.adapter.rank == 2

    # A run whose base has adapters starts from its merged weights.
    Path("second.py").write_text(Path("lora.py").read_text().replace("runs/tiny", "runs/lora"))
    assert tiny_run.run("adapter.rank=0", recipe="second.py", directory="runs/second") == 0

    mistakes = {
        ("export", "runs/tiny", "x", "--adapter"): "the run has no adapters (adapter.rank=0)",
        ("export", "runs/lora", "x", "--adapter", "--bits", "8"): "--bits is for whole models",
        ("import", "peft", "runs/x"): "say of which run, such as base=RUN",
        ("import", "peft", "runs/x", "base=merged"): "merged is no run; for a Hugging Face",
        ("import", "peft", "runs/x", "base=runs/tiny", "adapter.rank=4"): "its base and dropout",
        ("import", "peft", "runs/x", "base=runs/tiny", "model.layers=3"): "model.layers",
    }
    for arguments, message in mistakes.items():
        assert converted(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert not Path("x").exists() and not Path("runs/x/config.json").exists()
