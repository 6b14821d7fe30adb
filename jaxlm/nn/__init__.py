"""Flax layers that every family shares. Each names the logical axes of its weights and of its activations."""
