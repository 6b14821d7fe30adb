"""Measure how fast this CPU multiplies, in this process: the products of one linear layer.

python tests/peers/products.py torch|jax float32|bfloat16
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

# The up-projection of the GPT of 6 layers: 16 sequences of 256 tokens, width 384.
ROWS, WIDTH, HIDDEN = 4096, 384, 1536
SECONDS = 1.0  # of each product
LEAST = 5  # repetitions
PRODUCTS = FORWARD, INPUT, WEIGHT = "forward", "input gradient", "weight gradient"


def operands() -> dict[str, np.ndarray]:
    """Return the input, the weight and the gradient of the output, float32."""
    random = np.random.default_rng(0)
    shapes = {"x": (ROWS, WIDTH), "w": (WIDTH, HIDDEN), "dy": (ROWS, HIDDEN)}
    return {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def torch_products(precision: str) -> dict[str, Callable[[], Any]]:
    """Return the products as torch's linear layer and its gradients compute them."""
    import torch

    x, w, dy = (torch.from_numpy(a).to(getattr(torch, precision)) for a in operands().values())
    weight = w.T.contiguous()  # torch keeps a linear layer's weight as [out, in]
    return {
        FORWARD: lambda: torch.nn.functional.linear(x, weight),
        INPUT: lambda: dy @ weight,
        WEIGHT: lambda: dy.T @ x,
    }


def jax_products(precision: str) -> dict[str, Callable[[], Any]]:
    """Return the products as jaxlm's layers compute them, on one device with all cores."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    def compiled(spec: str) -> Callable[..., jax.Array]:
        # The form that reaches the bfloat16 instructions: jaxlm/nn/matmul.py.
        return jax.jit(
            lambda a, b: jnp.einsum(spec, a, b, preferred_element_type=jnp.float32).astype(a.dtype)
        )

    x, w, dy = (jnp.asarray(a, precision) for a in operands().values())
    forward, to_input, to_weight = map(compiled, ("ld,df->lf", "lf,df->ld", "ld,lf->df"))
    return {
        FORWARD: lambda: forward(x, w).block_until_ready(),
        INPUT: lambda: to_input(dy, w).block_until_ready(),
        WEIGHT: lambda: to_weight(x, dy).block_until_ready(),
    }


def gflops(product: Callable[[], Any]) -> float:
    """Return the median GFLOP/s of a product over a second of repetitions."""
    product()
    product()
    seconds: list[float] = []
    while sum(seconds) < SECONDS or len(seconds) < LEAST:
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2e-9 * ROWS * WIDTH * HIDDEN / statistics.median(seconds)


if __name__ == "__main__":
    library, chosen_precision = sys.argv[1:]
    products = {"torch": torch_products, "jax": jax_products}[library](chosen_precision)
    rates = {name: round(gflops(product), 1) for name, product in products.items()}
    print(json.dumps(rates | {"versions": {library: version(library)}}))
