"""Records of every form become messages, and wrong ones end in a line with file, line and key."""

import pytest

from jaxlm.chat import Message, read_conversation
from jaxlm.config import UserError

PLACE = "chats.jsonl:7"
HI = {"role": "user", "content": "Hi"}
HO = {"role": "assistant", "content": "Ho"}
EXPECTED = [Message("user", "Hi"), Message("assistant", "Ho")]
SYSTEM = [Message("system", "Be kind.")]


def read(fields, keys=(), **options):
    return read_conversation(fields, keys, PLACE, **options)


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ({"messages": [HI, HO]}, ()),
        ({"messages": [HI, HO], "prompt": "no", "id": 3}, ()),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, ()),
        ({"prompt": "Hi", "response": "Ho"}, ()),
        ({"instruction": "Hi", "output": "Ho"}, ()),
        ({"instruction": "Hi", "input": "", "output": "Ho", "system": None}, ()),
        ({"inputs": "Hi", "targets": "Ho"}, (("prompt", "inputs"), ("response", "targets"))),
        ({"q": "Hi", "response": "Ho"}, (("prompt", "q"),)),
        ({"dialog": [HI, HO], "messages": 3}, (("messages", "dialog"),)),
        ({"messages": [{"who": "user", "says": "Hi"}, {"who": "model", "says": "Ho"}]}, "ws"),
        ({"messages": [HI | {"name": "Al"}, HO | {"tool_calls": None, "weight": 1}]}, ()),
    ],
)
def test_forms_of_a_conversation(fields, keys):
    keys = (("role", "who"), ("content", "says")) if keys == "ws" else keys
    assert read(fields, keys) == EXPECTED


def test_forms_of_a_system_message():
    first = {"role": "system", "content": "Be kind."}
    assert read({"messages": [first, HI, HO]}) == SYSTEM + EXPECTED
    assert read({"messages": [first | {"role": "developer"}, HI, HO]}) == SYSTEM + EXPECTED
    assert read({"messages": [HI, HO], "system": "Be kind."}) == SYSTEM + EXPECTED
    orca = {"system_prompt": "Be kind.", "question": "Hi", "response": "Ho"}
    keys = (("system", "system_prompt"), ("prompt", "question"))
    assert read(orca, keys) == SYSTEM + EXPECTED
    assert read(orca | {"system_prompt": " "}, keys) == EXPECTED


def test_an_instruction_keeps_its_input_apart():
    (user, _) = read({"instruction": "Add", "input": "1 2", "output": "3"})
    assert user == Message("user", "Add\n\n1 2", instruction="Add", input="1 2")
    dolly = {"instruction": "Add", "context": "1 2", "response": "3", "category": "maths"}
    (other, _) = read(dolly, (("input", "context"), ("output", "response")))
    assert other == user and user.for_template()["input"] == "1 2"


def test_texts_in_parts_are_joined():
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert read({"messages": [HI | {"content": parts}, HO]}) == EXPECTED


def test_a_prompt_may_end_with_the_user():
    assert read({"messages": [HI]}, last="user") == EXPECTED[:1]


def messages(*items):
    return {"messages": [*items]}


REFUSED = {  # record -> key and reason
    "no form": ({"text": "a"}, "messages: there is no such key, nor another form"),
    "near form": ({"mesages": []}, "did you mean 'messages'?"),
    "no list": ({"messages": "a"}, "messages: must be a list of messages, got str"),
    "null": ({"messages": None}, "messages: must be a list of messages, got null"),
    "none": (messages(), "messages: has no messages"),
    "no object": (messages(HI, "a"), "messages.1: must be an object, got str"),
    "no role": (messages({"content": "a"}), "messages.0.role: there is no such key (keys: 'conte"),
    "no content": (messages({"role": "user"}), "messages.0.content: there is no such key"),
    "number": (messages(HI | {"content": 3}), "messages.0.content: must be a string, got int"),
    "role of a tool": (messages(HI, HO | {"role": "tool"}), "messages.1.role: must be 'system', "),
    "role that is none": (messages(HI | {"role": []}), "messages.0.role: must be 'system', "),
    "calls": (messages(HI, HO | {"tool_calls": [1]}), "messages.1.tool_calls: calls of tools"),
    "picture": (
        messages(HI | {"content": [{"type": "image"}]}),
        "messages.0.content.0: only parts of type 'text' are read, got 'image'",
    ),
    "part without text": (
        messages(HI | {"content": [{"type": "text"}]}),
        "messages.0.content.0.text: must be a string, got null",
    ),
    "assistant first": (messages(HO), "messages.0.role: first must come the user, got the assist"),
    "user twice": (
        messages(HI, HI, HO),
        "messages.1.role: after the user must come the assistant, got the user",
    ),
    "assistant twice": (
        messages(HI, HO, HO),
        "messages.2.role: after the assistant must come the user, got the assistant",
    ),
    "system later": (
        messages(HI, HO, HI | {"role": "system"}),
        "messages.2.role: a system message may only come first",
    ),
    "system alone": (messages(HI | {"role": "system"}), "messages: has a system message alone"),
    "two systems": (
        messages(HI | {"role": "system"}, HI, HO) | {"system": "a"},
        "system: messages begins with a system message too",
    ),
    "no answer": (messages(HI), "messages: must end with a message of the assistant, ends with"),
    "empty answer": (messages(HI, HO | {"content": " \n"}), "messages.1.content: the response is"),
    "empty response": ({"prompt": "a", "response": ""}, "response: the response is empty"),
    "empty output": ({"instruction": "a", "output": " "}, "output: the response is empty"),
    "no response": ({"prompt": "a"}, "response: there is no such key (keys: 'prompt')"),
    "no output": ({"instruction": "a", "response": "b"}, "output: there is no such key"),
    "list as prompt": ({"prompt": ["a"], "response": "b"}, "prompt.0: only parts of type 'text'"),
    "half a pair": (
        messages(HI | {"content": "ab\ud800"}),
        "messages.0.content: half a surrogate pair at character 2",
    ),
    "half a pair in a response": (
        {"prompt": "a", "response": "\udfff"},
        "response: half a surrogate pair at character 0",
    ),
    "system is a number": (
        {"prompt": "a", "response": "b", "system": 3},
        "system: must be a string, got int",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_record_is_told_by_file_line_and_key(name):
    fields, reason = REFUSED[name]
    with pytest.raises(UserError) as caught:
        read(fields)
    text = str(caught.value)
    assert text.startswith(f"{PLACE}: ") and reason in text and "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("fields", "keys", "reason"),
    [
        ({"prompt": "a"}, (("messages", "dialog"),), "dialog: there is no such key"),
        ({"q": "a", "response": "b"}, (("prompt", "q"), ("response", "a")), "a: there is no such"),
        ({"instruction": "a", "output": "b"}, (("input", "context"),), "context: there is no such"),
        (messages(HI, HO), (("system", "sys"),), "sys: there is no such key"),
        (messages(HI, HO), (("content", "text"),), "messages.0.text: there is no such key"),
    ],
)
def test_a_key_that_the_config_names_must_be_there(fields, keys, reason):
    with pytest.raises(UserError, match=rf"^{PLACE}: {reason}"):
        read(fields, keys)
