"""Directories of rounded weights, made by `jaxlm.convert quantize`, and packed exports."""

import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.conversions import MADE, converted, hf_directory
from support.hf_directories import random_weights
from support.marks import quick_and_slow

from jaxlm import config, evaluate, interop, models, quantization, runtime, train
from jaxlm.config import UserError
from jaxlm.load_model import load_model
from jaxlm.types import Batch, is_axes


def refusal(capsys, *arguments) -> str:
    """Return the one line in which `jaxlm.convert` refuses the arguments."""
    assert converted(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "bits"),
    quick_and_slow([("gpt2", 4)], itertools.product(("gpt2", "bert", "t5"), (8, 4))),
)
def test_a_hugging_face_directory_is_rounded_and_read(name, bits, tmp_path):
    directory, out = hf_directory(tmp_path / "hf", name), tmp_path / "out"
    assert converted("quantize", directory, out, "--bits", bits) == 0
    original, loaded = load_model(directory), load_model(out)
    assert loaded.tokenizer.encode("the worst").tolist() == (
        original.tokenizer.encode("the worst").tolist()
    )
    model, params = original.model, original.params
    expected = quantization.round_params(model.axes, params, f"int{bits}")

    tokens = np.arange(10, 20, dtype=np.int32)[None]
    batch = Batch(tokens=tokens)
    if model.config.family == "encoder_decoder":
        batch = batch._replace(source=tokens)
    reference = np.asarray(jax.jit(model.apply)(expected, batch))
    found = jax.jit(loaded.model.apply)(loaded.params, batch)
    # T5's unscaled scores magnify rounding: weights moved by one unit in the last place change its
    # logits by 3e-5 of the largest.
    tolerance = 1e-4 if name == "t5" else 1e-5
    np.testing.assert_allclose(found, reference, atol=tolerance * np.abs(reference).max())

    # Matrices are in memory as they are in the file.
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)}
    assert kinds == {"float32", "int8" if bits == 8 else "uint8"}
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    assert held == sum(array.nbytes for array in load_file(out / "model.safetensors").values())


def test_a_run_is_rounded_and_evaluated_on_its_validation_split(copied_run, capsys):
    copied_run("decoder")
    assert converted("quantize", "runs/tiny", "int8", "--bits", 8, "--step", 8) == 0
    losses = []
    for path in (["runs/tiny", "--step", "8"], ["int8"]):
        assert runtime.command(evaluate.main, [*path, "--json", "out.json"]) == 0
        losses.append(json.loads(Path("out.json").read_text())["total"]["loss"])
    assert losses[0] != losses[1]
    assert abs(losses[1] - losses[0]) < 2e-3

    capsys.readouterr()
    assert "rounded by jaxlm.convert quantize" in refusal(
        capsys, "quantize", "int8", "again", "--bits", 8
    )
    assert "rounded by jaxlm.convert quantize" in refusal(capsys, "export", "int8", "hf")
    assert "rounded by jaxlm.convert quantize" in refusal(capsys, "import", "int8", "run")
    assert "is not empty" in refusal(capsys, "quantize", "runs/tiny", "int8", "--bits", 8)
    assert "--bits" in refusal(capsys, "quantize", "runs/tiny", "out", "--bits", 3)
    assert "--group is for --bits 4" in refusal(
        capsys, "quantize", "runs/tiny", "out", "--bits", 8, "--group", 64
    )
    assert "a group of 64 does not divide its 32 inputs" in refusal(
        capsys, "quantize", "runs/tiny", "out", "--bits", 4, "--group", 64
    )
    assert not Path("out").exists()
    assert runtime.command(train.main, ["--config", "int8/config.json"]) == 2
    with pytest.raises(UserError, match="generate, evaluate and harness alone"):
        interop.load("int8")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("version", 2, "version: 2 is not supported"),
        ("bits", 3, "bits: must be 8 or 4"),
        ("group", 32, "group: must be"),
        ("source", "elsewhere", "source: must be"),
        ("step", -1, "step: must be"),
        ("format", "other", "format: is not"),
        ("model", {"layers": "three"}, "layers"),
    ],
)
def test_a_damaged_description_names_the_key(key, value, reason, copied_run):
    copied_run("decoder")
    converted("quantize", "runs/tiny", "int8", "--bits", 8)
    path = Path("int8/quantization.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=reason):
        load_model("int8")


def test_weights_that_are_no_numbers_are_refused(tmp_path, capsys):
    model = MADE["gpt2"][2]
    hf_directory(tmp_path / "hf", "gpt2")
    params = random_weights(model)
    params["blocks"]["mlp"]["up_kernel"][0, 3, 3] = np.nan
    interop.save(tmp_path / "hf", model, params)
    line = refusal(capsys, "quantize", tmp_path / "hf", tmp_path / "out", "--bits", 8)
    assert "blocks.mlp.up_kernel holds NaN" in line


@pytest.mark.parametrize(
    ("name", "bits"),
    quick_and_slow([("llama", 4)], itertools.product(("llama", "bert", "bart"), (8, 4))),
)
def test_transformers_reads_packed_weights(name, bits, tmp_path):
    pytest.importorskip("compressed_tensors")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model_config = MADE[name][2]
    model, params = models.build(model_config), random_weights(model_config)
    packing = interop.Packing(bits)
    architecture = interop.save(tmp_path, model_config, params, packing=packing)
    reference = getattr(transformers, architecture.classes[0]).from_pretrained(tmp_path).eval()

    def rounded(path, axes, weight):
        name = jax.tree_util.keystr(path)
        if "blocks" not in name or "_kernel" not in name:
            return weight
        return quantization.round_params({"w": axes}, {"w": weight}, f"int{bits}")["w"]

    expected = jax.tree_util.tree_map_with_path(rounded, model.axes, params, is_leaf=is_axes)
    tokens = np.random.default_rng(0).integers(5, 300, (2, 12))
    batch, inputs = Batch(tokens=tokens), {"input_ids": torch.tensor(tokens)}
    if model_config.family == "encoder_decoder":
        batch = batch._replace(source=tokens)
        inputs["decoder_input_ids"] = torch.tensor(tokens)
    ours = np.asarray(jax.jit(model.apply)(expected, batch))
    with torch.no_grad():
        theirs = reference(**inputs).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize(("name", "reason"), [("gpt2", "no torch.nn.Linear"), ("t5", "can't load")])
def test_what_transformers_cannot_read_packed_is_refused(name, reason, tmp_path):
    model = MADE[name][2]
    with pytest.raises(UserError, match=reason):
        interop.save(tmp_path / "out", model, random_weights(model), packing=interop.Packing(8))
    assert not (tmp_path / "out").exists()


def test_packed_weights_hold_what_their_shape_says(tmp_path):
    model = MADE["llama"][2]
    interop.save(tmp_path, model, random_weights(model), packing=interop.Packing(4))
    tensors = load_file(tmp_path / "model.safetensors")
    stem = "model.layers.0.mlp.down_proj.weight"
    rows, inputs = tensors[f"{stem}_shape"]
    assert (rows, inputs) == (model.width, model.hidden_width)
    assert tensors[f"{stem}_packed"].shape == (rows, inputs // 8)
    assert tensors[f"{stem}_scale"].shape == (rows, inputs // 32)
    packed = tensors[f"{stem}_packed"].view(np.uint32)
    nibbles = packed[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    levels = nibbles.reshape(rows, -1, 32).astype(int) - 8
    assert (np.abs(levels).max(2) == 7).all()  # each group has its largest weight at the last level


def test_int4_training_needs_groups_that_divide():
    from jaxlm import run_checks

    made = config.Config(
        model=config.ModelConfig(width=48, heads=4, layers=1),
        precision=config.PrecisionConfig(weights="int4"),
    )
    with pytest.raises(config.ConfigError, match="do not divide the width, 48"):
        run_checks.check_trainable(made)
