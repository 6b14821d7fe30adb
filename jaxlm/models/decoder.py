"""Causal decoders: GPT, Llama, BLOOM and their kin, by config alone."""

from jaxlm import config
from jaxlm.models import tower
from jaxlm.models.model import Model
from jaxlm.nn.attention import kernel
from jaxlm.nn.dot_product import Mask
from jaxlm.nn.execution import Execution
from jaxlm.types import Array, Batch, Tree


def build(model: config.Model, precision: config.Precision, execution: Execution) -> Model:
    """The decoder of `model` as pure functions."""
    decoder = tower.build(model, precision, execution, causal=True)

    def features(params: Tree, batch: Batch, dropout_key: Array | None = None) -> Array:
        return decoder.run(
            params,
            batch.tokens,
            Mask(True, model.sliding_window, batch.lengths, batch.lengths, batch.segments, None, batch.prefix_lengths),
            positions=batch.positions,
            predict=batch.predict,
            dropout_key=dropout_key,
        )

    def kernels(batch: Batch) -> dict[str, tuple[str, str]]:
        length = batch.tokens.shape[1]
        mask = Mask(True, model.sliding_window, segments=batch.segments, prefix_lengths=batch.prefix_lengths)
        return {"attention": kernel(model, precision.compute, length, length, mask, execution)}

    return Model(model, decoder.init, decoder.axes, features, decoder.head_weights, decoder.scores, kernels)
