"""Render chat templates in a process of its own, whose time and memory are bounded.

Templates come with models, and are programs. jinja2's sandbox keeps them from Python's internals;
the limits of this process end those that never finish or fill the memory. `rendering.py` runs this
file and sends it a request on each line, as JSON:

    {"template": TEXT, "variables": {NAME: VALUE}, "jobs": [[messages, generation_prompt], ...],
     "seconds": CPU seconds for each job}

The answer is a line with a list. For each job it has {"text", "blocks", "placed"}, or {"error",
"reason", "line"}. Imports nothing but the standard library, and jinja2 where it is used.
"""

import datetime
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

MEMORY_BYTES = 512 << 20  # of the process
MOST_CHARACTERS = 1 << 26  # of a rendered text
MOST_REASON = 200  # characters
CACHED_TEMPLATES = 8
# Earlier ones let templates out of the sandbox.
LEAST_VERSION = (3, 1, 6)

TOO_LARGE = f"takes more than {MEMORY_BYTES >> 20} MiB of memory"
FAULT, REFUSAL, MISSING = "fault", "refusal", "missing"  # the values of "error"


def main() -> None:
    limit_memory()
    answers = answer_requests()
    for line in sys.stdin.buffer:
        try:
            answer = json.dumps(answers(line))
        except MemoryError:
            answer = json.dumps([{"error": FAULT, "reason": TOO_LARGE, "line": None}])
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def limit_memory() -> None:
    """Bound the memory of this process, and let it leave no core file."""
    try:
        import resource
    except ImportError:  # Windows
        return

    for limit, value in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(limit, (value, hard))
        except (OSError, ValueError):  # macOS has no bound of the address space
            continue


def limit_time(seconds: int) -> None:
    """Let the system end this process once it has computed for so many seconds from now on."""
    try:
        import resource
    except ImportError:
        return

    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = math.ceil(time.process_time()) + seconds
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def answer_requests() -> Callable[[bytes], list[dict[str, Any]]]:
    """Return the function that answers a request."""
    try:
        version = importlib.metadata.version("jinja2")
        import jinja2.nodes
    except ImportError:
        return lambda line: [{"error": MISSING, "reason": "is not installed", "line": None}]
    numbers = [int(part) for part in version.split(".")[:3] if part.isdigit()]
    if tuple(numbers) < LEAST_VERSION:
        reason = f"is {version}; {'.'.join(map(str, LEAST_VERSION))} is needed"
        return lambda line: [{"error": MISSING, "reason": reason, "line": None}]

    environment = build_environment()
    compiled: dict[str, Any] = {}

    def answer(line: bytes) -> list[dict[str, Any]]:
        try:
            request = json.loads(line)
            limit_time(request["seconds"])
            environment.now = datetime.datetime.now()
            template = compiled.get(request["template"])
            if template is None:
                check_names(environment.parse(request["template"]), jinja2)
                template = environment.from_string(request["template"])
                if len(compiled) >= CACHED_TEMPLATES:
                    compiled.clear()
                compiled[request["template"]] = template
        except Exception as error:
            return [describe_error(error, jinja2)]

        results = []
        for messages, generation_prompt in request["jobs"]:
            limit_time(request["seconds"])
            values = request["variables"] | {
                "messages": messages,
                "add_generation_prompt": generation_prompt,
                "tools": None,
                "documents": None,
            }
            try:
                results.append(render_template(template, environment, values))
            except Exception as error:
                results.append(describe_error(error, jinja2))
        return results

    return answer


def check_names(tree: Any, jinja2: Any) -> None:
    """Refuse a template that spells an attribute which Python itself reads, in whatever branch."""
    for node in tree.find_all((jinja2.nodes.Getattr, jinja2.nodes.Getitem)):
        name = getattr(node, "attr", None)
        if name is None and isinstance(node.arg, jinja2.nodes.Const):
            name = node.arg.value
        if isinstance(name, str) and name.startswith("__"):
            error = jinja2.exceptions.SecurityError(f"attribute {name!r}")
            error.lineno = node.lineno
            raise error


def render_template(template: Any, environment: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return the text and the stretches of its {% generation %} blocks.

    "placed" is false where a block was rendered to somewhere else than the end of the text, in a
    macro for instance. Then its place is not known.
    """
    environment.written, environment.generated = 0, []
    pieces = []
    for piece in template.generate(**values):
        pieces.append(piece)
        environment.written += len(piece)
        if environment.written > MOST_CHARACTERS:
            raise MemoryError

    text = "".join(pieces)
    text.encode()  # half of a surrogate pair is no text
    blocks = [(start, start + len(block)) for start, block in environment.generated]
    placed = all(text.startswith(block, start) for start, block in environment.generated)
    return {"text": text, "blocks": blocks, "placed": placed}


def describe_error(error: Exception, jinja2: Any) -> dict[str, Any]:
    """Return an error as an answer: whose fault it is, a reason, and the template's line."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next

    message = " ".join(str(error).split())
    message = message if len(message) <= MOST_REASON else f"{message[:MOST_REASON]} ..."
    is_refusal = getattr(error, "is_refusal", False)
    if isinstance(error, MemoryError):
        reason = TOO_LARGE
    elif isinstance(error, RecursionError):
        reason = "calls itself without end, or is nested too deeply"
    elif isinstance(error, UnicodeEncodeError):
        reason = "writes half of a surrogate pair, which is not Unicode text"
    elif isinstance(error, jinja2.exceptions.SecurityError):
        reason = f"reaches outside the sandbox: {message}"
    elif isinstance(error, (jinja2.exceptions.TemplateError, OverflowError)):
        reason = message or type(error).__name__
    else:
        reason = f"{type(error).__name__}: {message}"
    return {"error": REFUSAL if is_refusal else FAULT, "reason": reason, "line": line}


def build_environment() -> Any:
    """Return the environment in which `transformers` renders templates, but that it is stricter.

    There an attribute that is not safe is undefined, which an `if` may hide. Here it is refused.
    """
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class TemplateEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
        written = 0  # characters of the text so far
        generated: list[tuple[int, str]] = []  # noqa: RUF012 (replaced for each text)
        now = datetime.datetime.now()  # the same in all texts of a request, which are compared

        def getattr(self, obj: Any, attribute: str) -> Any:
            check_name(attribute, type(obj).__name__)
            return super().getattr(obj, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            check_name(argument, type(obj).__name__)
            return super().getitem(obj, argument)

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise_unsafe(attribute, type(obj).__name__)

    class GenerationBlocks(jinja2.ext.Extension):
        """The tag {% generation %} around what a model is to learn."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 asks for it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("note_block")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def note_block(self, caller: Callable[[], str]) -> str:
            block = caller()
            environment.generated.append((environment.written, block))
            return block

    class Refusal(jinja2.exceptions.TemplateError):
        is_refusal = True

    class TemplateNamespace(jinja2.utils.Namespace):
        """A namespace without the attributes that Python itself reads."""

        def __init__(*args: Any, **values: Any) -> None:
            self, others = args[0], args[1:]
            names = dict(*others, **values)
            for name in names:
                check_name(name, "namespace")
            jinja2.utils.Namespace.__init__(self, names)

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name, "namespace")
            super().__setitem__(name, value)

    def check_name(name: Any, kind: str) -> None:
        if isinstance(name, str) and name.startswith("__"):
            raise_unsafe(name, kind)

    def raise_unsafe(name: str, kind: str) -> NoReturn:
        raise jinja2.exceptions.SecurityError(f"attribute {name!r} of {kind!r}")

    def raise_exception(message: str) -> None:
        raise Refusal(message)

    def strftime_now(format: str) -> str:
        return environment.now.strftime(format)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = TemplateEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationBlocks, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "namespace": TemplateNamespace,
    }
    return environment


if __name__ == "__main__":
    main()
