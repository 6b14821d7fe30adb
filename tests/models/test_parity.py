"""Logits, losses, gradients and optimizer steps against PyTorch, from the same weights.

Both sides compute in float32 and add up in different orders: logits with a standard deviation of 1 to 2 agree to about 1e-5,
and any difference in the maths is above 1e-2 with weights as large as these.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import peers  # noqa: E402 (needs torch)

from jaxlm import config, models, optim  # noqa: E402
from jaxlm.losses import loss_sums  # noqa: E402
from jaxlm.types import Batch, Tree  # noqa: E402

VOCABULARY, BATCH, LENGTH = 97, 3, 17
LOGITS_TOLERANCE, LOSS_TOLERANCE = 2e-5, 5e-6


class Pair(NamedTuple):
    """A torch model and our config of the same function; `convert(state, fill)` carries its tensors over."""

    peer: Any
    model: config.Model
    convert: Callable[..., Tree]

    def logits(self, tokens: np.ndarray) -> Any:
        out = self.peer(torch.from_numpy(tokens).long())
        return getattr(out, "logits", out)


def decoder(**fields) -> config.Model:
    return config.Model(vocabulary_size=VOCABULARY, context_length=LENGTH + 2, **fields)


def made(cls: str, **fields) -> Any:
    """A randomly weighted `transformers` model of tiny size, without dropout."""
    plain = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "attn_implementation": "eager"}
    names = {"GPT2": "GPT2LMHeadModel"}
    peer = getattr(transformers, names.get(cls, f"{cls}ForCausalLM"))(getattr(transformers, f"{cls}Config")(**(plain | fields))).eval()
    peers.randomise(peer, seed=1)
    return peer


def gpt2() -> Pair:
    sizes = {"n_embd": 36, "n_layer": 2, "n_head": 3, "n_inner": 50, "n_positions": LENGTH + 2}
    peer = made("GPT2", **sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = decoder(layers=2, width=36, heads=3, mlp_width=50)
    return Pair(peer, model, lambda state, fill=7.0: peers.gpt2(state, 3, 2, fill))


def bloom(heads: int) -> Pair:
    peer = made("Bloom", hidden_size=8 * heads, n_layer=2, n_head=heads)
    model = decoder(layers=2, width=8 * heads, heads=heads, positions="alibi", embedding_norm=True)
    return Pair(peer, model, lambda state, fill=7.0: peers.bloom(state, heads, 2, fill))


LLAMA_SIZES = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 50}
LLAMA: dict[str, Any] = {
    "layers": 2,
    "width": 36,
    "heads": 6,
    "kv_heads": 2,
    "mlp_width": 50,
    "norm": "rmsnorm",
    "positions": "rotary",
    "activation": "silu",
    "gated": True,
    "attention_bias": False,
    "attention_output_bias": False,
    "mlp_bias": False,
    "tied_head": False,
    "norm_epsilon": 1e-6,
}


def llama(theirs: dict | None = None, ours: dict | None = None, cls: str = "Llama") -> Pair:
    """Six heads in two groups unless told otherwise."""
    peer = made(cls, **(LLAMA_SIZES | (theirs or {})))
    model = decoder(**(LLAMA | (ours or {})))
    return Pair(peer, model, lambda state, fill=7.0: peers.llama(state, model.width_per_head, 2, fill))


def llama3_scaling() -> Pair:
    """Pairs of channels on all three branches: kept, blended and divided."""
    scaling = {"rope_type": "llama3", "rope_theta": 700.0, "factor": 6.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
    ours = {
        "head_width": 10,
        "rotary_theta": 700.0,
        "rotary_scaling": "llama3",
        "rotary_scaling_factor": 6.0,
        "rotary_low_frequency_factor": 1.0,
        "rotary_high_frequency_factor": 3.0,
        "rotary_original_length": 16,
    }
    return llama({"head_dim": 10, "rope_parameters": scaling | {"original_max_position_embeddings": 16}}, ours)


def linear_scaling() -> Pair:
    scaling = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
    return llama({"rope_parameters": scaling}, {"rotary_scaling": "linear", "rotary_scaling_factor": 2.5})


def biased_multi_query() -> Pair:
    biases = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
    return llama({"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}, {"kv_heads": 1} | biases)


def mistral() -> Pair:
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}
    return llama({"sliding_window": 5} | theta, {"sliding_window": 5, "rotary_theta": 50.0}, "Mistral")


def qwen3() -> Pair:
    theirs = {"head_dim": 10, "tie_word_embeddings": True}
    return llama(theirs, {"head_width": 10, "query_key_norm": True, "tied_head": True}, "Qwen3")


def gemma2() -> Pair:
    """Soft-caps, GEGLU and windows. The norms that Gemma 2 puts behind each sublayer are taken out: we have no such placement.

    What is left of its differences are units of the weights: its embedding is multiplied by sqrt(width), its norms by 1 + weight.
    """
    theirs = {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}
    ours = {"head_width": 8, "attention_softcap": 1.5, "logit_softcap": 2.0, "activation": "gelu_tanh", "sliding_window": 6}
    windows = {"sliding_window": 6, "layer_types": ["sliding_attention"] * 2}
    peer = made("Gemma2", **(LLAMA_SIZES | theirs | windows), tie_word_embeddings=False)
    for weight in (w for name, w in peer.named_parameters() if name.endswith("norm.weight")):
        weight.data -= 1.0
    for layer in peer.model.layers:
        layer.post_attention_layernorm = layer.post_feedforward_layernorm = torch.nn.Identity()

    def convert(state: peers.State) -> Tree:
        units = {"model.embed_tokens.weight": lambda w: w * math.sqrt(36)}
        units |= {name: lambda w: w + 1.0 for name in state if name.endswith("norm.weight")}
        state = {name: units.get(name, lambda w: w)(value) for name, value in state.items()}
        return peers.llama(state, 8, 2, mlp_norm="pre_feedforward_layernorm")

    return Pair(peer, decoder(**(LLAMA | ours)), convert)


class PostNorm(torch.nn.Module):
    """The original Transformer's layers: norm(x + f(x)), exact GELU, a head with a bias, no positions."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(VOCABULARY, 36)
        layer = torch.nn.TransformerEncoderLayer(36, 3, 50, dropout=0.0, activation="gelu", batch_first=True, norm_first=False)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(36, VOCABULARY)

    def forward(self, tokens):
        causal = torch.nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.encoder(self.table(tokens), mask=causal, is_causal=True))


def post_norm() -> Pair:
    peer = PostNorm().eval()
    peers.randomise(peer, seed=1)
    fields = {"norm_placement": "post", "positions": "none", "activation": "gelu", "tied_head": False, "head_bias": True}
    model = decoder(layers=2, width=36, heads=3, mlp_width=50, **fields)
    return Pair(peer, model, lambda state, fill=7.0: peers.post_norm(state, 3, 2, fill))


PAIRS: dict[str, Callable[[], Pair]] = {
    "gpt2": gpt2,
    "bloom, 4 heads": lambda: bloom(4),
    "bloom, 7 heads": lambda: bloom(7),
    "llama": llama,
    "llama, multi-query with biases": biased_multi_query,
    "llama, llama3 scaling and free head width": llama3_scaling,
    "llama, linear scaling": linear_scaling,
    "mistral, window and theta": mistral,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "post-norm": post_norm,
}


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, L + 1] and 0/1 weights [B, L] of the targets."""
    rng = np.random.default_rng(0)
    return rng.integers(0, VOCABULARY, (BATCH, LENGTH + 1), np.int32), (rng.random((BATCH, LENGTH)) < 0.8).astype(np.float32)


def peer_loss(logits: Any, targets: np.ndarray, weights: np.ndarray) -> Any:
    """torch's mean cross-entropy over the targets that count."""
    labels = torch.from_numpy(np.where(weights > 0, targets, -100)).long()
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), labels.reshape(-1))


def our_loss(model: models.Model, params: Tree, tokens: Any, weights: Any) -> Any:
    scores = model.scores(model.head_weights(params), model.features(params, Batch(tokens[:, :-1])))
    sums = loss_sums(scores, tokens[:, 1:], weights)
    return sums.loss / sums.count


def assert_same_tree(model: models.Model, params: Tree) -> None:
    """Every parameter of ours comes from the peer, with the right shape."""
    expected = jax.tree.map(lambda a: a.shape, jax.eval_shape(model.init, jax.random.key(0)))
    assert jax.tree.map(lambda a: a.shape, params) == expected


@pytest.mark.parametrize("name", PAIRS)
def test_logits_and_loss(name, samples):
    tokens, weights = samples
    pair = PAIRS[name]()
    model = models.build(pair.model)
    params = pair.convert(peers.weights(pair.peer))
    assert_same_tree(model, params)
    with torch.no_grad():
        theirs = pair.logits(tokens[:, :-1])
        expected_loss = peer_loss(theirs, tokens[:, 1:], weights).item()
    ours = jax.jit(lambda p, t: model.apply(p, Batch(t)))(params, tokens[:, :-1])
    assert ours.dtype == jnp.float32 and ours.shape == (BATCH, LENGTH, VOCABULARY)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=LOGITS_TOLERANCE)
    sums = loss_sums(ours, tokens[:, 1:], weights)
    assert float(sums.loss / sums.count) == pytest.approx(expected_loss, rel=0, abs=LOSS_TOLERANCE)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradients(name, samples):
    """Tensor by tensor and layer by layer, the difference is at most 1e-4 of the gradient's norm.

    Key biases have no true gradient (a softmax ignores what it adds to all scores): tensors below a thousandth of the global norm
    are compared at that scale.
    """
    tokens, weights = samples
    pair = PAIRS[name]()
    model = models.build(pair.model)
    peer_loss(pair.logits(tokens[:, :-1]), tokens[:, 1:], weights).backward()
    theirs = pair.convert(peers.gradients(pair.peer), fill=0.0)  # rows that pad the vocabulary have no gradient
    params = pair.convert(peers.weights(pair.peer))
    ours = jax.jit(jax.grad(lambda p: our_loss(model, p, tokens, weights)))(params)
    assert_same_tree(model, theirs)
    floor = 1e-3 * float(optax.tree.norm(theirs))

    def compare(path: tuple, mine: np.ndarray, other: np.ndarray) -> None:
        in_blocks = path[0].key == "blocks"
        for layer, (a, b) in enumerate(zip(mine, other, strict=True) if in_blocks else [(mine, other)]):
            error = np.linalg.norm(np.asarray(a) - b) / max(float(np.linalg.norm(b)), floor)
            assert error < 1e-4, f"{jax.tree_util.keystr(path)} layer {layer}: {error}"

    jax.tree_util.tree_map_with_path(compare, ours, theirs)


def test_twenty_adamw_steps():
    """The same weights and batches stay together: only rounding may tell the losses apart (key biases drift: Adam makes steps of it)."""
    steps, warmup, peak, final = 20, 5, 3e-3, 0.1
    pair = PAIRS["gpt2"]()
    batches = np.random.default_rng(1).integers(0, VOCABULARY, (steps, BATCH, LENGTH + 1), np.int32)
    weights = np.ones((BATCH, LENGTH), np.float32)

    fields = {"learning_rate": peak, "warmup_steps": warmup, "final_learning_rate_ratio": final, "weight_decay": 0.3, "beta2": 0.97}
    optimizer = optim.build(config.Optimizer(**fields, schedule="cosine", gradient_clip=1.0), steps)
    model, params = models.build(pair.model), pair.convert(peers.weights(pair.peer))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, tokens):
        loss, grads = jax.value_and_grad(lambda p: our_loss(model, p, tokens, weights))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, optax.tree.norm(grads)

    parameters = dict(pair.peer.named_parameters())
    plain = [p for n, p in parameters.items() if n.endswith("bias") or ".ln_" in n]
    decayed = [p for n, p in parameters.items() if not (n.endswith("bias") or ".ln_" in n)]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.97), eps=1e-8)

    clipped = 0
    for index, tokens in enumerate(batches):
        decay = 0.5 * (1 + math.cos(math.pi * (index - warmup) / (steps - warmup)))
        for group in adamw.param_groups:
            group["lr"] = peak * (index + 1) / warmup if index < warmup else peak * (final + (1 - final) * decay)
        adamw.zero_grad()
        expected = peer_loss(pair.logits(tokens[:, :-1]), tokens[:, 1:], weights)
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0).item()
        adamw.step()
        params, state, loss, our_norm = step(params, state, tokens)
        clipped += norm > 1.0
        assert float(loss) == pytest.approx(expected.item(), rel=0, abs=1e-5), f"step {index}"
        assert float(our_norm) == pytest.approx(norm, rel=1e-4), f"step {index}"
    assert clipped > 0
    np.testing.assert_allclose(
        params["embedding"]["tokens"][:VOCABULARY], parameters["transformer.wte.weight"].detach().numpy(), rtol=0, atol=1e-4
    )
