"""Hugging Face directories of random weights with the tokenizers of runs, and `jaxlm.convert`."""

from dataclasses import replace
from pathlib import Path

from jaxlm import config, convert, interop, runtime
from jaxlm.conversion import export_run
from jaxlm.data.tokenizer import byte_tokenizer
from jaxlm.data.trained_tokenizers import train_bpe
from jaxlm.data.vocabulary import special_tokens
from jaxlm.interop import tokenizer
from jaxlm.interop.write_tokenizer import write_tokenizer
from support import tiny
from support.hf_directories import random_weights

TEXT = "It was the best of times, it was the worst of times. " * 20

# Objective, begin of text, model: each as an architecture of `transformers` has it.
BERT = replace(
    tiny.ENCODER.model,
    position_offset=0,
    activation="gelu",
    norm_epsilon=1e-12,
    vocabulary_size=400,
)
BART = config.ModelConfig(
    family="encoder_decoder",
    vocabulary_size=400,
    layers=2,
    encoder_layers=1,
    width=32,
    heads=4,
    context_length=64,
    norm_placement="post",
    embedding_norm=True,
    position_offset=2,
    activation="gelu",
)
ROBERTA = replace(BERT, token_types=1, position_offset=2, norm_epsilon=1e-5)
MADE = {
    "gpt2": (
        "causal",
        None,
        config.ModelConfig(vocabulary_size=400, layers=2, width=32, heads=4, context_length=64),
    ),
    "llama": (
        "causal",
        None,
        replace(
            tiny.CONFIG.model,
            attention_bias=False,
            attention_output_bias=False,
            mlp_bias=False,
            tied_head=False,
        ),
    ),
    "bert": ("masked", "<s>", BERT),
    "roberta": ("masked", "<s>", ROBERTA),
    "t5": (
        "span",
        None,
        replace(
            tiny.ENCODER_DECODER.model,
            vocabulary_size=400,
            encoder_layers=None,
            encoder_heads=None,
            encoder_mlp_width=None,
        ),
    ),
    "bart": ("infilling", "<s>", BART),
}


def hf_directory(folder: Path, name: str) -> Path:
    """Make a Hugging Face directory of random weights with the tokenizer of a run."""
    kind, begin, model = MADE[name]
    goal, made = (
        config.ObjectiveConfig(kind=kind),
        config.TokenizerConfig(begin_of_text=begin, sentinels=8),
    )
    needs = special_tokens(made, goal.needs)
    own = byte_tokenizer(needs) if name == "llama" else train_bpe([TEXT], 400, needs)
    special = tokenizer.run_tokenizer_frame(made, goal, own.inner)
    architecture = interop.match_architecture(model)[0]
    assert architecture.model_type == name
    ids = export_run.token_ids(special, architecture)
    interop.save(folder, model, random_weights(model), tokens=ids)
    write_tokenizer(folder, own.inner.to_str(), special, model.context_length)
    return folder


def converted(*arguments) -> int:
    """Call `jaxlm.convert` and return its exit code."""
    return runtime.command(convert.main, [str(argument) for argument in arguments])
