"""Exact counts of the FLOPs in matrix products. A multiplication and an addition are two FLOPs."""

from jaxlm.config import ModelConfig


def forward_flops(
    config: ModelConfig, length: int, source_length: int = 0, predictions: int | None = None
) -> int:
    """Count the FLOPs of the forward pass for one sample.

    The sample has `length` tokens, of which the head sees `predictions` (None: all). With a
    `source_length` the model is an encoder-decoder, whose decoder reads the tokens.

    Attention scores count every pair of positions within the sliding window, if there is one. This
    is the convention of PaLM (arXiv 2204.02311, appendix B) and of most published MFUs. Norms,
    activations and the embedding lookup are left out.
    """
    if config.is_classifier:
        return 2 * classifier_products(config, length, source_length, predictions)
    predicted = length if predictions is None else predictions
    if config.generator_share is not None:
        return 2 * electra_products(config, length, predicted)

    transform = config.width if config.head_transform else 0
    head = config.token_width * config.vocabulary_size + config.width * transform
    products = stack_products(config, length) + predicted * head

    # A narrower token table is projected to the model's width, and back before the head.
    if config.embedding_width is not None:
        projected = length + source_length + predicted
        products += projected * config.width * config.embedding_width

    if source_length:
        products += source_products(config, length, source_length)
    return 2 * products


def source_products(config: ModelConfig, length: int, source_length: int) -> int:
    """Count the multiplications of an encoder, and those by which a decoder reads it."""
    queries, keys = projection_products(config)
    cross_scores = score_products(config, length, source_length)
    cross = queries * length + keys * source_length + cross_scores
    return stack_products(config.encoder, source_length) + config.layers * cross


def classifier_products(
    config: ModelConfig, length: int, source_length: int, predictions: int | None
) -> int:
    """Count the multiplications of a classifier; it gives labels at `predictions` positions.

    An encoder-decoder that labels tokens is its encoder alone.
    """
    if reads_source_alone(config):
        read, products = source_length, stack_products(config.encoder, source_length)
    else:
        read, products = length + source_length, stack_products(config, length)
        if source_length:
            products += source_products(config, length, source_length)
    if config.token_width != config.width:
        products += read * config.token_width * config.width

    positions = source_length if reads_source_alone(config) else length
    transform = config.width if config.label_head.transform != "none" else 0
    head = config.width * (transform + config.outputs)
    return products + head * (positions if predictions is None else predictions)


def reads_source_alone(config: ModelConfig) -> bool:
    """Return whether the model is the encoder of an encoder-decoder, which labels its tokens."""
    return config.family == "encoder_decoder" and config.classifier.kind == "token"


def training_flops(
    config: ModelConfig, length: int, source_length: int = 0, predictions: int | None = None
) -> int:
    """Count the FLOPs of the forward and backward pass for one sample, without recomputation."""
    return 3 * forward_flops(config, length, source_length, predictions)


def causal_training_flops(
    config: ModelConfig, length: int, source_length: int = 0, predictions: int | None = None
) -> int:
    """Count as `training_flops`, but only the scores of positions that a causal mask lets through.

    They are about half of those of a decoder. Where a kernel skips the others, this is the work
    that it does. An encoder has the same count in both.
    """
    flops = training_flops(config, length, source_length, predictions)
    if config.family == "encoder" or reads_source_alone(config):
        return flops

    for layer in range(config.layers):
        window = config.windows[layer % len(config.windows)]
        pairs = length * visible_positions(config, length, window)
        hidden = pairs - causal_pairs(length, window)
        flops -= 6 * score_products(config, 1, hidden)
    return flops


def causal_pairs(length: int, window: int | None) -> int:
    """Return how many pairs of positions see each other, each those before it and itself."""
    width = length if window is None else min(length, window)
    return width * (width + 1) // 2 + (length - width) * width


def rule_training_flops(config: ModelConfig, parameters: int, length: int) -> int:
    """Return 6 N + 12 L d T per token, for the T tokens of a sample in one stack.

    N are the stack's parameters, embeddings included, L its layers, d the channels of all heads of
    a layer. PaLM (arXiv 2204.02311, appendix B) and most published MFUs count so. The head is
    counted at all positions, and cross attention by its parameters alone.
    """
    scores = 12 * config.layers * config.heads * config.width_per_head * length
    return length * (6 * parameters + scores)


def electra_products(config: ModelConfig, length: int, predictions: int) -> int:
    """Count the multiplications of both of ELECTRA's networks.

    The discriminator judges all positions, the generator fills `predictions` of them.
    """
    dense = config.width * config.width + config.width  # the head: a hidden layer and one logit
    products = stack_products(config, length) + length * dense
    if config.token_width != config.width:
        products += length * config.token_width * config.width

    generator = config.generator
    if generator is None:
        return products
    products += stack_products(generator, length)
    products += predictions * generator_head_products(config)
    if config.token_width != generator.width:
        products += length * config.token_width * generator.width
    return products


def generator_head_products(config: ModelConfig) -> int:
    """Count the multiplications of the head of ELECTRA's generator per position."""
    generator = config.generator
    assert generator is not None
    return generator.width * config.token_width + config.token_width * config.vocabulary_size


def stack_products(config: ModelConfig, length: int) -> int:
    """Count the multiplications in the blocks, without cross attention."""
    mlp = (3 if config.gated else 2) * config.width * config.hidden_width
    products = config.layers * (sum(projection_products(config)) + mlp) * length

    for layer in range(config.layers):
        window = config.windows[layer % len(config.windows)]
        products += score_products(config, length, visible_positions(config, length, window))

    return products


def visible_positions(config: ModelConfig, length: int, window: int | None) -> int:
    """Return how many positions a query sees at most."""
    if window is None:
        return length
    # A decoder's window lies before the query, an encoder's on both sides of it.
    return min(length, window if config.family == "decoder" else 2 * window - 1)


def projection_products(config: ModelConfig) -> tuple[int, int]:
    """Count the multiplications of the attention's projections per position.

    The first number holds for positions that ask (query and output), the second for positions that
    are read (key and value).
    """
    return (
        2 * config.width * config.heads * config.width_per_head,
        2 * config.width * config.key_value_heads * config.width_per_head,
    )


def score_products(config: ModelConfig, queries: int, keys: int) -> int:
    """Count the multiplications of the attention scores and of the weighted sum."""
    return 2 * queries * keys * config.heads * config.width_per_head
