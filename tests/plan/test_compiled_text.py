"""What is read from the text of a compiled program."""

import pytest
from support.compiled_programs import OVERLAP

from jaxlm.plan.compiled_text import CompiledText, groups_of


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_runs():
    (gather,) = CompiledText(OVERLAP).collectives()
    assert (gather.kind, gather.group, gather.loops, gather.times) == ("all-gather", 8, (4,), 4)
    assert gather.bytes == 2 * 8 * 16777216  # whole, in bfloat16


def test_products_in_a_loop_count_as_often_as_the_loop_runs():
    assert CompiledText(OVERLAP).products() == 4 * 2 * 8192 * 4096 * 4096


def test_the_trips_of_a_loop_are_read_from_its_condition_where_it_does_not_say():
    """As of loops whose first turn is moved out: they count from 1."""
    text = OVERLAP.replace('backend_config={"known_trip_count":{"n":"4"}}', "metadata={}")
    assert CompiledText(text).collectives()[0].times == 4
    text = text.replace("%start = s32[] constant(0)", "%start = s32[] constant(1)")
    assert CompiledText(text).collectives()[0].times == 3


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}, x=1", [[0, 1], [2, 3]]),
        ("[2,2]<=[4], x=1", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}, x=1", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}, x=1", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'a', 'b'}", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_devices_in_every_form(text, groups):
    assert groups_of(f"channel_id=1, replica_groups={text}") == groups


def test_unknown_groups_are_an_error():
    with pytest.raises(ValueError, match="unknown groups of devices"):
        groups_of("channel_id=1")
