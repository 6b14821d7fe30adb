"""The sizes of the encoder of an encoder-decoder, which may differ from its decoder's."""

from dataclasses import replace

import jax
import pytest

from jaxlm import models
from jaxlm.config import ModelConfig

CONFIG = ModelConfig(
    family="encoder_decoder", vocabulary_size=64, layers=3, width=32, heads=4, kv_heads=2
)


def sizes(config: ModelConfig) -> dict[str, tuple[int, int, int, int]]:
    """Return {stack: (layers, heads, key/value heads, MLP width)} of the parameters."""
    shapes = jax.eval_shape(models.build(config).init, jax.random.key(0))
    found = {}
    for stack in ("encoder", "decoder"):
        blocks = shapes[stack]["blocks"]
        layers, _, heads, _ = blocks["attention"]["query_kernel"].shape
        kv_heads = blocks["attention"]["key_kernel"].shape[2]
        assert blocks["attention"]["value_kernel"].shape[2] == kv_heads
        found[stack] = (layers, heads, kv_heads, blocks["mlp"]["up_kernel"].shape[2])
    return found


@pytest.mark.parametrize(
    ("fields", "encoder"),
    [
        (dict(), (3, 4, 2, 128)),
        (dict(encoder_layers=1), (1, 4, 2, 128)),
        (dict(encoder_kv_heads=1), (3, 4, 1, 128)),
        (dict(encoder_kv_heads=4), (3, 4, 4, 128)),
        (dict(encoder_heads=8), (3, 8, 8, 128)),  # kv_heads are the decoder's alone then
        (dict(encoder_heads=8, encoder_kv_heads=2), (3, 8, 2, 128)),
        (dict(encoder_mlp_width=48), (3, 4, 2, 48)),
    ],
)
def test_the_encoder_has_its_own_sizes(fields, encoder):
    assert sizes(replace(CONFIG, **fields)) == {"encoder": encoder, "decoder": (3, 4, 2, 128)}
