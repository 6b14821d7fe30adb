"""Templates are programs of strangers: none gets out of the sandbox, hangs or fills the memory."""

import os
import subprocess
import sys
import threading
import time

import pytest

from jaxlm.chat import Message, load_template, rendering
from jaxlm.chat.template import ChatTemplate
from jaxlm.config import UserError

pytest.importorskip("jinja2")

TALK = [Message("user", "a"), Message("assistant", "b")]
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ messages[0]['__class__'].__init__ }}{{ ''['__class__'] }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ ['']|map(attribute='__class__')|list }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ '{0.__nothing__}'.format('') }}",
    "{% if ''.__class__ %}{% endif %}",
    "{% if ''.__class__ is defined %}{% endif %}",
    "{% if messages is none %}{{ ''.__class__ }}{% endif %}",
    "{% set name = '__cl' ~ 'ass__' %}{{ messages[name] }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__func__ }}",
    "{% for x in (messages|map('upper')).gi_frame %}{% endfor %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages.clear() }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ dict.mro() }}",
    "{{ range.__self__ }}",
]
DOUBLING = (
    "{% set s = namespace(x='ab') %}{% for i in range(99) %}{% set s.x = s.x ~ s.x %}{% endfor %}"
)
FAILING = {  # what a user reads of it
    "{% include '/etc/passwd' %}": "no loader",
    "{% import 'os' as os %}": "no loader",
    "{% extends 'x' %}": "no loader",
    "{{ 'a' * 10**9 }}": "takes more than 512 MiB of memory",
    "{{ 'a'.center(10**10) }}": "takes more than 512 MiB of memory",
    "{{ '%2000000000d' % 1 }}": "takes more than 512 MiB of memory",
    "{{ ('a' * 10**5).replace('', 'b' * 10**5) }}": "takes more than 512 MiB of memory",
    DOUBLING: "takes more than 512 MiB of memory",
    "{% for i in range(9999) %}{{ 'a' * 99999 }}{% endfor %}": "takes more than 512 MiB of memory",
    "{{ range(10**9) }}": "Range too big",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "calls itself without end",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "calls itself without end",
    "{% if %}": "Expected an expression",
    "{% for m in messages %}": "Unexpected end of template",
    "{{ 1 / 0 }}": "ZeroDivisionError",
    "{{ nothing.at.all }}": "'nothing' is undefined",
    "{{ messages[0].content + 1 }}": "TypeError",
    "{{ '\\ud800' }}": "half of a surrogate pair",
    "{{ raise_exception('no\n  way') }}": "refuses the conversation: no way",
    "{{ raise_exception('x' * 9999) }}": "xxx ...",
}


def render(source, messages=TALK):
    template = ChatTemplate("t.jinja", source, ())
    template.check()
    return template.render(messages).text


@pytest.mark.parametrize("source", ESCAPES)
def test_what_reaches_outside_is_refused(source):
    with pytest.raises(UserError, match=r"^t\.jinja(:1)?: .*") as caught:
        render(source)
    reason = str(caught.value)
    assert "\n" not in reason and len(reason) < 300
    assert "reaches outside the sandbox: " in reason or "no attribute" in reason


@pytest.mark.parametrize("source", FAILING, ids=lambda source: source[:40])
def test_what_fails_is_told_in_one_line(source):
    with pytest.raises(UserError, match=r"^t\.jinja(:\d)?: ") as caught:
        render(source)
    reason = str(caught.value)
    assert FAILING[source] in reason and "\n" not in reason and len(reason) < 300


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        pytest.param("{{ 10 ** (10 ** 9) }}", marks=pytest.mark.slow),
    ],
)
def test_what_never_ends_is_ended(source, monkeypatch):
    monkeypatch.setattr(rendering, "CPU_SECONDS", 1)
    with pytest.raises(UserError, match=r"^t.jinja: takes more than 1 s to render a conversation$"):
        render(source)
    assert render("{{ messages[0].content }}") == "a"  # the next one finds a process again


def test_features_of_transformers_are_there(monkeypatch):
    """Their results are compared in test_against_transformers; these are those of no template."""
    assert render("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}") == (
        "x\nx\n"
    )
    assert render("{{ {'a': '<&ö>'} | tojson }}") == '{"a": "<&ö>"}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == (
        '{\n "a": 2,\n "b": 1\n}'
    )
    assert render("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}") == "a"
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")
    assert render("{{ tools is none and documents is none }}") == "True"
    assert render("{{ add_generation_prompt }}") == "False"
    assert render("{% set ns = namespace(n=0) %}{% set ns.n = 5 %}{{ ns.n }}") == "5"
    assert render("{{ bos_token is defined }}") == "False"


def test_threads_take_turns():
    template, texts = load_template("plain", tokens={"eos_token": "$"}), {}

    def talk(number):
        for _ in range(20):
            message = [Message("user", f"{number}" * 5000), Message("assistant", f"{number}")]
            texts.setdefault(number, set()).add(template.render(message).text)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert texts[number] == {f"User: {f'{number}' * 5000}\nAssistant: {number}$"}


def test_a_forked_process_has_a_process_of_its_own():
    program = """
import os
from jaxlm.chat import Message, load_template
template = load_template("plain", tokens={"eos_token": "$"})
talk = [Message("user", "a"), Message("assistant", "b")]
template.render(talk)
child = os.fork()
talk[0] = Message("user", "of the child" if child else "of the parent")
for _ in range(50):
    assert template.render(talk).text == f"User: {talk[0].content}\\nAssistant: b$"
if child:
    assert os.waitpid(child, 0)[1] == 0
    print("both")
else:
    os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("both\n", "", 0)


def test_a_missing_jinja2_is_told(monkeypatch):
    answer = [{"error": "missing", "reason": "is not installed", "line": None}]
    monkeypatch.setattr(rendering.TEMPLATE_PROCESS, "ask", lambda request: answer)
    with pytest.raises(UserError, match=r'jinja2, which is not installed: pip .* "jaxlm\[chat\]"$'):
        load_template("chatml")


def test_a_process_that_is_killed_is_told_and_replaced():
    assert render("x") == "x"
    process = rendering.TEMPLATE_PROCESS.process
    os.kill(process.pid, 9)
    process.wait()
    with pytest.raises(UserError, match=r"^t.jinja: ends the process that renders it \(SIGKILL\)$"):
        render("x")
    assert render("x") == "x"
