"""Adapters of classifiers: PEFT saves their heads whole, under `modules_to_save`."""

import json
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from jaxlm import interop, models
from jaxlm.config import AdapterConfig
from jaxlm.interop.peft_directory import load_adapter, save_adapter
from jaxlm.models.adapters import adapter_part, attach_adapters
from jaxlm.parameter_names import merge
from jaxlm.types import Batch

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
BERT = SIZES | {"vocab_size": 90, "max_position_embeddings": 24}
GPT2 = dict(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=24, pad_token_id=0)
LLAMA = SIZES | {"vocab_size": 90, "num_key_value_heads": 2, "pad_token_id": 0}
DISTILBERT = dict(vocab_size=90, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
MODERNBERT = BERT | dict(pad_token_id=0, cls_token_id=1, sep_token_id=2)
BART = dict(vocab_size=90, d_model=32, encoder_layers=2, decoder_layers=2, pad_token_id=0)
BART |= dict(encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=24)
BART |= dict(encoder_ffn_dim=64, decoder_ffn_dim=64, eos_token_id=2, decoder_start_token_id=2)

QV = ("query", "value")
CLASSES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {  # values of config.json, targets
    "BertForSequenceClassification": (BERT, QV),
    "BertForTokenClassification": (BERT, QV),
    "RobertaForSequenceClassification": (BERT, QV),
    "DistilBertForSequenceClassification": (DISTILBERT, QV),
    "ModernBertForSequenceClassification": (MODERNBERT, ("qkv",)),
    "GPT2ForSequenceClassification": (GPT2, ("qkv",)),
    "GPT2ForTokenClassification": (GPT2, ("qkv",)),
    "LlamaForSequenceClassification": (LLAMA, QV),
    "BartForSequenceClassification": (BART, QV),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_heads_of_classifiers_go_with_the_adapters(name, tmp_path):
    values, targets = CLASSES[name]
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    base = model_class(model_class.config_class(**values, num_labels=3)).eval()
    base.save_pretrained(tmp_path / "base")
    config, base_params = interop.load(tmp_path / "base")

    adapter = AdapterConfig(rank=4, targets=targets, base="float32")
    model = models.build(config, adapter=adapter)
    random = np.random.default_rng(0)
    params = attach_adapters(adapter, model.axes, base_params, model.init(jax.random.key(0)))
    moved = jax.tree.map(
        lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32), adapter_part(params)
    )
    params = merge(params, moved)
    tokens = random.integers(3, 90, (2, 12)).astype(np.int32)
    if "Bart" in name:
        tokens[:, -1] = 2
        shifted = np.concatenate([np.full((2, 1), 2, np.int32), tokens[:, :-1]], axis=1)
        batch = Batch(tokens=shifted, source=tokens)
    else:
        batch = Batch(tokens=tokens)

    def difference(adapted, params) -> float:
        with torch.no_grad():
            expected = adapted.eval()(input_ids=torch.tensor(tokens, dtype=torch.long)).logits
        return float(np.abs(np.asarray(model.apply(params, batch)) - expected.numpy()).max())

    save_adapter(tmp_path / "ours", config, adapter, params)
    values = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert values["task_type"] == ("SEQ_CLS" if "Sequence" in name else "TOKEN_CLS")
    theirs = peft.PeftModel.from_pretrained(
        model_class.from_pretrained(tmp_path / "base"), tmp_path / "ours"
    )
    assert difference(theirs, params) <= 2e-5

    # As PEFT writes them. Most leave BERT's pooler to the base.
    modules = [module for module in values["modules_to_save"] if "pooler" not in module]
    fields = {key: values[key] for key in ("r", "lora_alpha", "target_modules", "task_type")}
    other = peft.get_peft_model(
        model_class.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(**fields, modules_to_save=modules),
    )
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    other.save_pretrained(tmp_path / "theirs")
    read = load_adapter(tmp_path / "theirs", config)
    own = attach_adapters(adapter, model.axes, base_params, params)
    assert difference(other, merge(own, read.params)) <= 2e-5
