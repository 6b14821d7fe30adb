"""The loss of replaced-token detection: a generator fills hidden tokens, a model finds them.

ELECTRA (arXiv 2003.10555, section 2). All tokens of the text are judged; one that the generator
has filled as it was counts as the text's own.
"""

import jax
import jax.numpy as jnp

from jaxlm.losses import DetectionSums, LossSums, tiled_loss_sums
from jaxlm.models import Model
from jaxlm.nn.dropout import fold_rows, site_key
from jaxlm.types import Array, Batch, Tree

# What the key of a row decides.
GENERATOR_DROPOUT, SAMPLING, DETECTION_DROPOUT = range(3)

HASH_FACTOR = 0x9E3779B1  # odd: the golden ratio of Knuth's multiplicative hash


def replaced_token_sums(
    model: Model, params: Tree, batch: Batch, keys_B: Array | None, tile: int
) -> LossSums:
    """Return the loss sums of the generator of a model, and those of the detection.

    The scores of the generator are computed `tile` positions at a time. A row's key decides on
    dropout and on the tokens that are sampled. Without keys nothing is dropped, and what is sampled
    depends on the tokens of the row alone.
    """
    generator = model.generator
    assert generator is not None and batch.predict is not None

    x_BMD = generator.features(params, batch, site_key(keys_B, GENERATOR_DROPOUT))
    head = generator.head_weights(params)
    sums = tiled_loss_sums(generator.scores, head, x_BMD, batch.targets, batch.weights, tile)

    # No gradient passes through the choice of tokens. On one tile the compiler merges these scores
    # with those of the loss.
    sample_keys = site_key(keys_B, SAMPLING)
    if sample_keys is None:
        sample_keys = content_keys(batch.tokens)
    fixed_head, fixed_x = jax.lax.stop_gradient((head, x_BMD))
    sampled_BM = sample_tokens(generator, fixed_head, fixed_x, sample_keys, tile)

    filled, replaced_BL = fill_tokens(batch, sampled_BM)
    features = model.features(params, filled, site_key(keys_B, DETECTION_DROPOUT))
    logits_BL = model.scores(model.head_weights(params), features)[..., 0]
    detection = detection_sums(logits_BL, replaced_BL, judged_tokens(batch))
    return sums._replace(detection=detection)


def content_keys(tokens_BL: Array) -> Array:
    """Return a key for each row that depends on its tokens alone."""
    factors = jnp.arange(1, 2 * tokens_BL.shape[1], 2, dtype=jnp.uint32) * jnp.uint32(HASH_FACTOR)
    hashes_B = jnp.sum(jnp.asarray(tokens_BL).astype(jnp.uint32) * factors[None], axis=1)
    return fold_rows(jax.random.key(0), hashes_B)


@jax.named_scope("loss")  # the name in profiles
def sample_tokens(generator: Model, head: Tree, x_BMD: Array, keys_B: Array, tile: int) -> Array:
    """Return a token for each position, int32 [B, M], drawn by its probability.

    The Gumbel noise of a position depends on the key of its row and its place in it alone, and so
    neither on the tiles nor on the devices.
    """

    def sample(start: Array) -> Array:
        x_BTD = jax.lax.dynamic_slice_in_dim(x_BMD, start, tile, axis=1)
        scores_BTV = generator.scores(head, x_BTD)
        places_T = start + jnp.arange(tile)

        def noise(key: Array) -> Array:
            keys_T = jax.vmap(lambda place: jax.random.fold_in(key, place))(places_T)
            return jax.vmap(lambda k: jax.random.gumbel(k, scores_BTV.shape[-1:]))(keys_T)

        return jnp.argmax(scores_BTV + jax.vmap(noise)(keys_B), axis=-1).astype(jnp.int32)

    rows, positions = x_BMD.shape[:2]
    if tile >= positions:
        return sample(jnp.int32(0))
    parts = jax.lax.map(sample, jnp.arange(0, positions, tile))
    return jnp.moveaxis(parts, 0, 1).reshape(rows, positions)


def fill_tokens(batch: Batch, filling_BM: Array) -> tuple[Batch, Array]:
    """Return the batch with its hidden tokens filled, and where they are not those of the text.

    The batch is read at all positions. The second array is bool [B, L].
    """
    length = batch.tokens.shape[1]
    # Places beyond a row's targets, which have weight 0, are dropped.
    places_BM = jnp.where(jnp.asarray(batch.weights) > 0, jnp.asarray(batch.predict), length)
    put = jax.vmap(lambda row, places, values: row.at[places].set(values, mode="drop"))

    tokens_BL = put(jnp.asarray(batch.tokens), places_BM, filling_BM)
    nowhere = jnp.zeros(batch.tokens.shape, bool)
    replaced_BL = put(nowhere, places_BM, filling_BM != jnp.asarray(batch.targets))
    filled = batch._replace(tokens=tokens_BL, predict=None, targets=None, weights=None)
    return filled, replaced_BL


def judged_tokens(batch: Batch) -> Array:
    """Return 1.0 for each token that a detection judges, else 0.0; float32 [B, L].

    They are all but padding, in rows that have a target: an evaluation fills its last batch up with
    rows that don't count.
    """
    judged_BL = jnp.any(jnp.asarray(batch.weights) > 0, axis=1)[:, None]
    if batch.lengths is not None:
        lengths_B1 = jnp.asarray(batch.lengths)[:, None]
        judged_BL = judged_BL & (jnp.arange(batch.tokens.shape[1])[None] < lengths_B1)
    if batch.segments is not None:
        judged_BL = judged_BL & (jnp.asarray(batch.segments) > 0)
    return jnp.broadcast_to(judged_BL, batch.tokens.shape).astype(jnp.float32)


@jax.named_scope("loss")
def detection_sums(logits_BL: Array, replaced_BL: Array, judged_BL: Array) -> DetectionSums:
    """Return the sums of the binary cross-entropy of logits that a token was replaced."""
    replaced = replaced_BL.astype(jnp.float32)
    nll = jax.nn.softplus(logits_BL) - replaced * logits_BL
    is_correct = ((logits_BL > 0) == replaced_BL).astype(jnp.float32)

    return DetectionSums(
        loss=jnp.sum(nll * judged_BL),
        correct=jnp.sum(is_correct * judged_BL),
        replaced=jnp.sum(replaced * judged_BL),
        count=jnp.sum(judged_BL),
    )
