"""Signals that stop a run: the step is finished and saved first."""

import os
import signal
import threading

import pytest
from support.programs import words

from jaxlm import runtime
from jaxlm.runtime.stop import PeerStop


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_only_noted(name):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with runtime.StopSignal() as stop:
        assert stop.requested is None and not stop.reached()
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.requested == name and stop.reached()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_interrupts():
    program = """
    import os, signal
    from jaxlm.runtime import StopSignal
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        print(stop.requested)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """
    assert words(program) == ["SIGINT", "interrupted", "True"]


def test_a_second_sigterm_is_not_an_interrupt():
    with runtime.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def enter():
        with runtime.StopSignal() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(None, signal.getsignal(signal.SIGTERM))]


def test_among_several_processes_ctrl_c_is_a_sigterm_once(monkeypatch):
    # jax's runtime handles the SIGTERM, so that all processes stop after the same step.
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    before = signal.getsignal(signal.SIGINT)
    with PeerStop():
        signal.raise_signal(signal.SIGINT)
        assert sent == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is before
