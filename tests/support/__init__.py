"""Tiny models, runs and references that several tests share."""
