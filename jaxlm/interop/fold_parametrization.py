"""The factors of muP, put into the weights: `transformers` has no place for them.

The model is then one of the standard parametrization that computes the same logits. A tied head has
its factor in the norm before it, so that the features of the last layer have it, too.
"""

from dataclasses import replace

import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.models.electra import embedding_config
from jaxlm.nn.parametrization import attention_scale, embedding_scale, head_scale
from jaxlm.types import Array, Tree

QUERIES = ("attention", "cross_attention")


def standard_model(model: ModelConfig) -> ModelConfig:
    """Return the model in the standard parametrization; its parameters have the same shapes."""
    return replace(model, parametrization="standard", mup_base_width=None)


def fold_parametrization(model: ModelConfig, params: Tree) -> tuple[ModelConfig, Tree]:
    """Return a standard model and the parameters with which it computes the same logits."""
    if model.parametrization == "standard":
        return model, params

    if model.generator_share is not None:
        folded = fold_electra(model, params)
    elif model.family == "encoder_decoder":
        stacks = {"encoder": model.encoder, "decoder": model}
        folded = {
            name: fold_embedding(model, fold_queries(stacks[name], params[name])) for name in params
        }
        last = "decoder" if "decoder" in params else "encoder"  # whose output the head reads
        folded[last] = fold_head(model, folded[last])
    else:
        folded = fold_head(model, fold_embedding(model, fold_queries(model, params)))
    return standard_model(model), folded


def fold_electra(model: ModelConfig, params: Tree) -> Tree:
    """Return the parameters of ELECTRA's networks. Their embeddings are a model of their own."""
    discriminator = fold_queries(model, params["discriminator"])
    discriminator = fold_embedding(embedding_config(model), discriminator)
    if model.is_classifier:
        return {"discriminator": fold_head(model, discriminator)}
    head = discriminator["head"]
    kernel = multiply(head["kernel"], 1 / model.width_ratio)
    folded = {"discriminator": discriminator | {"head": head | {"kernel": kernel}}}

    config = model.generator
    if config is not None:
        generator = fold_queries(config, params["generator"])
        head, factor = generator["head"], head_factor(embedding_config(config))
        if config.tied_head:
            head = head | {"transform_norm": fold_norm(config, head["transform_norm"], factor)}
        else:
            vocabulary = head["vocabulary"]
            kernel = multiply(vocabulary["kernel"], factor)
            head = head | {"vocabulary": vocabulary | {"kernel": kernel}}
        folded["generator"] = generator | {"head": head}
    return folded


# The parts of a transformer


def fold_queries(config: ModelConfig, params: Tree) -> Tree:
    """Return the parameters with the factor of the scores in the queries."""
    factor = attention_scale(config) / attention_scale(standard_model(config))
    if factor == 1:
        return params

    blocks = dict(params["blocks"])
    for name in QUERIES:
        if name not in blocks:
            continue
        weights = dict(blocks[name])
        if config.query_key_norm:  # the scale of the query itself is lost in its norm
            weights["query_norm"] = fold_norm(config, weights["query_norm"], factor)
        else:
            for part in ("query_kernel", "query_bias"):
                if part in weights:
                    weights[part] = multiply(weights[part], factor)
        blocks[name] = weights
    return params | {"blocks": blocks}


def fold_embedding(config: ModelConfig, params: Tree) -> Tree:
    """Return the parameters with the factor of the embeddings in the token table, if it is here."""
    tokens = params.get("embedding", {}).get("tokens")
    factor = embedding_factor(config)
    if tokens is None or factor == 1:
        return params
    return params | {"embedding": params["embedding"] | {"tokens": multiply(tokens, factor)}}


def fold_head(config: ModelConfig, params: Tree) -> Tree:
    """Return the parameters with the factor of the head in a weight that only the head reads."""
    if config.is_classifier:
        scores = params["classifier"]
        kernel = multiply(scores["kernel"], 1 / config.width_ratio)
        return params | {"classifier": scores | {"kernel": kernel}}

    factor, head = head_factor(config), params.get("head", {})
    for name in ("kernel", "projection"):
        if name in head:
            return params | {"head": head | {name: multiply(head[name], factor)}}

    if config.head_transform:
        norm = fold_norm(config, head["transform_norm"], factor)
        return params | {"head": head | {"transform_norm": norm}}
    if "final_norm" in params:
        return params | {"final_norm": fold_norm(config, params["final_norm"], factor)}

    # After the norm of the last layer's MLP nothing follows but the head.
    blocks, layers = params["blocks"], config.layers
    last = jnp.where(jnp.arange(layers)[:, None] == layers - 1, factor, 1.0)
    return params | {"blocks": blocks | {"mlp_norm": fold_norm(config, blocks["mlp_norm"], last)}}


def head_factor(config: ModelConfig) -> float:
    """Return the factor of a model's scores, relative to those of the standard model.

    A tied head reads the table that has the factor of the embeddings.
    """
    factor = head_scale(config) / head_scale(standard_model(config))
    return factor / embedding_factor(config) if config.tied_head else factor


def embedding_factor(config: ModelConfig) -> float:
    """Return the factor of a model's token embeddings, relative to those of the standard model."""
    return embedding_scale(config) / embedding_scale(standard_model(config))


def fold_norm(config: ModelConfig, norm: Tree, factor: float | Array) -> Tree:
    """Return the parameters of a norm whose output is multiplied."""
    folded = {name: multiply(values, factor) for name, values in norm.items()}
    if config.norm_offset:  # it multiplies by 1 + scale
        folded["scale"] = (folded["scale"] + (factor - 1.0)).astype(norm["scale"].dtype)
    return folded


def multiply(weight: Array, factor: float | Array) -> Array:
    """Return the weight times a factor, in its dtype."""
    return (weight.astype(jnp.float32) * factor).astype(weight.dtype)
