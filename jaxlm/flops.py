"""Exact counts of the FLOPs in matrix products; a multiplication and an addition are two."""

from jaxlm import config


def forward(model: config.Model, length: int) -> int:
    """FLOPs of the forward pass for one sequence of `length` tokens.

    Attention scores count every pair (the convention of PaLM, arXiv 2204.02311 appendix B, and of most published MFUs), within the
    sliding window if there is one. Norms, activations and the embedding lookup are left out.
    """
    D, H, G, K = model.width, model.heads, model.key_value_heads, model.width_per_head
    projections = D * H * K + 2 * D * G * K + H * K * D
    mlp = (3 if model.gated else 2) * D * model.hidden_width
    pairs = length * min(length, model.sliding_window or length)
    per_token = model.layers * (projections + mlp) + D * model.vocabulary_size
    return 2 * (per_token * length + model.layers * 2 * pairs * H * K)


def train(model: config.Model, length: int) -> int:
    """FLOPs of the forward and backward pass for one sequence; recomputation is not counted."""
    return 3 * forward(model, length)
