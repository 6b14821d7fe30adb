"""Flax layers of all families. Each names the logical axes of its weights and activations."""
