"""ELECTRA: an encoder that finds replaced tokens, and the small one that replaces them.

arXiv 2003.10555. Both read the same embeddings (tokens, positions, types and their norm), which the
discriminator owns, and project them to their own widths; the generator's head reads the token table
too. So it is in the authors' code.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlm.config import AdapterConfig, ClassifierConfig, ModelConfig, PrecisionConfig
from jaxlm.models.components import Component, component_axes, label_components
from jaxlm.models.model import Model
from jaxlm.models.transformer import Transformer, build_transformer, token_positions
from jaxlm.nn.dropout import site_key
from jaxlm.nn.electra import DetectionHead, GeneratorHead, Projection
from jaxlm.nn.embedding import Embedding, padded_vocabulary
from jaxlm.nn.execution import Execution
from jaxlm.types import Array, Batch, Tree


class Electra(NamedTuple):
    """The two networks; the parameters are {"discriminator": ..., "generator": ...}.

    The embeddings are among those of the discriminator. Their last dimension is E.
    """

    discriminator: Transformer
    generator: Transformer | None

    @property
    def networks(self) -> dict[str, Transformer]:
        """Return the networks that there are, by name."""
        networks = {"discriminator": self.discriminator, "generator": self.generator}
        return {name: network for name, network in networks.items() if network is not None}

    @property
    def axes(self) -> Tree:
        """Return the logical axes of the parameters."""
        return {name: network.axes for name, network in self.networks.items()}

    def init(self, key: Array) -> Tree:
        """Return fresh parameters."""
        keys = jax.random.split(key, 2)
        return {
            name: network.init(network_key)
            for (name, network), network_key in zip(self.networks.items(), keys, strict=False)
        }

    def features(
        self, name: str, params: Tree, batch: Batch, dropout_key: Array | None = None
    ) -> Array:
        """Return the features of a network, [B, L, D] or [B, M, D] at `batch.predict`."""
        network = self.networks[name]
        network.check_length(batch)
        types_BL = jnp.zeros((1, 1), jnp.int32) if batch.token_types is None else batch.token_types
        key = site_key(dropout_key, network.config.layers)  # the layers use those before it
        x_BLE = self.discriminator.apply(
            params["discriminator"],
            "embedding",
            batch.tokens,
            token_positions(batch),
            types_BL,
            key,
        )
        if "projection" in network.components:
            x_BLE = network.apply(params[name], "projection", x_BLE)
        return network.features(params[name], batch, dropout_key, embedded=x_BLE)

    def head_weights(self, name: str, params: Tree) -> Tree:
        """Return the whole weights of a network's head."""
        network, table = self.networks[name], None
        if network.config.is_classifier:
            return network.head_weights(params[name])
        if name == "generator" and network.config.tied_head:
            table = self.discriminator.token_table(params["discriminator"])
        return {"own": network.weights(params[name], "head"), "table": table}

    def kernels(self, batch: Batch) -> dict[str, tuple[str, str]]:
        """Return the kernel of each kind of attention of both networks, and why."""
        kernels = self.discriminator.kernels(batch)
        if self.generator is not None:
            kernels |= self.generator.kernels(batch, "attention of the generator")
        return kernels


def build(
    config: ModelConfig, precision: PrecisionConfig, execution: Execution, adapter: AdapterConfig
) -> Model:
    """Return the discriminator of a config, with its `generator` if it has one."""
    discriminator = build_network(config, precision, execution, adapter, owns_embedding=True)
    generator = None
    if config.generator is not None:
        generator = build_network(
            config.generator, precision, execution, adapter, owns_embedding=False
        )
    electra = Electra(discriminator, generator)

    def model(name: str) -> Model:
        network = electra.networks[name]
        return Model(
            config=network.config,
            init=electra.init,
            axes=electra.axes,
            features=partial(electra.features, name),
            head_weights=partial(electra.head_weights, name),
            scores=network.scores,
            kernels=electra.kernels,
        )

    filler = None if generator is None else model("generator")
    return model("discriminator")._replace(generator=filler)


def embedding_config(config: ModelConfig) -> ModelConfig:
    """Return the model at the width of the embeddings, which both networks read."""
    return replace(
        config,
        width=config.token_width,
        mup_base_width=config.base_of(config.token_width),
        head_width=config.width_per_head,
        embedding_width=None,
        generator_share=None,
        head_transform=False,
        classifier=ClassifierConfig(),
    )


def build_network(
    config: ModelConfig,
    precision: PrecisionConfig,
    execution: Execution,
    adapter: AdapterConfig,
    *,
    owns_embedding: bool,
) -> Transformer:
    """Return one network; the one that `owns_embedding` is the discriminator."""
    dtype, compute = jnp.dtype(precision.params), jnp.dtype(precision.compute)
    table = embedding_config(config)

    def embedding_inputs() -> tuple:
        ids = jnp.zeros((1, 1), jnp.int32)
        return ids, ids, ids

    def head_inputs() -> tuple:
        rows, tied = padded_vocabulary(config.vocabulary_size), config.tied_head
        return jnp.zeros((1, 1, config.width)), jnp.zeros((rows, table.width)) if tied else None

    def head(execution: Execution) -> nn.Module:
        if owns_embedding:
            return DetectionHead(config, dtype)
        return GeneratorHead(config, table, execution, dtype)

    # Their order decides which random key initialises which.
    components: dict[str, Component] = {}
    if owns_embedding:
        components["embedding"] = Component(
            Embedding(table, execution, dtype, compute),
            Embedding(table, Execution(), dtype, compute),
            embedding_inputs,
        )
    if table.width != config.width:
        projection = Projection(config, dtype)
        components["projection"] = Component(
            projection, projection, lambda: (jnp.zeros((1, 1, table.width)),)
        )
    trunk = build_transformer(
        config, precision, execution, adapter, causal=False, embedding=False, head=False
    )
    components |= trunk.components
    if config.is_classifier:
        components |= label_components(config, dtype, lambda: (jnp.zeros((1, 1, config.width)),))
    else:
        components["head"] = Component(head(execution), head(Execution()), head_inputs)
    return trunk._replace(components=components, axes=component_axes(components))
