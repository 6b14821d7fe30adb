"""Bytes of the state: the figures of papers, and closed forms."""

import pytest

from jaxlm import hardware
from jaxlm.plan.memory_report import format_state, format_table, gigabytes, state_document
from jaxlm.plan.state_bytes import (
    STAGES,
    BytesPerParameter,
    activations_of,
    largest_model,
    state_of,
    usual_shape,
)

MIXED = BytesPerParameter(2, 2, 12)


def test_the_example_of_the_zero_paper_is_met_to_the_printed_digit():
    """Figure 1 of arXiv 1910.02054: 7.5B parameters, 64 GPUs, mixed-precision Adam."""
    totals = [gigabytes(state_of(7.5e9, 64, zero, MIXED).total) for zero in STAGES]
    assert totals == ["120", "31.4", "16.6", "1.9"]


def test_a_billion_parameters():
    """The usual figures: 16 GB with Adam in float32, and 24 GB with room for activations."""
    h100 = hardware.parse_cluster("h100")
    document = state_document(1e9, h100, 0, BytesPerParameter())
    assert document["weights"] == {
        "float32": 4e9,
        "bfloat16": 2e9,
        "float16": 2e9,
        "int8": 1e9,
    }
    assert (document["parameters"], document["gradients"], document["optimizer"]) == (4e9, 4e9, 8e9)
    assert document["total"] == 16e9 and document["with_allowance"] == 24e9
    assert document["fits"]

    # At a long context the activations of one sequence are what fills 80 GB.
    totals = {c["length"]: document["total"] + c["flash"] for c in document["contexts"]}
    assert totals[2048] < 24e9 < 80e9 < totals[32_768]


def test_a_stage_splits_its_part_of_the_state_and_all_before_it():
    for gpus in (2, 8, 512):
        whole, *stages = [state_of(1e9, gpus, zero, MIXED) for zero in STAGES]
        assert [s.optimizer for s in stages] == 3 * [round(whole.optimizer / gpus)]
        assert [s.gradients for s in stages] == [
            whole.gradients,
            *2 * [round(whole.gradients / gpus)],
        ]
        assert [s.parameters for s in stages] == [
            *2 * [whole.parameters],
            round(whole.parameters / gpus),
        ]


@pytest.mark.parametrize("zero", STAGES)
def test_the_largest_model_fills_the_memory(zero):
    parameters = largest_model(64 * 10**9, 8, zero, MIXED)
    assert state_of(parameters, 8, zero, MIXED).total == pytest.approx(64e9, rel=1e-9)


def test_replication_ends_where_zhao_et_al_saw_it_end():
    """DDP ran T5 with 611M and 2.28B parameters on A100 of 80 GB and not 11B; FSDP ran all three.

    PyTorch FSDP, arXiv 2304.11277, section 5.2. Adam in float32.
    """
    a100, each = hardware.usable_memory(hardware.find_accelerator("a100")), BytesPerParameter()
    replicated = [state_of(size, 8, 0, each).total <= a100 for size in (0.61e9, 2.28e9, 11e9)]
    sharded = [state_of(size, 8, 3, each).total <= a100 for size in (0.61e9, 2.28e9, 11e9)]
    assert replicated == [True, True, False] and all(sharded)


def test_activations_are_those_of_korthikanti_et_al():
    """arXiv 2205.05198, section 4.1: 34 s b h of a layer with dropout's masks, 2 s b h of it."""
    shape, length = usual_shape(6.7e9), 2048
    sequence = activations_of(shape, length, item_bytes=2)
    tokens_by_width = shape.layers * length * shape.width
    assert sequence.flash == 32 * tokens_by_width and sequence.recomputed == 2 * tokens_by_width
    assert activations_of(shape, 2 * length, 2).scores == 4 * sequence.scores


@pytest.mark.parametrize("parameters", [0.1e9, 1e9, 7e9, 70e9, 175e9])
def test_the_usual_shape_has_the_parameters(parameters):
    shape = usual_shape(parameters)
    assert 12 * shape.layers * shape.width**2 == pytest.approx(parameters, rel=0.07)
    assert 0.8 < shape.width / (128 * shape.layers) < 1.3


def test_the_report_marks_what_does_not_fit():
    report = format_state(7.5e9, hardware.parse_cluster("a100:8x8"), 1, MIXED)
    row = next(line for line in report.splitlines() if line.startswith("7.5B"))
    assert row.split() == ["7.5B", "120*", "31.4", "16.6", "1.9"]


def test_columns_of_numbers_end_together():
    table = format_table([("", "GB", "for"), ("a", "1.5", "x"), ("b", "120", "yy")])
    assert table.splitlines() == ["    GB  for", "a  1.5  x", "b  120  yy"]
