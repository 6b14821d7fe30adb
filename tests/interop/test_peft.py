"""Adapters in the directories of PEFT, and their training, against `peft` in torch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from safetensors.numpy import load_file, save_file
from support import tiny
from support.marks import quick_and_slow
from support.trees import assert_same

from jaxlm import interop, models
from jaxlm.config import (
    AdapterConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainingConfig,
    UserError,
)
from jaxlm.interop.peft_directory import load_adapter, save_adapter
from jaxlm.models.adapters import adapter_part, attach_adapters, merge_adapters
from jaxlm.parameter_names import merge
from jaxlm.state import state_from_params
from jaxlm.types import Batch, Tree

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
BERT_SIZES = SIZES | {"vocab_size": 270, "max_position_embeddings": 24}

# Class, values of its config, targets.
BASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        dict(vocab_size=270, n_embd=32, n_layer=2, n_head=4, n_positions=24),
        ("qkv", "output", "up", "down"),
    ),
    # "down" is output.dense, which is the end of attention.output.dense too
    "bert": ("BertForMaskedLM", BERT_SIZES, ("query", "value", "down")),
    "roberta": ("RobertaForMaskedLM", BERT_SIZES, ("query", "key", "value", "output", "up")),
    "distilbert": (
        "DistilBertForMaskedLM",
        dict(vocab_size=270, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
        ("query", "value", "output", "up", "down"),
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        BERT_SIZES | dict(pad_token_id=0, cls_token_id=1, sep_token_id=2),
        ("qkv", "output", "down"),
    ),
    "llama": (
        "LlamaForCausalLM",
        SIZES | {"vocab_size": 270, "num_key_value_heads": 2},
        ("query", "key", "value", "output", "gate", "up", "down"),
    ),
    # One A, which PEFT has in three places.
    "mistral": (
        "MistralForCausalLM",
        SIZES | {"vocab_size": 270, "num_key_value_heads": 2},
        ("qkv",),
    ),
    "bloom": (
        "BloomForCausalLM",
        dict(vocab_size=270, hidden_size=32, n_layer=2, n_head=4),
        ("qkv", "output", "up", "down"),
    ),
    "t5": (
        "T5ForConditionalGeneration",
        dict(vocab_size=270, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=64),
        ("query", "value", "output", "up", "down"),
    ),
    "bart": (
        "BartForConditionalGeneration",
        dict(vocab_size=270, d_model=32, encoder_layers=2, decoder_layers=2)
        | dict(encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=24)
        | dict(encoder_ffn_dim=64, decoder_ffn_dim=64),
        ("query", "value", "output", "up"),
    ),
}
NO_DROPOUT = dict.fromkeys(
    (
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob", "dropout"),
        *("attention_probs_dropout_prob", "attention_dropout"),
    ),
    0.0,
)


class Base(NamedTuple):
    """A base in both forms."""

    folder: Path
    transformer: Any
    config: ModelConfig
    params: Tree


def make_base(folder: Path, name: str, **fields) -> Base:
    """Save a model of random weights; return it with what `interop` reads of it."""
    class_name, values, _ = BASES[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**(values | fields))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as large as those of trained models
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return Base(folder, model, *interop.load(folder))


def adapters_on(base: Base, adapter: AdapterConfig, std: float = 0.05) -> tuple[models.Model, Tree]:
    """Return the model with adapters, and parameters in which all of them differ from the start."""
    model = models.build(base.config, adapter=adapter)
    params = attach_adapters(adapter, model.axes, base.params, model.init(jax.random.key(0)))
    random = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda x: x + std * random.normal(size=x.shape).astype(np.float32), adapter_part(params)
    )
    return model, merge(params, moved)


def batches(model: ModelConfig) -> tuple[Batch, dict[str, Any]]:
    """Return the same tokens for jaxlm and for `transformers`."""
    random = np.random.default_rng(1)
    tokens = random.integers(3, 90, (2, 16)).astype(np.int32)
    as_torch = torch.tensor(tokens, dtype=torch.long)
    if model.family != "encoder_decoder":
        return Batch(tokens=tokens), {"input_ids": as_torch}
    source = random.integers(3, 90, (2, 12)).astype(np.int32)
    given = {"input_ids": torch.tensor(source, dtype=torch.long), "decoder_input_ids": as_torch}
    return Batch(tokens=tokens, source=source), given


def torch_logits(model: Any, inputs: dict[str, Any]) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(**inputs).logits.numpy()


VARIANTS = {"lora": {}, "dora_rslora": {"dora": True, "rank_stabilised": True}}
CASES = [(name, variant) for name in BASES for variant in VARIANTS]


@pytest.mark.parametrize(
    ("name", "variant"),
    quick_and_slow([], CASES),
)
def test_peft_reads_our_adapters_and_we_read_those_of_peft(name, variant, tmp_path):
    base = make_base(tmp_path / "base", name)
    adapter = AdapterConfig(rank=4, targets=BASES[name][2], base="float32", **VARIANTS[variant])
    model, params = adapters_on(base, adapter)
    batch, inputs = batches(base.config)
    logits = np.asarray(model.apply(params, batch))
    plain = models.build(base.config)
    assert np.abs(logits - np.asarray(plain.apply(base.params, batch))).max() > 1e-2

    # Ours, read by peft.
    save_adapter(tmp_path / "ours", base.config, adapter, params)
    adapted = peft.PeftModel.from_pretrained(base.transformer, tmp_path / "ours")
    assert np.abs(logits - torch_logits(adapted, inputs)).max() <= 2e-5

    # Our merged weights.
    merged = merge_adapters(adapter, model.axes, params)
    difference = np.abs(logits - np.asarray(plain.apply(merged, batch))).max()
    assert difference <= 1e-5

    # Those of peft, read here: other values, by the names of modules that it was given.
    values = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    fields = {name: values[name] for name in ("r", "lora_alpha", "target_modules", "use_dora")}
    config = peft.LoraConfig(**fields, use_rslora=adapter.rank_stabilised, init_lora_weights=False)
    theirs = peft.get_peft_model(adapted.unload(), config)
    for parameter_name, parameter in theirs.named_parameters():
        if "lora_B" in parameter_name:  # random ones saturate attention
            parameter.data *= 0.1
    theirs.save_pretrained(tmp_path / "theirs")
    read = load_adapter(tmp_path / "theirs", base.config)
    model = models.build(base.config, adapter=read.config)
    params = attach_adapters(read.config, model.axes, base.params, model.init(jax.random.key(1)))
    logits = np.asarray(model.apply(merge(params, read.params), batch))
    assert np.abs(logits - torch_logits(theirs, inputs)).max() <= 2e-5


@pytest.mark.slow
def test_a_gate_that_repeats_the_other_half_has_its_adapter_too(tmp_path):
    """relu(x)^2 is a gated ReLU in `transformers`, whose two halves are equal."""
    config = replace(
        tiny.CONFIG.model,
        gated=False,
        activation="relu_squared",
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
    )
    params = models.build(config).init(jax.random.key(0))
    interop.save(tmp_path / "base", config, params)
    transformer = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    adapter = AdapterConfig(rank=4, targets=("up", "down"), base="float32")
    model, params = adapters_on(Base(tmp_path / "base", transformer, config, params), adapter)
    batch, inputs = batches(config)

    save_adapter(tmp_path / "ours", config, adapter, params)
    adapted = peft.PeftModel.from_pretrained(transformer, tmp_path / "ours")
    logits = np.asarray(model.apply(params, batch))
    assert np.abs(logits - torch_logits(adapted, inputs)).max() <= 2e-5

    read = load_adapter(tmp_path / "ours", config)
    assert_same(read.params, jax.device_get(adapter_part(params)))
    file = tmp_path / "ours" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.mlp.gate_proj.lora_B.weight"
    save_file(tensors | {name: tensors[name] + 1}, file)
    with pytest.raises(UserError, match=r"lora_B\.weight: differs from the other half"):
        load_adapter(tmp_path / "ours", config)


STEPS, RATE = 20, 1e-2
TRAINED = [
    (name, variant, base)
    for name in ("gpt2", "bert")
    for variant in VARIANTS
    for base in ("float32", "bfloat16")
]


@pytest.mark.parametrize(
    ("name", "variant", "kept"), quick_and_slow([("gpt2", "lora", "float32")], TRAINED)
)
def test_the_first_20_steps_are_those_of_peft(name, variant, kept, tmp_path):
    """From the same A, on the same batches, with AdamW and its decay, by loss.

    Of a bfloat16 base, in torch too, the values are rounded and the computation is float32's.
    """
    base = make_base(tmp_path / "base", name, **NO_DROPOUT)
    adapter = AdapterConfig(rank=4, targets=BASES[name][2], base=kept, **VARIANTS[variant])
    family = base.config.family
    run_config = replace(
        tiny.FAMILIES[family],
        model=replace(base.config, dropout=0.0, attention_dropout=0.0),
        adapter=adapter,
        data=DataConfig(sequence_length=16),
        objective=ObjectiveConfig(kind="masked" if family == "encoder" else "causal"),
        optimizer=OptimizerConfig(
            learning_rate=RATE,
            warmup_steps=0,
            schedule="constant",
            beta2=0.999,
            weight_decay=0.01,
            gradient_clip=None,
        ),
        training=TrainingConfig(steps=STEPS, batch_size=4),
    )
    parts = tiny.parts(1, run_config)
    fresh = parts.model.init(jax.random.key(0))
    params = attach_adapters(adapter, parts.model.axes, base.params, fresh)
    state = state_from_params(parts.model, parts.optimizer, parts.placement, params)
    save_adapter(tmp_path / "start", base.config, adapter, jax.device_get(params))

    if kept == "bfloat16":
        with torch.no_grad():
            for parameter in base.transformer.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(parameter.to(torch.bfloat16).float())
    theirs = peft.PeftModel.from_pretrained(
        base.transformer, tmp_path / "start", is_trainable=True
    ).train()
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    count = parts.model.adapter_parameter_count()
    assert sum(parameter.numel() for parameter in trained) == count
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.999), weight_decay=0.01)

    step, random = parts.step(), np.random.default_rng(2)
    differences, losses = [], []
    for _ in range(STEPS):
        tokens = random.integers(3, 9, (4, 17)).astype(np.int32)  # few, which is soon learned
        batch = Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:])
        batch = batch._replace(weights=np.ones((4, 16), np.float32))
        state, metrics = step(state, batch)

        logits = theirs(input_ids=torch.tensor(tokens[:, :-1], dtype=torch.long)).logits
        targets = torch.tensor(tokens[:, 1:], dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        differences.append(abs(loss.item() - float(metrics.loss)))
    assert max(differences) <= 1e-4, differences
    assert losses[-1] < losses[0] - 0.1
