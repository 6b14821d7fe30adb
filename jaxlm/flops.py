"""Exact counts of the FLOPs in matrix products; a multiplication and an addition are two."""

from jaxlm import config


def forward_flops(
    model: config.ModelConfig, length: int, source_length: int = 0, predictions: int | None = None
) -> int:
    """FLOPs of the forward pass for one sample: `length` tokens, of which the head sees `predictions` (None: all).

    With a `source_length` it is that of an encoder-decoder, whose decoder reads the tokens. Attention scores count every pair (the
    convention of PaLM, arXiv 2204.02311 appendix B, and of most published MFUs), within the sliding window if there is one. Norms,
    activations and the embedding lookup are left out.
    """
    transform = model.width if model.head_transform else 0
    head = (length if predictions is None else predictions) * (
        model.token_width * model.vocabulary_size + model.width * transform
    )
    products = stack_products(model, length) + head
    if model.embedding_width is not None:
        both_ends = length + source_length + (length if predictions is None else predictions)
        products += both_ends * model.width * model.embedding_width
    if source_length:
        queries, keys = projection_products(model)
        cross = queries * length + keys * source_length + score_products(model, length, source_length)
        products += stack_products(model.encoder, source_length) + model.layers * cross
    return 2 * products


def stack_products(model: config.ModelConfig, length: int) -> int:
    """Multiplications in the blocks, without cross attention."""
    mlp = (3 if model.gated else 2) * model.width * model.hidden_width
    windows = (model.windows[layer % len(model.windows)] for layer in range(model.layers))
    scores = sum(score_products(model, length, visible_positions(model, length, window)) for window in windows)
    return model.layers * (sum(projection_products(model)) + mlp) * length + scores


def visible_positions(model: config.ModelConfig, length: int, window: int | None) -> int:
    """Positions that a query sees at most."""
    return (
        length
        if window is None
        else min(length, window if model.family == "decoder" else 2 * window - 1)
    )


def projection_products(model: config.ModelConfig) -> tuple[int, int]:
    """Multiplications per position that asks (query, output) and per position that is read (key, value)."""
    return (
        2 * model.width * model.heads * model.width_per_head,
        2 * model.width * model.key_value_heads * model.width_per_head,
    )


def score_products(model: config.ModelConfig, queries: int, keys: int) -> int:
    """Multiplications of the scores and of the weighted sum."""
    return 2 * queries * keys * model.heads * model.width_per_head


def training_flops(
    model: config.ModelConfig, length: int, source_length: int = 0, predictions: int | None = None
) -> int:
    """FLOPs of the forward and backward pass for one sample; recomputation is not counted."""
    return 3 * forward_flops(model, length, source_length, predictions)
