"""The text of tokens as they come: whole characters only, and cut before a stop string."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Decode = Callable[[Any], str]

REPLACEMENT = "\ufffd"  # what bytes that are no whole character are shown as
CONTEXT = 5  # tokens before the new ones that are decoded with them: how a token is spelled depends on what stands before it


class Text:
    """What a row writes behind its prompt. `text` is what is certain of it; `stopped` says that a stop string came."""

    def __init__(self, decode: Decode, prompt: Sequence[int], stops: Sequence[str] = ()):
        self.decode, self.stops = decode, [stop for stop in stops if stop]
        self.ids = list(prompt)
        self.start = max(len(self.ids) - CONTEXT, 0)  # from here on tokens are decoded ...
        self.shown = len(self.ids)  # ... of which those before this one are in the text already
        self.text = ""
        self.held = ""  # may be the beginning of a stop string
        self.tokens = 0  # that are part of the text, or of the stop string that ends it
        self.stopped = False

    def add(self, ids: Iterable[int], last: bool = False) -> str:
        """What the tokens `ids` add to the text; with `last`, also what was held back in case more would come."""
        before = len(self.text)
        for number in ids:
            if self.stopped:
                break
            self.ids.append(int(number))
            self.tokens += 1
            if self.stops:
                self.grow(last=False)
        if not self.stopped:
            self.grow(last)
        return self.text[before:]

    def grow(self, last: bool) -> None:
        self.held += self.decoded(last)
        ends = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        self.stopped = bool(ends)
        certain = min(ends) if ends else len(self.held) if last else len(self.held) - self.overlap()
        self.text += self.held[:certain]
        self.held = self.held[certain:]

    def overlap(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        sizes = (
            size
            for stop in self.stops
            for size in range(1, len(stop))
            if self.held.endswith(stop[:size])
        )
        return max(sizes, default=0)

    def decoded(self, last: bool) -> str:
        """The text of the tokens that were not shown yet; none while they end within a character."""
        old, new = (
            self.decode(self.ids[self.start : self.shown]),
            self.decode(self.ids[self.start :]),
        )
        if new.endswith(REPLACEMENT) and not last:
            return ""
        # A tokenizer may take back what it held for the end of a text.
        same = len(old) if new.startswith(old) else common(old, new)
        self.start, self.shown = max(len(self.ids) - CONTEXT, self.start), len(self.ids)
        return new[same:]


def common(one: str, other: str) -> int:
    """The length of what both begin with."""
    return next(
        (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )
