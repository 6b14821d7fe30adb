"""Render conversations by a template, in the process of `sandbox.py`."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.chat import sandbox
from jaxlm.config import UserError

CPU_SECONDS = 5  # of the rendering of a conversation


class TemplateRefusal(UserError):
    """A conversation that a template refuses, by its `raise_exception`."""


class RenderedText(NamedTuple):
    """A conversation as text."""

    text: str
    # Start and end of the {% generation %} blocks in it; None where these are not known
    blocks: tuple[tuple[int, int], ...] | None


class RenderingJob(NamedTuple):
    """A conversation to be rendered."""

    messages: Sequence[Mapping[str, Any]]
    generation_prompt: bool


class TemplateProcess:
    """The process that renders templates. It is started when it is needed, and again if it ended.

    A process that was forked from this one starts its own.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.process: subprocess.Popen | None = None
        self.owner = 0  # the process that started it

    def ask(self, request: dict[str, Any]) -> list[dict[str, Any]] | int:
        """Return the answer to a request, or the exit code of a process that ended without one."""
        line = json.dumps(request).encode() + b"\n"
        with self.lock:
            process = self.running_process()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = b""

            if answer.endswith(b"\n"):
                return json.loads(answer)
            self.process = None
            process.stdout.close()
            return process.wait()

    def running_process(self) -> subprocess.Popen:
        """Return the process, started if there is none."""
        if self.process is not None and self.owner == os.getpid():
            return self.process
        # A group of its own: Ctrl-C on the terminal is no business of it.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(sandbox.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            process_group=0,
        )
        self.owner = os.getpid()
        return self.process

    def stop(self) -> None:
        """End the process, if this one started it."""
        process = self.process
        if process is None or self.owner != os.getpid():
            return
        self.process = None
        process.kill()
        process.communicate()


TEMPLATE_PROCESS = TemplateProcess()
atexit.register(TEMPLATE_PROCESS.stop)


def render_jobs(
    name: str, template: str, variables: Mapping[str, str], jobs: Sequence[RenderingJob]
) -> list[RenderedText | UserError]:
    """Return each conversation as text, or what is wrong with it.

    `name` is that of the template in messages, its file for instance.
    """
    request = {
        "template": template,
        "variables": {**variables},
        "jobs": jobs,
        "seconds": CPU_SECONDS,
    }
    answers = TEMPLATE_PROCESS.ask(request)
    if isinstance(answers, int):
        raise UserError(f"{name}: {describe_end(answers)}")
    if answers and answers[0].get("error") == sandbox.MISSING:
        reason = f"chat templates need jinja2, which {answers[0]['reason']}"
        raise UserError(f'{reason}: pip install "jaxlm[chat]"')
    if len(answers) < len(jobs) or not jobs:  # the template itself can't be read
        for answer in answers:
            raise read_error(name, answer)

    results: list[RenderedText | UserError] = []
    for answer in answers:
        if "error" in answer:
            results.append(read_error(name, answer))
            continue
        blocks = tuple((start, end) for start, end in answer["blocks"])
        results.append(RenderedText(answer["text"], blocks if answer["placed"] else None))
    return results


def read_error(name: str, answer: Mapping[str, Any]) -> UserError:
    """Return the error of an answer, with the template's name and line."""
    place = name if answer["line"] is None else f"{name}:{answer['line']}"
    if answer["error"] == sandbox.REFUSAL:
        return TemplateRefusal(f"{place}: refuses the conversation: {answer['reason']}")
    return UserError(f"{place}: {answer['reason']}")


def describe_end(code: int) -> str:
    """Return why a rendering ended its process."""
    if -code == signal.SIGXCPU:
        return f"takes more than {CPU_SECONDS} s to render a conversation"
    if code < 0:
        return f"ends the process that renders it ({signal.Signals(-code).name})"
    return f"ends the process that renders it (exit code {code})"
