"""Evaluation: windows over texts, the scores of a model, metrics."""
