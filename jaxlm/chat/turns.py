"""Find the assistant's turns in the text of a conversation, for templates that don't mark them.

The conversation is rendered again with one turn's content replaced by a character that occurs
nowhere else. What stands before and after that character is the text around the turn.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxlm.chat.rendering import RenderedText, RenderingJob, TemplateRefusal
from jaxlm.config import UserError

# Private-use characters: no text has all of them, and no template treats them in its own way.
PROBES = range(0xE000, 0xF900)

Render = Callable[[Sequence[RenderingJob]], list[RenderedText | UserError]]


class MarkedText(NamedTuple):
    """A conversation as text, and the assistant's turns in it."""

    text: str
    spans: tuple[tuple[int, int], ...]  # start and end, in characters


def find_turns(
    name: str, template: str, render: Render, messages: Sequence[dict[str, Any]]
) -> MarkedText:
    """Return the text of a conversation with the assistant's turns.

    A turn begins behind the generation prompt and ends behind the mark of its end. TemplateRefusal
    where the template, `name` in messages, shows a turn in no way that can be followed.
    """
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    probe = unused_character([template, *(message["content"] for message in messages)])

    jobs = [RenderingJob(messages, generation_prompt=False)]
    for place in turns:
        probed = replace_content(messages, place, probe)
        jobs.append(RenderingJob(probed, generation_prompt=False))
        jobs.append(RenderingJob(messages[:place], generation_prompt=True))
    if turns:
        last = replace_content(messages, turns[-1], probe)[: turns[-1] + 1]
        jobs.append(RenderingJob(last, generation_prompt=False))
    whole, *others = render(jobs)
    if isinstance(whole, UserError):
        raise whole
    tail = "" if not turns else text_after(probe, others.pop())

    spans: list[tuple[int, int]] = []
    for place, probed, prompt in zip(turns, others[::2], others[1::2], strict=True):
        if isinstance(probed, UserError):
            raise probed
        if probed.text == whole.text:
            continue  # the template leaves the turn out
        span = compare_texts(whole.text, probed.text, probe, prompt, tail)
        if span is None:
            (opening,) = render([RenderingJob(messages[:place], generation_prompt=False)])
            span = compare_texts(whole.text, probed.text, probe, opening, tail, is_opening=True)
        if span is None or (spans and span[0] < spans[-1][1]):
            raise TemplateRefusal(
                f"{name}: does not show where the assistant's turn in message {place + 1} begins "
                "and ends; put {% generation %} ... {% endgeneration %} around it"
            )
        spans.append(span)
    return MarkedText(whole.text, tuple(spans))


def compare_texts(
    text: str,
    probed: str,
    probe: str,
    prompt: RenderedText | UserError,
    tail: str,
    *,
    is_opening: bool = False,
) -> tuple[int, int] | None:
    """Return where a turn begins and ends in `text`; None where that can't be told.

    `probed` is the text with `probe` as content of the turn, `prompt` the text up to the turn, and
    `tail` what follows the content of a last turn. `is_opening`: the prompt has no heading of the
    turn, which is a part of what `text` and `probed` have in common.
    """
    if probed.count(probe) != 1:
        return None
    before, _, after = probed.partition(probe)
    content_end = len(text) - len(after)
    if not text.endswith(after):
        return None

    # The text up to the turn may differ from the start of the whole: some templates write the
    # system's message into the last of the user's. Others treat a content that begins with thoughts
    # in another way than the probe: then what both have in common is the turn's heading.
    if isinstance(prompt, RenderedText) and text.startswith(prompt.text):
        start = len(prompt.text)
        if is_opening and not before.startswith(prompt.text):
            return None
        if is_opening:
            start = common_length(text, before)
    elif text.startswith(before):
        start = len(before)
    else:
        return None
    if start > content_end:
        return None
    return start, content_end + end_mark_length(text[content_end:], tail)


def end_mark_length(rest: str, tail: str) -> int:
    """Return how much of `rest`, the text behind a content, is the mark of the turn's end.

    This is what a last turn has too (`tail`), in whole tokens by their brackets. White space
    behind the mark is no part of it.
    """
    size = common_length(rest, tail)
    while 0 < size < len(tail) and not is_boundary(rest, size):
        size -= 1
    mark = rest[:size]
    return len(mark.rstrip()) or size


def is_boundary(text: str, place: int) -> bool:
    """Return whether a special token may begin or end at a place of a text, by its characters."""
    before, after = text[place - 1], text[place : place + 1]
    return before in ">]" or after in ("", "<", "[") or before.isspace() or after.isspace()


def replace_content(
    messages: Sequence[dict[str, Any]], place: int, content: str
) -> list[dict[str, Any]]:
    """Return the messages with another content of one of them."""
    return [*messages[:place], {**messages[place], "content": content}, *messages[place + 1 :]]


def text_after(probe: str, rendered: RenderedText | UserError) -> str:
    """Return what stands behind the probe, '' where it is not shown."""
    return "" if isinstance(rendered, UserError) else rendered.text.partition(probe)[2]


def unused_character(texts: Sequence[str]) -> str:
    """Return a private-use character that none of the texts has."""
    used = set().union(*texts)
    for number in PROBES:
        if chr(number) not in used:
            return chr(number)
    raise UserError("a conversation with all private-use characters of Unicode can't be rendered")


def common_length(a: str, b: str) -> int:
    """Return the number of characters with which both texts begin."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
