"""Talk to a model: a conversation that grows, rendered by its chat template for each answer.

The work of `python -m jaxlm.generate RUN --chat`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxlm.chat import ChatTemplate, Message
from jaxlm.config import UserError
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decoding.generation import DecodingConfig, TextGenerator
from jaxlm.decoding.prompts import encode_with_special
from jaxlm.decoding.run_prompts import decoding_config
from jaxlm.decoding.terminal import read_lines
from jaxlm.load_model import LoadedModel
from jaxlm.models import unstacked

MOST_ANSWER_TOKENS = 512  # unless --max-new-tokens says another number
COMMANDS = "/reset forgets the conversation, /quit ends it"


def run_chat(loaded: LoadedModel, template: ChatTemplate, args: argparse.Namespace) -> None:
    """Hold a conversation with a model, by the options of `jaxlm.generate`.

    The parameters are used up.
    """
    config = decoding_config(args)
    most = args.max_new_tokens or MOST_ANSWER_TOKENS
    config = config._replace(max_new_tokens=most, batch_size=1)
    conversation = Conversation(loaded, template, config, args.system)
    if sys.stdin.isatty():
        print(f"{args.model}: {COMMANDS}", flush=True)

    def write(piece: str) -> None:
        print(piece, end="", flush=not args.no_stream)

    hold_conversation(conversation, read_lines(), write, forgiving=sys.stdin.isatty())


class TurnStop(NamedTuple):
    """The ends of an answer, beside the end of text."""

    ids: tuple[int, ...]  # of special tokens
    strings: tuple[str, ...]


class Conversation:
    """A model, and what was said so far.

    The parameters of `loaded` are used up. Raises UserError where the template refuses the system
    message, or shows no end of a turn.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        template: ChatTemplate,
        config: DecodingConfig,
        system: str | None = None,
    ):
        self.template, self.tokenizer = template, loaded.tokenizer
        self.opening = [] if system is None else [Message("system", system)]
        self.messages: list[Message] = []
        self.left_out = False  # whether the user knows that turns are left out
        template.render([*self.opening, Message("user", "Hello")], generation_prompt=True)

        stop = find_stop(template, loaded.tokenizer)
        frame = loaded.special
        frame = frame._replace(eos_ids=tuple(dict.fromkeys((*frame.eos_ids, *stop.ids))))
        config = config._replace(stop_strings=(*config.stop_strings, *stop.strings))
        params = unstacked(loaded.params, free=True)
        self.generator = TextGenerator(loaded.model, params, loaded.tokenizer, frame, config)
        self.frame, self.config, self.model_config = frame, config, loaded.model.config

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages, self.left_out = [], False

    def answer(self, text: str, write: Callable[[str], None]) -> None:
        """Answer what the user says; `write` receives the answer piece by piece.

        Raises UserError if the message alone doesn't fit into the model; then it is not part of the
        conversation.
        """
        turn = len(self.messages) // 2
        messages = [*self.messages, Message("user", text)]
        ids, messages = self.fit_prompt(messages)

        pieces: list[str] = []
        shown = TrimmedWriter(write)

        def stream(piece: str) -> None:
            pieces.append(piece)
            shown(piece)

        try:
            completion = self.generator.complete_prompt(ids, self.answer_limit(ids), turn, stream)
            answer = completion.output
        except KeyboardInterrupt:  # the answer ends here, the conversation goes on
            answer = "".join(pieces)
        self.messages = [*messages, Message("assistant", answer.strip())]

    def fit_prompt(self, messages: list[Message]) -> tuple[np.ndarray, list[Message]]:
        """Return int32 [n], the prompt, and the messages in it: without the oldest, if need be.

        A part of the context stays free for the answer of a decoder.
        """
        context = self.model_config.context_length
        most = context
        if not self.generator.has_source:
            most -= min(self.config.max_new_tokens, max(context // 4, 1))

        ids = self.encode(messages)
        first = 0
        while len(ids) > most and first + 2 < len(messages):
            first += 2
            ids = self.encode(messages[first:])
        if len(ids) > most:
            raise UserError(
                f"the message takes {len(ids)} tokens with its template, and at most {most} of the "
                f"model's {context} (model.context_length) are for what it reads"
            )

        if first and not self.left_out:
            self.left_out = True
            reason = f"is longer than the model's {context} tokens (model.context_length)"
            note = f"note: the conversation {reason}: its oldest turns are left out"
            print(note, file=sys.stderr, flush=True)
        return ids, messages[first:]

    def encode(self, messages: list[Message]) -> np.ndarray:
        """Return int32 [n], what the model reads: the messages, and the start of its answer.

        The source of an encoder-decoder ends with the end of text, as in training.
        """
        rendered = self.template.render([*self.opening, *messages], generation_prompt=True)
        ids = encode_with_special(self.tokenizer, rendered.text, special_ids(self.tokenizer))
        end = self.tokenizer.end_of_text
        if self.generator.has_source and not (len(ids) and ids[-1] == end):
            ids = np.concatenate([ids, [end]]).astype(np.int32)
        return ids

    def answer_limit(self, ids: np.ndarray) -> int:
        """Return how many tokens an answer may have: a decoder's ends with the context."""
        if self.generator.has_source:
            return self.config.max_new_tokens
        return min(self.config.max_new_tokens, self.model_config.context_length - len(ids))


class TrimmedWriter:
    """Writes the pieces of a text without the white space before its first and after its last."""

    def __init__(self, write: Callable[[str], None]):
        self.write, self.held, self.started = write, "", False

    def __call__(self, piece: str) -> None:
        """Write a piece; white space at its end waits for the next one."""
        text = self.held + piece
        if not self.started:
            text = text.lstrip()
        end = len(text.rstrip())
        self.held = text[end:]
        if end:
            self.started = True
            self.write(text[:end])


def find_stop(template: ChatTemplate, tokenizer: Tokenizer) -> TurnStop:
    """Return what ends an answer: a special token, else the mark of a turn's end as text.

    A template without a mark ends a turn by the start of the user's.
    """
    turn_end = template.find_turn_end()
    places = {
        token: turn_end.mark.find(name)
        for name, token in special_ids(tokenizer).items()
        if name in turn_end.mark
    }
    if places:
        return TurnStop((min(places, key=lambda token: places[token]),), ())
    text = turn_end.mark or turn_end.next_turn.rstrip()
    return TurnStop((), (text,) if text else ())


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of all special tokens by name."""
    added = tokenizer.inner.get_added_tokens_decoder()
    return {token.content: number for number, token in added.items() if token.special}


def hold_conversation(
    conversation: Conversation,
    lines: Iterator[str],
    write: Callable[[str], None],
    *,
    forgiving: bool,
) -> None:
    """Answer line by line, until there are no more or one is /quit; blank ones are passed over.

    Where it is `forgiving`, a message that can't be answered is told. Else it raises UserError.
    """
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            conversation.reset()
        elif text.startswith("/") and text.split()[0] in ("/help", "/?"):
            print(COMMANDS, file=sys.stderr, flush=True)
        elif text:
            try:
                conversation.answer(text, write)
            except UserError as error:
                if not forgiving:
                    raise
                print(f"error: {error}", file=sys.stderr, flush=True)
            else:
                write("\n")
