"""Configs that can't be trained are refused before jax is there: one line that names the key."""

import ast
import inspect
from pathlib import Path

import pytest

from jaxlm import config, run_checks
from jaxlm.config import Config, ConfigError, mesh

ELECTRA = (
    "model.family=encoder",
    "objective.kind=replaced_tokens",
    "model.head_transform=true",
    "model.generator_share=0.25",
)
CLASSIFIER = (
    "model.family=encoder",
    "objective.kind=classify",
    "data.sources.0.format=labelled",
    "data.sources.0.path=texts.jsonl",
    "model.classifier.kind=token",
    'model.classifier.labels=["NOUN", "VERB"]',
)
SPANS = ("model.family=encoder_decoder", "objective.kind=span")

REFUSED = [  # edits of the defaults, the key at fault, a part of the reason; on 8 TPUs
    (
        ["checkpoint.best=eval/accuracy"],
        "checkpoint.best",
        "'eval/accuracy' is no figure of objective.kind='causal', which has 'eval/loss'",
    ),
    (
        [*CLASSIFIER, "checkpoint.best=eval/matthews"],
        "checkpoint.best",
        "kind='token' with problem='single_label', which has 'eval/loss', 'eval/accuracy'",
    ),
    (
        [*CLASSIFIER, "checkpoint.best=eval/entity_f1"],
        "checkpoint.best",
        "needs model.classifier.labels such as B-PER, I-PER and O",
    ),
    (
        [*ELECTRA, "model.generator_share=0"],
        "model.generator_share",
        "0: the model has no generator",
    ),
    (["precision.weights=int4", "model.width=48"], "precision.weights", "do not divide the width"),
    (["precision.compute=float16"], "precision.compute", "'tpu' have no products in 'float16'"),
    (["precision.matmul=float8"], "precision.matmul", "8.9 or newer (Ada, Hopper), got platform"),
    (["parallel.tensor=5"], "parallel.tensor", "5 does not divide model.heads (12)"),
    (
        [*SPANS, "parallel.tensor=4", "model.encoder_heads=6"],
        "parallel.tensor",
        "4 does not divide model.encoder_heads (6)",
    ),
    ([*ELECTRA, "parallel.tensor=4"], "parallel.tensor", "the generator's heads (3)"),
    (["parallel.data=3"], "parallel", "data 3 x tensor 1 does not fit 8 devices"),
    (["parallel.fsdp=4"], "parallel", "data 1 x fsdp 4 x tensor 1 does not fit 8 devices"),
    (
        ["parallel.data=8", "parallel.zero=1"],
        "parallel.zero",
        "stage 1 splits the state over parallel.fsdp, which is 1 on 8 devices",
    ),
    (["training.batch_size=12"], "training.batch_size", "12 sequences can't be split evenly over"),
    (
        ["training.microbatches=8", "training.batch_schedule=[[5, 72]]"],
        "training.batch_size",
        "over 8 devices x 8 microbatches",
    ),
    (
        ["evaluation.batch_size=12"],
        "evaluation.batch_size",
        "12 sequences can't be split evenly over 8 devices",
    ),
    (
        [*ELECTRA, "parallel.zero=3", "model.embedding_width=36"],
        "parallel.fsdp",
        "8 divides some of the widths of model, generator and embeddings (768, 192, 36)",
    ),
    ([*SPANS, "data.sequence_length=2"], "data.sequence_length", "2 is too short for one span"),
    (
        [
            *SPANS,
            "objective.noise_share=0.7",
            "objective.mean_span=50",
            "data.sequence_length=1000",
        ],
        "model.context_length",
        "1024 rows of learned positions, but a target of objective.kind='span' has",
    ),
]


def check(edits, devices=8, first_step=0, platform="tpu", capability=0.0):
    """Refuse what can't be trained on such devices."""
    run = config.apply_edits(Config(), edits)
    run_checks.check_trainable(run)
    run_checks.check_sample(run)
    run_checks.check_mesh(run, devices, first_step)
    run_checks.check_formats(run, platform, capability)


@pytest.mark.parametrize(
    ("edits", "key", "reason"), REFUSED, ids=[" ".join(edits) for edits, *_ in REFUSED]
)
def test_what_can_not_be_trained_is_refused(edits, key, reason):
    with pytest.raises(ConfigError) as caught:
        check(edits)
    assert caught.value.path == key and reason in caught.value.reason


def test_every_refusal_is_among_them():
    reached = set()
    for edits, *_ in REFUSED:
        with pytest.raises(ConfigError) as caught:
            check(edits)
        trace = caught.value.__traceback__
        while trace is not None:
            reached.add((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next

    for module in (run_checks, mesh):
        file = inspect.getfile(module)
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.Raise):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                assert any((file, line) in reached for line in lines), f"{file}:{node.lineno}"


@pytest.mark.parametrize(
    "edits",
    [
        ["parallel.data=2", "parallel.zero=3"],
        ["parallel.tensor=4", "parallel.zero=1"],
        [*ELECTRA, "parallel.zero=2", "model.embedding_width=36"],
        ["training.batch_size=64", "training.microbatches=8", "evaluation.batch_size=16"],
        [*SPANS, "data.sequence_length=512"],
    ],
    ids=" ".join,
)
def test_what_can_be_trained_passes(edits):
    check(edits)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm"])
def test_float16_is_trained_on_cpus_and_gpus(platform):
    check(["precision.compute=float16"], platform=platform)


def test_float8_needs_a_gpu_that_multiplies_in_it():
    """CPUs, which emulate it, excepted."""
    check(["precision.matmul=float8"], platform="cpu")
    for capability in (8.9, 9.0, 10.0):
        check(["precision.matmul=float8"], platform="cuda", capability=capability)
    with pytest.raises(ConfigError, match=r"^precision.matmul: .*, got a GPU of 8.0; leave it out"):
        check(["precision.matmul=float8"], platform="cuda", capability=8.0)


def test_batches_of_steps_that_are_done_need_not_fit():
    edits = ["training.batch_size=12", "training.batch_schedule=[[5, 16]]"]
    check(edits, first_step=5)
    with pytest.raises(ConfigError, match=r"^training.batch_size: 12 sequences"):
        check(edits, first_step=4)
