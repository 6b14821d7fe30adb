"""Read conversations from records: messages, a prompt and its response, or an instruction."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxlm.config import UserError
from jaxlm.config.fields import list_names, suggestion

# Names of the fields of a record, as `data.sources.keys` maps them to the keys of a file. A form is
# chosen by its first name.
FORMS = {
    "messages": ("messages", "role", "content", "system"),
    "conversations": ("conversations", "from", "value", "system"),
    "instruction": ("instruction", "input", "output", "system"),
    "prompt": ("prompt", "response", "system"),
}
FIELD_NAMES = tuple(dict.fromkeys(name for names in FORMS.values() for name in names))
# Roles of other files -> ours. Those of ShareGPT, and of the APIs that people record.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
# Of a message: what it says beside its content, which a text has no place for.
CALLS = ("tool_calls", "function_call")


class Message(NamedTuple):
    """Hold what one side of a conversation says at a time."""

    role: str  # "system", "user" or "assistant"
    content: str
    # Of an instruction with an input (Alpaca): the two parts of the content
    instruction: str = ""
    input: str = ""

    def for_template(self) -> dict[str, str]:
        """Return the message as templates read it."""
        values = {"role": self.role, "content": self.content}
        if self.input:
            values |= {"instruction": self.instruction, "input": self.input}
        return values


def read_conversation(
    fields: Mapping[str, Any],
    keys: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    place: str = "record",
    *,
    last: str = "assistant",
) -> list[Message]:
    """Return the messages of a record, which may have any of the forms in FORMS.

    `keys` maps names of FORMS to the keys of the record, where these differ. `last` is the role
    that the conversation must end with. UserError, "place: key: reason", where the record has
    another form, roles in a wrong order, an empty response or texts that are none.
    """
    keys = dict(keys)
    form = choose_form(fields, keys, place)
    key = keys.get(form, form)

    if form in ("messages", "conversations"):
        messages = read_messages(fields[key], keys, f"{place}: {key}", form=form)
    else:
        messages = read_pair(fields, keys, place, form)
    system = read_optional(fields, keys, "system", place)
    if system:
        if messages[0].role == "system":
            name = keys.get("system", "system")
            raise UserError(f"{place}: {name}: {key} begins with a system message too")
        messages.insert(0, Message("system", system))
    if messages[-1].role != last:
        reason = f"must end with a message of the {last}, ends with the {messages[-1].role}"
        raise UserError(f"{place}: {key}: {reason}")
    return messages


def choose_form(fields: Mapping[str, Any], keys: Mapping[str, str], place: str) -> str:
    """Return the form of a record: that whose names `keys` has, else that whose key it has."""
    named = [form for form, names in FORMS.items() if set(names) - {"system"} & keys.keys()]
    forms = named or [*FORMS]
    for form in forms:
        if keys.get(form, form) in fields:
            return form

    known = list_names([str(name) for name in fields])
    if named:
        missing = keys.get(named[0], named[0])
        raise UserError(f"{place}: {missing}: there is no such key (keys: {known})")
    near = next((hint for name in fields if (hint := suggestion(str(name), FIELD_NAMES))), "")
    forms_text = "'messages', 'conversations', 'prompt' and 'response', 'instruction' and 'output'"
    raise UserError(
        f"{place}: messages: there is no such key, nor another form of a conversation: "
        f"{forms_text} (keys: {known}){near}; data.sources.keys names others"
    )


def read_messages(
    value: Any, keys: Mapping[str, str], place: str, *, form: str = "messages"
) -> list[Message]:
    """Return the messages of a list of objects; errors begin with `place`.

    A system message may come first; then user and assistant speak in turn.
    """
    _, role_name, content_name, _ = FORMS[form]
    role_key, content_key = keys.get(role_name, role_name), keys.get(content_name, content_name)
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{place}: must be a list of messages, got {describe_kind(value)}")
    if not value:
        raise UserError(f"{place}: has no messages")

    messages: list[Message] = []
    for number, item in enumerate(value):
        here = f"{place}.{number}"
        if not isinstance(item, Mapping):
            raise UserError(f"{here}: must be an object, got {describe_kind(item)}")
        for key in (role_key, content_key):
            if key not in item:
                known = list_names([str(name) for name in item])
                raise UserError(f"{here}.{key}: there is no such key (keys: {known})")
        for key in CALLS:
            if item.get(key):
                raise UserError(f"{here}.{key}: calls of tools are not read, only texts")

        role = read_role(item[role_key], f"{here}.{role_key}")
        content = read_content(item[content_key], f"{here}.{content_key}")
        check_turn(role, content, messages, f"{here}.{role_key}", f"{here}.{content_key}")
        messages.append(Message(role, content))
    if messages[-1].role == "system":
        raise UserError(f"{place}: has a system message alone")
    return messages


def read_pair(
    fields: Mapping[str, Any], keys: Mapping[str, str], place: str, form: str
) -> list[Message]:
    """Return the two messages of a prompt or an instruction, and of its response."""
    answer_name = "response" if form == "prompt" else "output"
    texts = {}
    for name in (form, answer_name):
        key = keys.get(name, name)
        if key not in fields:
            known = list_names([str(name) for name in fields])
            raise UserError(f"{place}: {key}: there is no such key (keys: {known})")
        texts[name] = read_content(fields[key], f"{place}: {key}")

    prompt, answer = texts[form], texts[answer_name]
    addition = read_optional(fields, keys, "input", place) if form == "instruction" else ""
    user = Message("user", prompt)
    if addition:
        user = Message("user", f"{prompt}\n\n{addition}", instruction=prompt, input=addition)
    if not answer.strip():
        raise UserError(f"{place}: {keys.get(answer_name, answer_name)}: the response is empty")
    return [user, Message("assistant", answer)]


def read_optional(fields: Mapping[str, Any], keys: Mapping[str, str], name: str, place: str) -> str:
    """Return the text of a key that a record may lack; blank ones and null are ''."""
    key = keys.get(name, name)
    if name in keys and key not in fields:
        known = list_names([str(name) for name in fields])
        raise UserError(f"{place}: {key}: there is no such key (keys: {known})")
    value = fields.get(key)
    text = "" if value is None else read_content(value, f"{place}: {key}")
    return text if text.strip() else ""


def read_role(value: Any, place: str) -> str:
    """Return our name of a role."""
    role = ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        shown = repr(value) if isinstance(value, str) else describe_kind(value)
        raise UserError(f"{place}: must be 'system', 'user' or 'assistant', got {shown[:80]}")
    return role


def read_content(value: Any, place: str) -> str:
    """Return the text of a content: a string, or a list of parts of type text, which are joined."""
    if isinstance(value, (list, tuple)):
        texts = []
        for number, part in enumerate(value):
            here = f"{place}.{number}"
            if not isinstance(part, Mapping) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, Mapping) else describe_kind(part)
                raise UserError(f"{here}: only parts of type 'text' are read, got {kind!r}")
            texts.append(read_content(part.get("text"), f"{here}.text"))
        return "".join(texts)

    if not isinstance(value, str):
        raise UserError(f"{place}: must be a string, got {describe_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        reason = f"half a surrogate pair at character {error.start:,}, which is not Unicode text"
        raise UserError(f"{place}: {reason}") from error
    return value


def check_turn(
    role: str, content: str, before: list[Message], role_place: str, content_place: str
) -> None:
    """Refuse a message that is out of turn, and an empty response."""
    spoken = [message.role for message in before if message.role != "system"]
    expected = "assistant" if spoken and spoken[-1] == "user" else "user"
    if role == "system" and before:
        raise UserError(f"{role_place}: a system message may only come first")
    if role not in ("system", expected):
        after = f"after the {before[-1].role}" if before else "first"
        raise UserError(f"{role_place}: {after} must come the {expected}, got the {role}")
    if role == "assistant" and not content.strip():
        raise UserError(f"{content_place}: the response is empty")


def describe_kind(value: Any) -> str:
    """Return the kind of a JSON value."""
    return "null" if value is None else type(value).__name__
