"""Turn tokens into text while they arrive: whole characters only, and cut before a stop string."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Decode = Callable[[Any], str]  # token ids -> text

REPLACEMENT = "\ufffd"  # stands for bytes that are no whole character
# Tokens before the new ones that are decoded again with them: the spelling of a token depends on
# the tokens before it.
CONTEXT = 5


class TextStream:
    """The text that a row adds to its prompt.

    `text` is what is certain of it. `stopped` says that a stop string came.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int], stop_strings: Sequence[str] = ()):
        self.decode, self.stop_strings = decode, [stop for stop in stop_strings if stop]
        self.ids = list(prompt)
        self.start = max(len(self.ids) - CONTEXT, 0)  # tokens are decoded from here on ...
        self.shown = len(self.ids)  # ... and those before this one are in the text already
        self.text = ""
        self.held = ""  # may be the start of a stop string
        self.tokens = 0  # in the text, the stop string that ends it included
        self.stopped = False

    def add(self, ids: Iterable[int], last: bool = False) -> str:
        """Return what the tokens `ids` add to the text.

        With `last` no more tokens follow, and what was held back is text too.
        """
        before = len(self.text)
        for token in ids:
            if self.stopped:
                break
            self.ids.append(int(token))
            self.tokens += 1
            # One token at a time, so that `tokens` ends with the one that completes a stop string.
            if self.stop_strings:
                self._extend_text(last=False)

        if not self.stopped:
            self._extend_text(last)
        return self.text[before:]

    def _extend_text(self, last: bool) -> None:
        """Move what is certain of the new tokens from `held` to `text`."""
        self.held += self._decode_new(last)
        places = [self.held.find(stop) for stop in self.stop_strings]
        stops = [place for place in places if place >= 0]

        self.stopped = bool(stops)
        possible_stop = 0 if last else self._possible_stop()
        certain = min(stops) if stops else len(self.held) - possible_stop
        self.text += self.held[:certain]
        self.held = self.held[certain:]

    def _possible_stop(self) -> int:
        """Return how many characters at the end of `held` may be the start of a stop string."""
        longest = 0
        for stop in self.stop_strings:
            for size in range(1, len(stop)):
                if self.held.endswith(stop[:size]):
                    longest = max(longest, size)
        return longest

    def _decode_new(self, last: bool) -> str:
        """Return the text of tokens not shown yet; '' while they end inside a character."""
        old = self.decode(self.ids[self.start : self.shown])
        new = self.decode(self.ids[self.start :])
        if new.endswith(REPLACEMENT) and not last:
            return ""
        # A tokenizer may spell the last token differently once another follows.
        same = len(old) if new.startswith(old) else common_prefix_length(old, new)
        self.start, self.shown = max(len(self.ids) - CONTEXT, self.start), len(self.ids)
        return new[same:]


def common_prefix_length(a: str, b: str) -> int:
    """Return the number of characters with which both strings start."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))
