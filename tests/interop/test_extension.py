"""The section "jaxlm" of config.json: models that lack something of their architecture."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.hf_directories import (
    assert_same_model,
    change_config,
    change_tensors,
    random_weights,
)

from jaxlm import config, interop, models
from jaxlm.config import UserError
from jaxlm.interop.match_architecture import TRAINING_FIELDS, differences

NO_BIASES: dict[str, Any] = {
    "attention_bias": False,
    "attention_output_bias": False,
    "mlp_bias": False,
}
BARE: dict[str, Any] = NO_BIASES | {"norm_bias": False}
SIZES: dict[str, Any] = {
    "vocabulary_size": 97,
    "layers": 2,
    "width": 36,
    "heads": 3,
    "mlp_width": 50,
    "context_length": 22,
}
LLAMA: dict[str, Any] = NO_BIASES | {"norm": "rmsnorm", "positions": "rotary"}
BOTH: dict[str, Any] = {"family": "encoder_decoder", "encoder_layers": 1, "encoder_mlp_width": 40}
SQUARED: dict[str, Any] = {"gated": False, "activation": "relu_squared"}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "nanogpt_shakespeare": ("gpt2", BARE | {"activation": "gelu"}, BARE),
    "gpt2, no biases of norms, untied": (
        "gpt2",
        {"norm_bias": False, "tied_head": False},
        {"norm_bias": False},
    ),
    "gpt2, biases on the inputs alone": (
        "gpt2",
        {"attention_output_bias": False, "mlp_bias": False},
        {"attention_output_bias": False, "mlp_bias": False},
    ),
    "quickstart": ("llama", LLAMA | SQUARED, SQUARED),
    "llama, squared, biases": (
        "llama",
        LLAMA | SQUARED | {"mlp_bias": True, "kv_heads": 1, "tied_head": False},
        SQUARED,
    ),
    "llama, no bias on the output": (
        "llama",
        LLAMA | {"attention_bias": True, "mlp_bias": True, "gated": True, "activation": "silu"},
        {"attention_output_bias": False},
    ),
    "mistral, squared": ("mistral", LLAMA | SQUARED | {"sliding_window": 5}, SQUARED),
    "qwen2, squared": ("qwen2", LLAMA | SQUARED | {"attention_bias": True}, SQUARED),
    "qwen3, squared": ("qwen3", LLAMA | SQUARED | {"query_key_norm": True, "kv_heads": 1}, SQUARED),
    "bloom": (
        "bloom",
        BARE | {"positions": "alibi", "embedding_norm": True, "mlp_width": None},
        BARE,
    ),
    "gpt_neox": (
        "gpt_neox",
        NO_BIASES | {"norm_bias": False, "positions": "rotary", "residual": "parallel"},
        {"mlp_bias": False, "norm_bias": False},
    ),
    "opt": (
        "opt",
        BARE | {"position_offset": 2, "activation": "relu_squared"},
        {"norm_bias": False},
    ),
    "bert": (
        "bert",
        BARE
        | {
            "family": "encoder",
            "norm_placement": "post",
            "embedding_norm": True,
            "token_types": 2,
            "activation": "gelu",
        }
        | {"head_transform": True, "head_transform_bias": False, "head_bias": True},
        BARE | {"head_transform_bias": False},
    ),
    "quickstart_encoder_decoder": (
        "blenderbot",
        BOTH | BARE | {"activation": "relu_squared", "tied_head": False},
        BARE,
    ),
    "bart": (
        "bart",
        BOTH
        | BARE
        | {
            "norm_placement": "post",
            "embedding_norm": True,
            "position_offset": 2,
            "head_bias": True,
        },
        BARE,
    ),
    "mbart": (
        "mbart",
        BOTH | {"embedding_norm": True, "position_offset": 2, "norm_bias": False},
        {"norm_bias": False},
    ),
    "marian": (
        "marian",
        BOTH
        | NO_BIASES
        | {"norm_placement": "post", "positions": "sinusoidal", "shared_embedding": False},
        NO_BIASES,
    ),
}


def model_of(name: str) -> config.ModelConfig:
    return config.ModelConfig(**SIZES | MODELS[name][1])


def exported(name: str, directory: Path) -> tuple[config.ModelConfig, Any]:
    model = model_of(name)
    params = random_weights(model)
    interop.save(directory, model, params)
    return model, params


def assert_same_but_for_training(one: Any, other: Any) -> None:
    """Equal up to how training initialises and drops out."""
    plain: dict[str, Any] = {field: getattr(one[0], field) for field in TRAINING_FIELDS}
    assert_same_model(one, (replace(other[0], **plain), other[1]))


RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
INEXPRESSIBLE: set[str] = set()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_go_to_transformers(path):
    model = config.load(path, []).model
    if path.stem in INEXPRESSIBLE:
        with pytest.raises(UserError, match="no supported architecture of transformers"):
            interop.match_architecture(model)
    else:
        interop.match_architecture(model)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name, tmp_path):
    model, params = exported(name, tmp_path)
    model_type, _, section = MODELS[name]
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["model_type"], values["jaxlm"]) == (model_type, section)
    back = interop.load(tmp_path)
    assert not differences(model, back[0])
    assert_same_but_for_training((model, params), back)
    assert interop.read_config(tmp_path)[1] == back[0]
    interop.save(tmp_path / "again", *back)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "model.safetensors"
    ).read_bytes()
    assert interop.load(tmp_path / "again")[0] == back[0]


OF_RECIPES = ("nanogpt_shakespeare", "quickstart", "quickstart_encoder_decoder")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in OF_RECIPES else [pytest.mark.campaign])
        for name in MODELS
    ],
)
def test_as_transformers(name, tmp_path):
    """Logits, loss and gradients; several of their tensors may share a gradient of ours."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from support import parity

    model, params = exported(name, tmp_path / "ours")
    values = json.loads((tmp_path / "ours" / "config.json").read_text())
    cls = getattr(transformers, values["architectures"][0])
    peer, report = cls.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    batch, built = parity.samples(model), models.build(model)
    quick = {"xla_backend_optimization_level": 0}
    (loss, logits), gradients = jax.jit(
        jax.value_and_grad(lambda params: parity.our_loss(built, params, batch), has_aux=True),
        compiler_options=quick,
    )(params)
    expected = parity.reference_logits(peer.eval(), batch)
    expected_loss = parity.reference_loss(expected, batch)
    expected_loss.backward()
    assert parity.logits_difference(logits, expected, batch) <= parity.LOGITS_TOLERANCE
    assert abs(float(loss) - expected_loss.item()) <= parity.LOSS_TOLERANCE

    # The gradients of tensors that repeat one parameter add up to its own; those of biases that the
    # model lacks have no parameter.
    interop.save(tmp_path / "gradients", model, gradients)
    numbers = load_file(tmp_path / "ours" / "model.safetensors")
    theirs: dict[str, np.ndarray] = {}
    for key, parameter in peer.named_parameters():
        if parameter.grad is not None and (key not in numbers or numbers[key].any()):
            first = own(key, numbers)
            theirs[first] = theirs.get(first, 0) + parameter.grad.numpy()
    parity.gradient_difference(load_file(tmp_path / "gradients" / "model.safetensors"), theirs)

    peer.save_pretrained(tmp_path / "theirs")
    assert_same_but_for_training((model, params), interop.load(tmp_path / "theirs"))


def own(name: str, numbers: dict[str, np.ndarray]) -> str:
    """The tensor that stands for our parameter, of those that repeat it."""
    first = (
        "model.shared.weight"
        if name.endswith("embed_tokens.weight")
        else name.replace("gate_proj", "up_proj")
    )
    return (
        first
        if first in numbers and np.array_equal(numbers[first], numbers.get(name, numbers[first]))
        else name
    )


REFUSED: dict[str, tuple[str, Any, str]] = {
    "no object": ("nanogpt_shakespeare", [False], r"jaxlm: must be an object"),
    "unknown": (
        "nanogpt_shakespeare",
        {"layers": 1},
        r"jaxlm\.layers: is unknown; known: attention_bias, .*activation$",
    ),
    "a word": (
        "nanogpt_shakespeare",
        {"norm_bias": "false"},
        r"jaxlm\.norm_bias: must be true or false",
    ),
    "a number": (
        "nanogpt_shakespeare",
        {"norm_bias": 0},
        r"jaxlm\.norm_bias: must be true or false",
    ),
    "null": (
        "nanogpt_shakespeare",
        {"norm_bias": None},
        r"jaxlm\.norm_bias: must be true or false",
    ),
    "true": (
        "nanogpt_shakespeare",
        BARE | {"mlp_bias": True},
        r"jaxlm\.mlp_bias: true is not supported, only false",
    ),
    "no gate in the rest": (
        "nanogpt_shakespeare",
        BARE | SQUARED,
        r"jaxlm\.activation: 'relu_squared' needs a gated MLP with relu",
    ),
    "gated": (
        "quickstart",
        SQUARED | {"gated": True},
        r"jaxlm\.gated: true is not supported, only false",
    ),
    "a gate without an activation": (
        "quickstart",
        {"gated": False},
        r"jaxlm\.activation: must be 'relu_squared' together with gated",
    ),
    "an activation alone": (
        "quickstart",
        {"activation": "relu_squared"},
        r"jaxlm\.gated: must be False together with activation",
    ),
    "another activation": (
        "quickstart",
        SQUARED | {"activation": "gelu"},
        r'jaxlm\.activation: "gelu" is not supported',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sections_that_are_refused(case, tmp_path):
    name, section, reason = REFUSED[case]
    exported(name, tmp_path)
    with pytest.raises(UserError, match=rf"config\.json: {reason}") as error:
        interop.load(change_config(tmp_path, {"jaxlm": section}))
    assert "\n" not in str(error.value)


GATE, UP, BIAS = (
    "model.layers.1.mlp.gate_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "transformer.h.1.mlp.c_fc.bias",
)


def bumped(name: str) -> Any:
    def function(tensors: dict) -> dict:
        tensors[name].flat[-1] += 1e-3
        return tensors

    return function


TENSORS: dict[str, tuple[str, Any, str]] = {
    "a bias": (
        "nanogpt_shakespeare",
        bumped(BIAS),
        rf"{BIAS}: has values other than 0, but this model has no parameter for it",
    ),
    "no bias": (
        "nanogpt_shakespeare",
        lambda t: t.pop(BIAS) is None or t,
        rf"{BIAS}: there is no such tensor, expected \[50\]",
    ),
    "another gate": (
        "quickstart",
        bumped(GATE),
        rf"{GATE}: differs from {UP}, but .jaxlm. in config.json says that they are equal",
    ),
    "another half": (
        "quickstart",
        bumped(UP),
        rf"{GATE}: differs from {UP}, but .jaxlm. in config.json says that they are equal",
    ),
    "no gate": (
        "quickstart",
        lambda t: t.pop(GATE) is None or t,
        rf"{GATE}: there is no such tensor, expected \[50, 36\]",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_the_model_has_no_place_for(case, tmp_path):
    name, function, reason = TENSORS[case]
    exported(name, tmp_path)
    with pytest.raises(UserError, match=reason):
        interop.load(change_tensors(tmp_path, function))


def test_a_table_that_fuses_the_gate(tmp_path):
    """ModernBERT's is one tensor with the other half: nothing there can be repeated."""
    fields: dict[str, Any] = {
        "family": "encoder",
        "positions": "rotary",
        "embedding_norm": True,
        "first_norm": False,
        "gated": True,
        "activation": "relu",
    }
    head: dict[str, Any] = {"head_transform": True, "head_transform_bias": False, "head_bias": True}
    model = config.ModelConfig(**SIZES | BARE | fields | head)
    assert interop.save(tmp_path, model, random_weights(model)).model_type == "modernbert"
    with pytest.raises(UserError, match=r"modernbert has one tensor .*Wi.* needs all of them"):
        interop.load(change_config(tmp_path, {"jaxlm": SQUARED}))
    with pytest.raises(UserError, match="no supported architecture of transformers"):
        interop.match_architecture(replace(model, **SQUARED))


def test_without_a_section_nothing_is_lacking(tmp_path):
    """Zeros are how biases begin: they stay parameters, and must be there."""
    model = config.ModelConfig(**SIZES)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.zeros_like(leaf) if path[-1].key.endswith("bias") else leaf,
        random_weights(model),
    )
    interop.save(tmp_path, model, params)
    assert "jaxlm" not in json.loads((tmp_path / "config.json").read_text())
    assert_same_but_for_training((model, params), interop.load(tmp_path))
    with pytest.raises(UserError, match=rf"{BIAS}: there is no such tensor"):
        interop.load(change_tensors(tmp_path, lambda tensors: tensors.pop(BIAS) is None or tensors))


@pytest.mark.parametrize("name", ["nanogpt_shakespeare", "quickstart"])
def test_a_section_that_was_removed(name, tmp_path):
    """The architecture's own model: with biases that are zeros, or with a gate."""
    model, _ = exported(name, tmp_path)
    whole, params = interop.load(change_config(tmp_path, {"jaxlm": None}))
    assert differences(model, whole)
    if name == "quickstart":
        assert whole.gated and whole.activation == "relu"
        assert np.array_equal(
            params["blocks"]["mlp"]["gate_kernel"], params["blocks"]["mlp"]["up_kernel"]
        )
    else:
        assert (
            whole.norm_bias
            and whole.mlp_bias
            and not np.any(params["blocks"]["attention"]["query_bias"])
        )


@pytest.mark.parametrize(
    "fields",
    [
        LLAMA | {"activation": "gelu"},
        LLAMA | {"activation": "relu"},
        LLAMA | {"activation": "silu"},
        LLAMA | SQUARED | {"attention_output_bias": True},
        BARE | {"gated": True, "activation": "relu"},
        BARE | {"norm": "rmsnorm"},
    ],
)
def test_what_stays_inexpressible(fields):
    with pytest.raises(
        UserError,
        match=r"no supported architecture of transformers .* the closest, \w+, has model\.",
    ):
        interop.match_architecture(config.ModelConfig(**SIZES | fields))


def test_what_has_words_of_its_own_comes_first():
    """Qwen 2's biases on the inputs alone could be Llama's on both, with zeros."""
    fields: dict[str, Any] = LLAMA | {"gated": True, "attention_bias": True}
    architecture, values = interop.match_architecture(config.ModelConfig(**SIZES | fields))
    assert architecture.model_type == "qwen2" and "jaxlm" not in values
