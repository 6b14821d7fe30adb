"""jaxlm pretrains transformer language models in JAX.

Importing it changes nothing and needs no jax.
"""
