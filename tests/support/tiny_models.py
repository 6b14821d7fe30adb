"""Small models with lively weights, and a slow reference that generates without a cache."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import config, models
from jaxlm.types import Batch, Tree

VOCABULARY = 61
PLAIN: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "layers": 2,
    "width": 32,
    "heads": 4,
    "context_length": 64,
}
MODELS = {
    "learned": config.ModelConfig(**PLAIN, tied_head=False),
    "rotary": config.ModelConfig(
        **PLAIN,
        kv_heads=2,
        norm="rmsnorm",
        positions="rotary",
        gated=True,
        activation="silu",
        tied_head=False,
    ),
    "alibi, window": config.ModelConfig(
        **PLAIN, positions="alibi", sliding_window=7, tied_head=False
    ),
    "t5": config.ModelConfig(
        **PLAIN,
        family="encoder_decoder",
        norm="rmsnorm",
        positions="relative",
        attention_scale=0.3,
        tied_head=False,
    ),
    "bart": config.ModelConfig(
        **PLAIN,
        family="encoder_decoder",
        norm_placement="post",
        embedding_norm=True,
        position_offset=2,
        head_bias=True,
        tied_head=False,
    ),
}


def lively_params(model: models.Model, seed: int = 7) -> Tree:
    """Return parameters with which texts are no loops of one token, and no two scores are near."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        scale = 0.7 if "kernel" in name else 1.0
        if "bias'" in name or "scale" in name:
            scale = 0.1
        values = scale * rng.normal(size=leaf.shape)
        return jnp.asarray(values + ("scale" in name), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def build_tiny(name: str, **changes: Any) -> tuple[models.Model, Tree]:
    """Return a model of `MODELS`, with some fields changed, and lively parameters."""
    model = models.build(replace(MODELS[name], **changes))
    return model, lively_params(model)


class WholeContext:
    """Scores of the next token by reading the whole context, row by row and without a cache."""

    def __init__(self, model: models.Model, params: Tree, width: int = 64):
        self.params, self.width = params, width
        self.apply = jax.jit(model.apply)

    def scores(self, ids: np.ndarray, source: np.ndarray | None = None) -> np.ndarray:
        """Return float32 [V], the scores of the token after `ids`."""
        tokens = np.zeros((1, self.width), np.int32)
        tokens[0, : len(ids)] = ids
        batch = Batch(tokens=tokens, predict=np.array([[len(ids) - 1]]))
        if source is not None:
            sources = np.zeros((1, self.width), np.int32)
            sources[0, : len(source)] = source
            batch = batch._replace(source=sources, source_lengths=np.array([len(source)]))
        return np.asarray(self.apply(self.params, batch))[0, 0]

    def greedy(
        self,
        ids: np.ndarray,
        limit: int,
        stop_ids: tuple[int, ...] = (),
        source: np.ndarray | None = None,
    ) -> list[int]:
        """Return the likeliest tokens after `ids`, one by one, the stop token included."""
        new: list[int] = []
        while len(new) < limit and not (new and new[-1] in stop_ids):
            context = np.concatenate([ids, new]).astype(np.int32)
            new.append(int(self.scores(context, source).argmax()))
        return new


def random_prompts(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    """Return int32 token ids of these lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]
