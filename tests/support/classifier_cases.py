"""Classifiers of `transformers` with random weights, and samples that both sides read."""

from typing import Any, NamedTuple

import numpy as np
import torch

from jaxlm.config import ModelConfig
from jaxlm.types import Batch
from support.parity import LENGTH, LENGTHS, PAD, VOCABULARY, build_reference, real_positions

END, LABELS = 0, ("good", "bad", "naïve")
BERT_SIZES = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LLAMA_SIZES = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 50,
    "max_position_embeddings": 20,
    "hidden_dropout": 0.0,
}
# By the beginning of the names of the classes.
FIELDS: dict[str, dict[str, Any]] = {
    "Bert": BERT_SIZES,
    "Roberta": BERT_SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "DistilBert": {
        "dim": 36,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 50,
        "max_position_embeddings": 20,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "ModernBert": {
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 50,
        "local_attention": 8,
        "classifier_pooling": "mean",
        "cls_token_id": None,
        "sep_token_id": None,
    },
    "Electra": BERT_SIZES | {"embedding_size": 20},
    "GPT2": {
        "n_embd": 36,
        "n_layer": 2,
        "n_head": 3,
        "n_positions": 20,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "classifier_dropout": 0.0,
    },
    "Llama": LLAMA_SIZES,
    "Mistral": LLAMA_SIZES,
    "Qwen2": LLAMA_SIZES,
    "Qwen3": LLAMA_SIZES | {"head_dim": 6},
    "T5": {
        "d_model": 36,
        "d_kv": 8,
        "d_ff": 50,
        "num_layers": 2,
        "num_heads": 3,
        "dropout_rate": 0.0,
        "decoder_start_token_id": PAD,
    },
    "Bart": {
        "d_model": 36,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 50,
        "decoder_ffn_dim": 40,
        "max_position_embeddings": 20,
        "dropout": 0.0,
        "decoder_start_token_id": END,
    },
}
CLASSES = [
    f"{name}For{kind}Classification"
    for name in FIELDS
    for kind in ("Sequence", "Token")
    if (name, kind) != ("Bart", "Token")  # transformers has none
]


class Sample(NamedTuple):
    """A batch as jaxlm reads it, and the tokens and labels that the reference reads."""

    batch: Batch
    tokens: np.ndarray  # [B, L], each row with one end token, its last real one
    labels: np.ndarray  # as torch's losses read them: -100 where none counts


def build_classifier(name: str, **fields) -> Any:
    """Return a reference of the class with three labels and random weights."""
    beginning = name.partition("For")[0]
    numbers = {label: number for number, label in enumerate(LABELS)}
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": numbers}
    return build_reference(name, **FIELDS[beginning], **labels, **fields)


def sample(model: ModelConfig, seed: int = 0) -> Sample:
    """Return random tokens with random labels of the model's kind."""
    rng = np.random.default_rng(seed)
    rows, real = len(LENGTHS), real_positions(LENGTHS, LENGTH)
    tokens = np.where(real, rng.integers(PAD + 1, VOCABULARY, (rows, LENGTH), np.int32), PAD)
    tokens[np.arange(rows), LENGTHS - 1] = END

    head, weights = model.classifier, np.ones((rows, 1), np.float32)
    if head.kind == "token":
        weights = ((rng.random((rows, LENGTH)) < 0.8) & real).astype(np.float32)
    if head.problem == "single_label":
        targets = rng.integers(0, len(LABELS), weights.shape, np.int32)
        labels = np.where(weights > 0, targets, -100)
        labels = labels[:, 0] if head.kind == "sequence" else labels
    elif head.problem == "multi_label":
        targets = rng.integers(0, 2, (rows, 1, len(LABELS))).astype(np.float32)
        labels = targets[:, 0]
    else:
        targets = rng.normal(size=(rows, 1, len(LABELS))).astype(np.float32)
        labels = targets[:, 0]

    batch = Batch(tokens=tokens, lengths=LENGTHS, targets=targets, weights=weights)
    if model.token_types > 1:
        types = rng.integers(0, model.token_types, tokens.shape, np.int32)
        batch = batch._replace(token_types=types)
    return Sample(batch, tokens, labels)


def read_as(reference: Any, model: ModelConfig, given: Sample) -> Batch:
    """Return the batch of a family: encoder-decoders read the text twice, as the reference does."""
    if model.family != "encoder_decoder":
        return given.batch
    start = np.full((len(given.tokens), 1), reference.config.decoder_start_token_id, np.int32)
    shifted = np.concatenate([start, given.tokens[:, :-1]], axis=1)
    return given.batch._replace(tokens=shifted, source=given.tokens, source_lengths=LENGTHS)


def reference_output(reference: Any, given: Sample, *, labels: bool = False) -> Any:
    """Return what the reference computes, with its own loss if it gets the `labels`."""
    mask = real_positions(LENGTHS, LENGTH)
    inputs = {"input_ids": torch.from_numpy(given.tokens), "attention_mask": torch.from_numpy(mask)}
    inputs = {name: value.long() for name, value in inputs.items()}
    if given.batch.token_types is not None:
        inputs["token_type_ids"] = torch.from_numpy(given.batch.token_types).long()
    if labels:
        inputs["labels"] = torch.from_numpy(given.labels)
        if given.labels.dtype != np.float32:
            inputs["labels"] = inputs["labels"].long()
    return reference(**inputs)
