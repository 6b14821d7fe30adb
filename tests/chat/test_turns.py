"""The places of the assistant's turns, in templates that mark them and in those that don't."""

import pytest
from support.chat_templates import TEMPLATES, TOKENS, random_conversation, without_marks

from jaxlm.chat import Message, TemplateRefusal, load_template, token_mask
from jaxlm.chat.template import ChatTemplate

pytest.importorskip("jinja2")

TALK = [
    Message("user", "Hi there"),
    Message("assistant", "Hi there"),
    Message("user", "So?"),
    Message("assistant", "Well, "),
]
# What the assistant says of TALK, with and without marks: the same but for Phi-3, whose text ends
# behind the last mark.
SAID = {
    "chatml": ["Hi there<|im_end|>", "Well, <|im_end|>"],
    "llama2": [" Hi there </s>", " Well, </s>"],
    "llama3": ["Hi there<|eot_id|>", "Well,<|eot_id|>"],
    "mistral": [" Hi there</s>", " Well, </s>"],
    "zephyr": ["Hi there</s>", "Well, </s>"],
    "gemma": ["Hi there<end_of_turn>", "Well,<end_of_turn>"],
    "phi3": ["Hi there<|end|>", "Well, <|end|>"],
    "qwen2.5": ["Hi there<|im_end|>", "Well, <|im_end|>"],
}
NAMED = {
    "chatml": SAID["chatml"],
    "alpaca": ["Hi there</s>", "Well, </s>"],
    "plain": [" Hi there</s>", " Well, </s>"],
    "llama3": SAID["llama3"],
}


def template_of(source):
    return ChatTemplate("t.jinja", source, tuple(TOKENS.items()))


def said(template, messages=TALK):
    text, spans = template.render(messages)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_are_found_with_marks_and_without(name):
    assert said(template_of(TEMPLATES[name])) == SAID[name]
    expected = [*SAID[name][:1], "Well, <|end|>\n</s>"] if name == "phi3" else SAID[name]
    assert said(template_of(without_marks(TEMPLATES[name]))) == expected


@pytest.mark.parametrize("name", NAMED)
def test_turns_of_named_templates(name):
    assert said(load_template(name, tokens=TOKENS)) == NAMED[name]


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "phi3"])
def test_turns_of_any_text_are_found_where_the_marks_are(name):
    """Contents that look like tokens, end with white space, or are said twice.

    Mistral's system message stands in the last turn, so that the space behind [/INST] counts as the
    prompt's.
    """
    marked, unmarked = (template_of(f(TEMPLATES[name])) for f in (str, without_marks))
    for seed in range(15):
        messages = random_conversation(seed, system=name not in ("gemma", "mistral"))
        assert unmarked.render(messages) == marked.render(messages), seed


def test_a_template_that_drops_earlier_thoughts_is_followed():
    """As Qwen 3 and DeepSeek-R1 do: the prefix of a text is not the text of a prefix."""
    template = template_of(
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    talk = [message._replace(content=f"<think>Hm</think>{message.content}") for message in TALK]
    assert said(template, talk) == ["Hi there<end>", "<think>Hm</think>Well, <end>"]


def test_a_heading_that_depends_on_thoughts_is_none_of_the_turn():
    """As Nemotron's: the prompt opens a thought, which is empty in turns without one."""
    template = template_of(
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.role == 'assistant' and '<think>' not in m.content %}<think></think>{% endif %}"
        "{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
    )
    assert said(template) == ["Hi there<end>", "Well, <end>"]
    talk = [*TALK[:3], Message("assistant", "<think>Hm</think>Well")]
    assert said(template, talk) == ["Hi there<end>", "Hm</think>Well<end>"]


def test_a_turn_without_a_mark_of_its_end_ends_with_its_text_or_line():
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
    assert said(template_of(bare)) == ["assistant: Hi there\n", "assistant: Well, \n"]
    with_prompt = bare + "{% if add_generation_prompt %}assistant:{% endif %}"
    assert said(template_of(with_prompt)) == [" Hi there\n", " Well, \n"]


def test_turns_that_a_template_leaves_out_are_no_spans():
    last = "{% set m = messages[-1] %}{{ m.role }}|{{ m.content }}|"
    assert said(template_of(last)) == ["Well, |"]


def test_a_mark_in_a_macro_is_found_by_its_place():
    """There the place that `transformers` notes is another."""
    source = (
        "{% macro turn(m) %}[{{ m.role }}]{% generation %}{{ m.content }}{% endgeneration %};"
        "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}"
    )
    assert said(template_of(source)) == ["[assistant]Hi there;", "[assistant]Well, ;"]


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{{ messages[1].content | length }}{% for m in messages %}{{ m.content }};{% endfor %}",
        "{% for m in messages %}{{ m.content }} ({{ m.content | length }} letters);{% endfor %}",
        "{% for m in messages %}{{ m.role }}{{ m.content | length }};{% endfor %}",
    ],
    ids=["twice", "length before", "length behind", "length alone"],
)
def test_a_turn_that_can_not_be_told_apart_is_refused(source):
    with pytest.raises(TemplateRefusal, match=r"^t.jinja: does not show .* in message 2 begins"):
        said(template_of(source))


@pytest.mark.parametrize(
    ("offsets", "spans", "expected"),
    [
        ([(0, 2), (2, 5), (5, 6)], [(2, 5)], [0, 1, 0]),
        ([(0, 3), (3, 6)], [(2, 4)], [1, 1]),  # in part
        ([(0, 1), (1, 2), (2, 3)], [(0, 1), (2, 3)], [1, 0, 1]),
        ([(0, 1), (1, 1), (1, 2)], [(1, 2)], [0, 0, 1]),  # a token of no characters
        ([(0, 1)], [], [0]),
    ],
)
def test_a_token_counts_where_it_overlaps_a_span(offsets, spans, expected):
    assert token_mask(offsets, spans) == expected
