"""What a step sends between devices: by hand, and the weights of all families.

`tests/sharding/test_collectives.py` compares it with traced steps.
"""

from dataclasses import replace
from pathlib import Path

import jax
import pytest
from support import tiny

from jaxlm import communication, models
from jaxlm.communication import Transfer
from jaxlm.config import ClassifierConfig, ModelConfig, PrecisionConfig, load

LLAMA_7B = load(Path(__file__).parent.parent / "configs" / "llama2_7b.py").model
LAYER, TABLE = 4 * 4096**2 + 3 * 4096 * 11008, 32000 * 4096
BFLOAT16 = PrecisionConfig(compute="bfloat16", gradients="bfloat16")


def test_zero_3_by_hand():
    """Llama 2 7B, two microbatches on 64 GPUs: 3 P as ZeRO says, less a gather of the tables."""
    transfers = communication.step_transfers(
        LLAMA_7B, PrecisionConfig(), zero=3, fsdp=64, microbatches=2
    )
    assert sorted(transfers) == sorted(
        [
            Transfer("all-gather", "bfloat16", LAYER, 64, 2 * 2 * 32, 32),
            Transfer("reduce-scatter", "float32", LAYER, 64, 2 * 32, 32),
            *2 * [Transfer("all-gather", "bfloat16", TABLE, 64, 2, 0)],
            *2 * [Transfer("reduce-scatter", "float32", TABLE, 64, 2, 0)],
        ]
    )
    parameters = 32 * LAYER + 2 * TABLE
    assert parameters == 6_738_415_616 - 65 * 4096  # the published number, without norms
    gathered = sum(t.bytes for t in transfers if t.kind == "all-gather")
    scattered = sum(t.bytes for t in transfers if t.kind == "reduce-scatter")
    assert gathered == 2 * 2 * (2 * parameters - 2 * TABLE) and scattered == 2 * 4 * parameters


@pytest.mark.parametrize(
    ("zero", "kinds"),
    [
        (0, {"all-reduce": (4, 1)}),
        (1, {"reduce-scatter": (4, 1), "all-gather": (4, 1)}),
        (2, {"reduce-scatter": (4, 3), "all-gather": (4, 1)}),
    ],
)
def test_the_lower_stages_by_hand(zero, kinds):
    transfers = communication.step_transfers(
        LLAMA_7B, PrecisionConfig(), zero=zero, fsdp=8, microbatches=3
    )
    totals = dict.fromkeys((t.kind for t in transfers), 0)
    for transfer in transfers:
        totals[transfer.kind] += transfer.bytes
    parameters = 32 * LAYER + 2 * TABLE
    assert totals == {kind: size * times * parameters for kind, (size, times) in kinds.items()}


def test_replicas_sum_parts_of_the_gradients():
    transfers = communication.step_transfers(LLAMA_7B, BFLOAT16, zero=3, fsdp=8, data=4)
    summed = [t for t in transfers if t.kind == "all-reduce"]
    assert {(t.dtype, t.devices, t.times) for t in summed} == {("bfloat16", 4, 1)}
    assert sum(t.elements for t in summed) * 8 == 32 * LAYER + 2 * TABLE
    # A width that fsdp doesn't divide stays whole.
    odd = communication.step_transfers(LLAMA_7B, BFLOAT16, zero=3, fsdp=3)
    assert {(t.kind, t.devices, t.times) for t in odd} == {("all-reduce", 3, 1)}
    assert communication.step_transfers(LLAMA_7B, BFLOAT16, zero=0, fsdp=1) == []


def test_bytes_that_a_device_sends_in_a_ring():
    """In n - 1 rounds, 1/n of the arrays each: 8 MB gathered by 8 devices are 7 MB from each."""
    gather = Transfer("all-gather", "bfloat16", 4_000_000, 8, 3, 0)
    assert (gather.bytes, gather.sent_bytes) == (24_000_000, 21_000_000)
    assert gather._replace(kind="all-reduce").sent_bytes == 42_000_000


def test_bytes_of_a_layer():
    assert communication.layer_bytes(LLAMA_7B, PrecisionConfig(), 64) == (
        2 * LAYER,
        4 * LAYER // 64,
    )


# Other families

SHARED = {"vocabulary_size": 384, "width": 64, "heads": 4, "layers": 3, "context_length": 32}
MODELS = {
    "tied": ModelConfig(**SHARED, kv_heads=2, position_offset=2),
    "narrow table": ModelConfig(**SHARED, embedding_width=32, tied_head=False),
    "bert": replace(tiny.ENCODER.model, vocabulary_size=384),
    "t5": replace(tiny.ENCODER_DECODER.model, vocabulary_size=384),
    "bart": ModelConfig(**SHARED, family="encoder_decoder", encoder_layers=2),
    "two tables": ModelConfig(**SHARED, family="encoder_decoder", shared_embedding=False),
    "electra": ModelConfig(
        **SHARED,
        family="encoder",
        generator_share=0.5,
        embedding_width=32,
        head_transform=True,
        token_types=2,
    ),
}


MODELS |= {
    f"{name}, labels of {kind}s": replace(
        MODELS[name], classifier=ClassifierConfig(kind=kind, labels=("a", "b"))
    )
    for name in ("narrow table", "bert", "t5", "two tables", "electra")
    for kind in ("sequence", "token")
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_all_families_are_the_matrices_of_their_parameters(name):
    model = models.build(MODELS[name])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found = 0
    for shape, axes in zip(
        jax.tree.leaves(shapes),
        jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple)),
        strict=True,
    ):
        found += shape.size if {"embed", "token_embed"} & set(axes) else 0
    assert sum(w.total for w in communication.model_weights(MODELS[name])) == found
