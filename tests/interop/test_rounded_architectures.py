"""What rounding costs random models of every architecture: pytest -m campaign -s.

A model's perplexity is that on all texts which it would write itself, token by token: exp of its
entropy, and of its cross-entropy once it is rounded.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxlm import interop, models, quantization

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from support.parity import PAD, VOCABULARY, samples

from jaxlm.interop.architectures import ARCHITECTURES

pytestmark = pytest.mark.campaign
STD = 0.06  # of the weights
LENGTH = {"max_position_embeddings": 32}
GATED = LENGTH | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": STD,
}
GROUPED = GATED | {"num_key_value_heads": 2}
BART = LENGTH | {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "init_std": STD,
    "decoder_start_token_id": 0,
}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        dict(n_embd=64, n_layer=2, n_head=4, n_positions=32, initializer_range=STD),
    ),
    "llama": ("LlamaForCausalLM", GROUPED),
    "mistral": ("MistralForCausalLM", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", GROUPED | {"head_dim": 16}),
    "bloom": ("BloomForCausalLM", dict(hidden_size=64, n_layer=2, n_head=4, initializer_range=STD)),
    "gpt_neox": ("GPTNeoXForCausalLM", GATED),
    "opt": (
        "OPTForCausalLM",
        LENGTH
        | dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128)
        | dict(init_std=STD, word_embed_proj_dim=64),
    ),
    "bert": ("BertForMaskedLM", GATED),
    "roberta": ("RobertaForMaskedLM", GATED | {"max_position_embeddings": 34}),
    "distilbert": (
        "DistilBertForMaskedLM",
        LENGTH | dict(dim=64, n_layers=2, n_heads=4, hidden_dim=128, initializer_range=STD),
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        GATED | dict(cls_token_id=0, sep_token_id=0),
    ),
    "electra": ("ElectraForMaskedLM", GATED | {"embedding_size": 64}),
    "t5": (
        "T5ForConditionalGeneration",
        dict(d_model=64, d_kv=16, num_heads=4, d_ff=128, num_layers=2, decoder_start_token_id=0),
    ),
    "bart": ("BartForConditionalGeneration", BART),
    "mbart": ("MBartForConditionalGeneration", BART),
    "blenderbot": ("BlenderbotForConditionalGeneration", BART),
    "marian": ("MarianMTModel", BART),
}


def test_every_architecture_is_there():
    assert SMALL.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", SMALL)
def test_perplexity_stays(name: str, tmp_path: Path, capfd: Any):
    """At most 0.5% above that of float32 at 8 bits, and 4% at 4 bits in groups of 32."""
    cls, fields = SMALL[name]
    model_class = getattr(transformers, cls)
    torch.manual_seed(0)
    tokens = dict(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, pad_token_id=PAD)
    model_class(model_class.config_class(**(tokens | fields))).save_pretrained(tmp_path)
    config, params = interop.load(tmp_path)
    model = models.build(config)
    apply = jax.jit(model.apply)

    batch = samples(config)
    real = np.asarray(batch.weights) > 0

    def log_shares(weights: Any) -> np.ndarray:
        return np.asarray(jax.nn.log_softmax(apply(weights, batch)))[real]

    exact = log_shares(params)
    perplexity = np.exp(-(np.exp(exact) * exact).sum(-1).mean())
    costs = {}
    for bits in (8, 4):
        rounded = log_shares(quantization.quantize_params(model.axes, params, bits))
        costs[bits] = np.expm1((np.exp(exact) * (exact - rounded)).sum(-1).mean())
    with capfd.disabled():
        print(f"\n{name}: perplexity {perplexity:.1f}, {costs[8]:+.3%}, {costs[4]:+.2%}", end="")
    assert costs[8] <= 0.005 and costs[4] <= 0.04
