"""Turn conversations into text by a chat template, with the places of the assistant's turns."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxlm.chat.conversations import Message
from jaxlm.chat.rendering import RenderedText, RenderingJob, render_jobs
from jaxlm.chat.turns import find_turns, unused_character
from jaxlm.config import UserError

# As `transformers` tells whether a template marks the turns.
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    spans: tuple[tuple[int, int], ...]  # start and end of the assistant's turns, in characters


class TurnEnd(NamedTuple):
    """The text that a template writes behind what the assistant said."""

    mark: str  # behind a last turn, without white space around it
    next_turn: str  # from there to the user's next words


@dataclass(frozen=True)
class ChatTemplate:
    """A template in Jinja, with the special tokens that it may use."""

    name: str  # its file, or how else messages name it
    source: str  # in Jinja
    variables: tuple[tuple[str, str], ...]  # such as ("eos_token", "</s>")

    @property
    def hash(self) -> str:
        """SHA-256 of all that decides what it renders."""
        return hashlib.sha256(json.dumps([self.source, self.variables]).encode()).hexdigest()

    def check(self) -> None:
        """Raise UserError if it is no template, or jinja2 is missing."""
        render_jobs(self.name, self.source, dict(self.variables), [])

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> Rendered:
        """Return a conversation as text, with the assistant's turns in it.

        With `generation_prompt` the text ends where the assistant is to write. Raises
        TemplateRefusal where the template refuses the conversation, and UserError where it can't be
        rendered: `name:line: reason`.
        """
        values = [message.for_template() for message in messages]
        job = RenderingJob(values, generation_prompt)
        has_blocks = GENERATION_TAG.search(self.source) is not None
        if has_blocks or generation_prompt:
            (rendered,) = self.render_jobs([job])
            if isinstance(rendered, UserError):
                raise rendered
            if rendered.blocks is not None:
                return Rendered(rendered.text, rendered.blocks)
            if generation_prompt:
                return Rendered(rendered.text, ())
        return Rendered(*find_turns(self.name, self.source, self.render_jobs, values))

    def find_turn_end(self) -> TurnEnd:
        """Return what the template writes behind the assistant's words, by an example."""
        probe = unused_character([self.source])
        opening = {"role": "user", "content": "Hello"}
        turns = [opening, {"role": "assistant", "content": probe}]
        jobs = [
            RenderingJob(turns, generation_prompt=False),
            RenderingJob([*turns, {"role": "user", "content": probe}], generation_prompt=False),
        ]

        texts = []
        for rendered in self.render_jobs(jobs):
            if isinstance(rendered, UserError):
                raise rendered
            texts.append(rendered.text.split(probe))
        last, middle = texts
        if len(last) != 2 or len(middle) != 3:
            raise UserError(f"{self.name}: does not show once what the assistant says")
        return TurnEnd(last[1].strip(), middle[1])

    def render_jobs(self, jobs: Sequence[RenderingJob]) -> list[RenderedText | UserError]:
        """Return each conversation as text, or what is wrong with it."""
        return render_jobs(self.name, self.source, dict(self.variables), jobs)


def token_mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Return for each token whether it lies in one of the spans, be it in part.

    `offsets` are start and end of the tokens in characters, as `tokenizers.Encoding.offsets` has
    them. Both are in order. The rule is that of `transformers` (`return_assistant_tokens_mask`).
    """
    mask, place = [], 0
    for start, end in offsets:
        while place < len(spans) and start >= spans[place][1]:
            place += 1
        mask.append(place < len(spans) and end > spans[place][0])
    return mask
