"""The ratios that the comparison prints, from lines as its processes write them."""

import pytest
from peers import report
from peers.shapes import BFLOAT16, FLOAT32, Arm

ARMS = (
    Arm("ours", "jaxlm", FLOAT32),
    Arm("our bf16", "jaxlm", BFLOAT16),
    Arm("our choice", "jaxlm", None),
    Arm("theirs", "torch", FLOAT32),
    Arm("theirs, compiled", "torch", FLOAT32, compiled=True),
)
SPEEDS = {  # tokens/s in each round; None: it failed
    "ours": (100, 120),
    "our bf16": (200, 220),
    "our choice": (300, None),
    "theirs": (40, 80),
    "theirs, compiled": (50, 60),
}


@pytest.fixture
def lines() -> list[report.Line]:
    """The lines of two rounds; in the second one arm fails."""
    return [
        {"arm": name, "round": number, "status": "out of memory"}
        if speed is None
        else {
            "arm": name,
            "round": number,
            "status": "ok",
            "tokens_per_second": speed,
            "median_ms": 1e6 / speed,
            "batch_size": 4,
            "tokens_per_step": 1000,
            "flops_per_step": 10**12,
        }
        for name, speeds in SPEEDS.items()
        for number, speed in enumerate(speeds, 1)
    ]


def test_the_fastest_arms_are_compared(lines):
    """By the median over the rounds: 110 to 60 in float32, 300 to 60 in any precision."""
    in_float32, in_any = report.ratios("gpt", lines, ARMS)
    assert (in_float32["jaxlm"], in_float32["torch"]) == ("ours", "theirs")
    assert in_float32["ratio"] == pytest.approx(110 / 60, abs=1e-3)
    assert in_float32["rounds"] == [2.5, 1.5]
    assert (in_any["jaxlm"], in_any["ratio"], in_any["rounds"]) == ("our choice", 5.0, [7.5])


def test_the_table_shows_what_failed_and_how_much_faster_jaxlm_is(lines):
    rows = report.format_table(lines, ARMS, rounds=2).splitlines()
    by_arm = {row[: len("theirs, compiled")].strip(): row for row in rows}
    assert by_arm["our choice"].split()[-6:-3] == ["out", "of", "memory"]
    assert by_arm["theirs, compiled"].endswith("2.00")  # 110 / 55
    assert report.format_table([], ARMS, rounds=1).count("-") == 5 * len(ARMS)
