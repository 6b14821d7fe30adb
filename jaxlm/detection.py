"""The loss of replaced-token detection: a generator fills hidden tokens, a model finds them.

ELECTRA (arXiv 2003.10555, section 2). All tokens of the text are judged; one that the generator
has filled as it was counts as the text's own.
"""

import jax
import jax.numpy as jnp

from jaxlm.losses import DetectionSums, LossSums, tiled_loss
from jaxlm.models import Model
from jaxlm.nn.dropout import fold_rows, site_key
from jaxlm.types import Array, Batch, Tree

# What the key of a row decides.
GENERATOR_DROPOUT, SAMPLING, DETECTION_DROPOUT = range(3)

HASH_FACTOR = 0x9E3779B1  # odd: the golden ratio of Knuth's multiplicative hash


def replaced_token_loss(
    model: Model, params: Tree, batch: Batch, keys_B: Array | None, tile: int, z_loss: float
) -> tuple[Array, LossSums]:
    """Return `tiled_loss` of the generator of a model, with the sums of the detection.

    The loss is the generator's alone. Its scores are computed `tile` positions at a time. A row's
    key decides on dropout and on the tokens that are sampled. Without keys nothing is dropped, and
    what is sampled in a document depends on its own tokens alone.
    """
    generator = model.generator
    assert generator is not None and batch.predict is not None

    x_BMD = generator.features(params, batch, site_key(keys_B, GENERATOR_DROPOUT))
    head = generator.head_weights(params)
    loss, sums = tiled_loss(
        generator.scores, head, x_BMD, batch.targets, batch.weights, tile, z_loss
    )

    # No gradient passes through the choice of tokens. On one tile the compiler merges these scores
    # with those of the loss.
    noise_keys_BM = sampling_keys(batch, site_key(keys_B, SAMPLING))
    fixed_head, fixed_x = jax.lax.stop_gradient((head, x_BMD))
    sampled_BM = sample_tokens(generator, fixed_head, fixed_x, noise_keys_BM, tile)

    filled, replaced_BL = fill_tokens(batch, sampled_BM)
    features = model.features(params, filled, site_key(keys_B, DETECTION_DROPOUT))
    logits_BL = model.scores(model.head_weights(params), features)[..., 0]
    detection = detection_sums(logits_BL, replaced_BL, judged_tokens(batch))
    return loss, sums._replace(detection=detection)


def sampling_keys(batch: Batch, keys_B: Array | None) -> Array:
    """Return the key of each prediction's noise, [B, M].

    It depends on the key of its row and its number among the predictions. Without keys it depends
    on the tokens of its document, as they stand in the row, and its position in the document alone:
    the documents beside it in a packed row change nothing.
    """
    predict_BM = jnp.asarray(batch.predict)
    if keys_B is not None:
        numbers_M = jnp.arange(predict_BM.shape[1])
        return jax.vmap(lambda key: fold_rows(key, numbers_M))(keys_B)

    positions_BL = batch.positions
    if positions_BL is None:
        positions_BL = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1])[None], batch.tokens.shape)
    factors_BL = (2 * positions_BL + 1).astype(jnp.uint32) * jnp.uint32(HASH_FACTOR)
    hashes_BL = jnp.asarray(batch.tokens).astype(jnp.uint32) * factors_BL
    if batch.segments is None:
        hashes_BM = jnp.broadcast_to(jnp.sum(hashes_BL, axis=1)[:, None], predict_BM.shape)
    else:
        segments_BL = jnp.asarray(batch.segments)
        segments_BM = jnp.take_along_axis(segments_BL, predict_BM, axis=1)
        is_same_BML = segments_BM[:, :, None] == segments_BL[:, None]
        hashes_BM = jnp.sum(jnp.where(is_same_BML, hashes_BL[:, None], 0), axis=2)

    positions_BM = jnp.take_along_axis(positions_BL, predict_BM, axis=1)
    document_keys_BM = jax.vmap(lambda hashes_M: fold_rows(jax.random.key(0), hashes_M))(hashes_BM)
    return jax.vmap(fold_rows)(document_keys_BM, positions_BM)


@jax.named_scope("loss")  # the name in profiles
def sample_tokens(generator: Model, head: Tree, x_BMD: Array, keys_BM: Array, tile: int) -> Array:
    """Return a token for each position, int32 [B, M], drawn by its probability.

    The Gumbel noise of a position depends on its key alone, and so neither on the tiles nor on the
    devices.
    """

    def sample(start: Array) -> Array:
        x_BTD = jax.lax.dynamic_slice_in_dim(x_BMD, start, tile, axis=1)
        keys_BT = jax.lax.dynamic_slice_in_dim(keys_BM, start, tile, axis=1)
        scores_BTV = generator.scores(head, x_BTD)
        vocabulary = scores_BTV.shape[-1:]
        noise_BTV = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, vocabulary)))(keys_BT)
        return jnp.argmax(scores_BTV + noise_BTV, axis=-1).astype(jnp.int32)

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
