"""ELECTRA against `transformers`: both networks, their folders, counts, and what is refused."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from support.parity import (
    LENGTH,
    LOGITS_TOLERANCE,
    build_reference,
    logits_difference,
    reference_logits,
    samples,
)

from jaxlm import convert, interop, models, runtime
from jaxlm.config import ModelConfig, UserError

QUICK = {"xla_backend_optimization_level": 0}  # to compile takes much longer than to run
SIZES = {"num_hidden_layers": 2, "max_position_embeddings": LENGTH, "type_vocab_size": 3}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DISCRIMINATOR = {"hidden_size": 36, "num_attention_heads": 6, "intermediate_size": 48}
GENERATOR = {"hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 16}


def write_references(folder, **fields):
    """Write both networks with the embeddings of the discriminator; return (both, embeddings)."""
    fields = SIZES | fields
    discriminator = build_reference("ElectraForPreTraining", **(DISCRIMINATOR | fields))
    generator = build_reference("ElectraForMaskedLM", **(GENERATOR | fields))
    embeddings = discriminator.electra.embeddings.state_dict()
    generator.electra.embeddings.load_state_dict(embeddings)
    discriminator.save_pretrained(folder)
    generator.save_pretrained(folder / "generator")
    return discriminator, generator


@pytest.mark.parametrize(
    "fields",
    [
        dict(embedding_size=20),
        dict(embedding_size=36, hidden_act="relu", tie_word_embeddings=False),
    ],
    ids=["narrow embeddings", "wide embeddings, relu, untied"],
)
def test_both_networks_are_those_of_transformers(tmp_path, fields):
    discriminator, generator = write_references(tmp_path / "hf", **fields)
    model_config, params = interop.load(tmp_path / "hf")
    assert model_config.generator_share == pytest.approx(1 / 3)

    model, batch = models.build(model_config), samples(model_config)
    judged, filled = jax.jit(
        lambda params: (model.apply(params, batch), model.generator.apply(params, batch)),
        compiler_options=QUICK,
    )(params)
    expected = reference_logits(discriminator, batch)[..., None]
    assert logits_difference(judged, expected, batch) <= LOGITS_TOLERANCE
    expected = reference_logits(generator, batch)
    assert logits_difference(filled, expected, batch) <= LOGITS_TOLERANCE

    # Written again, all tensors are the same, and transformers reads them.
    interop.save(tmp_path / "ours", model_config, params)
    for folder in ("", "generator"):
        theirs, ours = (
            load_file(tmp_path / root / folder / "model.safetensors") for root in ("hf", "ours")
        )
        assert theirs.keys() == ours.keys()
        for name, tensor in theirs.items():
            np.testing.assert_array_equal(ours[name], tensor, name)
    assert interop.load(tmp_path / "ours")[0] == model_config
    for cls, folder in (("ElectraForPreTraining", ""), ("ElectraForMaskedLM", "generator")):
        _, loading = getattr(transformers, cls).from_pretrained(
            tmp_path / "ours" / folder, output_loading_info=True
        )
        assert not any(loading[key] for key in ("missing_keys", "unexpected_keys"))


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references") / "hf"
    write_references(folder, embedding_size=20)
    return folder


def test_a_discriminator_alone_has_features_but_no_generator(references, tmp_path):
    folder = shutil.copytree(references, tmp_path / "alone")
    shutil.rmtree(folder / "generator")
    model_config, params = interop.load(folder)
    assert model_config.generator_share == 0.0
    assert models.build(model_config).generator is None and list(params) == ["discriminator"]


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        (dict(), "bert"),
        (dict(hidden_act="relu", tie_word_embeddings=False), "electra"),
    ],
    ids=["gelu", "relu, untied"],
)
def test_a_generator_of_one_width_is_an_encoder(tmp_path, fields, written):
    """Where BERT computes the same, it is exported as one: the first architecture that fits."""
    reference = build_reference(
        "ElectraForMaskedLM", **(DISCRIMINATOR | SIZES | fields), embedding_size=36
    )
    reference.save_pretrained(tmp_path / "hf")
    model_config, params = interop.load(tmp_path / "hf")
    assert model_config.generator_share is None

    model, batch = models.build(model_config), samples(model_config)
    logits = jax.jit(model.apply, compiler_options=QUICK)(params, batch)
    expected = reference_logits(reference, batch)
    assert logits_difference(logits, expected, batch) <= LOGITS_TOLERANCE

    assert interop.save(tmp_path / "ours", model_config, params).model_type == written
    assert interop.load(tmp_path / "ours")[0] == model_config
    cls = {"bert": "BertForMaskedLM", "electra": "ElectraForMaskedLM"}[written]
    again, loading = getattr(transformers, cls).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys"))
    written_logits = reference_logits(again, batch).detach()
    assert logits_difference(written_logits, expected, batch) <= LOGITS_TOLERANCE


def test_a_generator_of_two_widths_is_refused_alone(references, tmp_path, capsys):
    code = runtime.command(
        convert.main, ["import", str(references / "generator"), str(tmp_path / "run")]
    )
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and not (tmp_path / "run").exists()
    assert "generator/config.json: embedding_size: 20 is not hidden_size (12)" in error
    assert error.endswith("put this one into it as the folder generator\n")


def edit_config(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(num_hidden_layers=3), "generator.num_hidden_layers: 3 is not supported, only 2"),
        (dict(num_attention_heads=4), "generator.num_attention_heads: 4 is not supported, only 2"),
        (dict(hidden_size=13), "describes an impossible model: model.generator_share"),
        (dict(architectures=["ElectraForPreTraining"]), "is not ElectraForMaskedLM"),
    ],
)
def test_a_generator_of_another_model_is_refused(references, tmp_path, values, message):
    folder = shutil.copytree(references, tmp_path / "other")
    edit_config(folder / "generator" / "config.json", **values)
    with pytest.raises(UserError) as error:
        interop.read_config(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_generator_of_other_embeddings_is_refused(references, tmp_path):
    folder = shutil.copytree(references, tmp_path / "other")
    generator = transformers.ElectraForMaskedLM.from_pretrained(folder / "generator")
    with torch.no_grad():
        generator.electra.embeddings.LayerNorm.bias[0] += 1
    generator.save_pretrained(folder / "generator")
    with pytest.raises(UserError, match="its embeddings are not those of the folder above"):
        interop.load(folder)


SMALL = ModelConfig(
    family="encoder",
    vocabulary_size=30522,
    layers=12,
    width=256,
    heads=4,
    embedding_width=128,
    context_length=512,
    norm_placement="post",
    embedding_norm=True,
    token_types=2,
    activation="gelu",
    head_bias=True,
    head_transform=True,
    generator_share=0.25,
)
BASE = replace(SMALL, width=768, heads=12, embedding_width=None, generator_share=1 / 3)


@pytest.mark.parametrize(("shape", "millions"), [(SMALL, 14), (BASE, 109)], ids=["small", "base"])
def test_parameters_are_counted_as_published(shape, millions):
    """Table 1 of the paper, which rounds base to 110M; the number is ElectraForPreTraining's."""
    hf_config = transformers.ElectraConfig(
        embedding_size=shape.token_width,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        intermediate_size=shape.hidden_width,
    )
    with torch.device("meta"):
        reference = transformers.ElectraForPreTraining(hf_config)
    count = models.build(shape).parameter_count()
    assert count == sum(tensor.numel() for tensor in reference.parameters())
    assert round(count / 1e6) == millions
