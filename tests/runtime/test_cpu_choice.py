"""The measurement of a CPU: what is chosen, when it is measured, and where it is kept."""

import json
from dataclasses import replace

import pytest

from jaxlm.config import Config, PrecisionConfig, RuntimeConfig
from jaxlm.runtime import cpu_choice
from jaxlm.runtime.cpu_choice import CpuChoice, choose, measure, settle_cpu

PLAIN, TWO = CpuChoice("float32", 1), CpuChoice("float32", 2)
ROUNDED = CpuChoice("bfloat16", 1)
ASKING = Config(
    precision=PrecisionConfig(compute="float32"),
    runtime=RuntimeConfig(platform="cpu", measure_cpu=True),
)
SETTLED = replace(ASKING, runtime=replace(ASKING.runtime, measure_cpu=False))


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Measurements by a table in place of processes; the list of what was measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_choice, "candidates", lambda: [PLAIN, TWO, ROUNDED])
    calls = []

    def look_up(choice):
        calls.append(choice)
        return {PLAIN: 0.2, TWO: 0.3, ROUNDED: 0.1}[choice]

    monkeypatch.setattr(cpu_choice, "measure", look_up)
    return calls


def test_the_fastest_way_is_chosen_and_of_equal_ones_the_first():
    assert choose({PLAIN: 0.2, TWO: 0.3, ROUNDED: 0.1}) == ROUNDED
    assert choose({PLAIN: 0.2, TWO: 0.198}) == PLAIN  # 1% may be chance
    assert choose({PLAIN: None, TWO: 0.3}) == TWO  # the first failed
    assert choose({PLAIN: None}) is None


def test_a_machine_is_measured_once(measured, tmp_path, capsys):
    settled = settle_cpu(ASKING)
    assert settled.precision.compute == "bfloat16"
    expected = replace(SETTLED.runtime, devices=1)
    assert settled == replace(SETTLED, precision=settled.precision, runtime=expected)
    assert measured == [PLAIN, TWO, ROUNDED]
    shown = capsys.readouterr().out
    assert "CPU: bfloat16 on 1 device, the fastest of 3 ways to train here" in shown

    assert settle_cpu(ASKING) == settled
    assert len(measured) == 3

    (file,) = (tmp_path / "cache" / "jaxlm").glob("cpu-*.json")
    file.write_text(json.dumps([{"choice": {"compute": "float32"}}]))  # of another version
    assert settle_cpu(ASKING) == settled
    assert len(measured) == 6


@pytest.mark.parametrize(
    ("devices", "compute", "described"),
    [(2, "float32", "the fastest of 1 ways"), (8, "bfloat16", "the fastest of 3 ways")],
)
def test_devices_that_were_asked_for_stay(measured, devices, compute, described, capsys):
    """With as many that were not measured, the precision is that of the fastest way."""
    settled = settle_cpu(replace(ASKING, runtime=replace(ASKING.runtime, devices=devices)))
    assert (settled.runtime.devices, settled.precision.compute) == (devices, compute)
    assert described in capsys.readouterr().out


def test_other_runs_keep_what_their_config_says(measured, monkeypatch):
    assert settle_cpu(SETTLED) == SETTLED
    for runtime in (
        replace(ASKING.runtime, platform="cuda"),
        replace(ASKING.runtime, processes=2, process=0, coordinator="localhost:1234"),
    ):
        config = replace(ASKING, runtime=runtime)
        assert settle_cpu(config) == replace(config, runtime=replace(runtime, measure_cpu=False))
    assert measured == []


def test_where_nothing_can_be_measured_a_warning_says_so(measured, monkeypatch, capsys):
    monkeypatch.setattr(cpu_choice, "measure", lambda choice: None)
    assert settle_cpu(ASKING) == SETTLED
    assert "warning: the CPU could not be measured" in capsys.readouterr().out
    assert cpu_choice.read_measurement() is None  # next time it may work


def test_a_flag_that_xla_does_not_know_is_no_way_to_train(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=true")
    assert measure(PLAIN) is None


@pytest.mark.slow
def test_a_way_to_train_is_measured_in_a_process_of_its_own():
    seconds = measure(TWO)
    assert seconds is not None and 0.01 < seconds < 30
