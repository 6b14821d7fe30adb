"""Token ids and masks of conversations equal those of `transformers`' apply_chat_template."""

import pytest
from support.chat_templates import TEMPLATES, TOKENS, random_conversation, tokenizer, without_marks

from jaxlm.chat import TemplateRefusal, load_template, token_mask
from jaxlm.chat.named_templates import NAMED_TEMPLATES

pytest.importorskip("jinja2")
transformers = pytest.importorskip("transformers")

CONVERSATIONS = 200
SOURCES = TEMPLATES | {f"our {name}": source for name, source in NAMED_TEMPLATES.items()}


@pytest.fixture(scope="module")
def theirs():
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(), **TOKENS)


@pytest.fixture(scope="module")
def inner():
    return tokenizer()


def write(folder, template):
    path = folder / "template.jinja"
    path.write_text(template, encoding="utf-8")
    return load_template(str(path), tokens=TOKENS)


@pytest.mark.parametrize("name", SOURCES)
def test_ids_and_masks_are_those_of_transformers(name, theirs, inner, tmp_path):
    source = SOURCES[name]
    template = write(tmp_path, source)
    for seed in range(CONVERSATIONS):
        messages = random_conversation(seed, system=name != "gemma")
        expected = theirs.apply_chat_template(
            [message.for_template() for message in messages],
            chat_template=source,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        text, spans = template.render(messages)
        encoding = inner.encode(text, add_special_tokens=False)
        assert encoding.ids == expected["input_ids"], seed
        assert token_mask(encoding.offsets, spans) == expected["assistant_masks"], seed
        assert any(expected["assistant_masks"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_without_marks_and_prompts_have_their_ids_too(name, theirs, inner, tmp_path):
    source = without_marks(TEMPLATES[name])
    template = write(tmp_path, source)
    for seed in range(10):
        whole = random_conversation(seed, system=name != "gemma")
        for messages, prompt in ((whole, False), (whole[:-1], True)):
            expected = theirs.apply_chat_template(
                [message.for_template() for message in messages],
                chat_template=source,
                add_generation_prompt=prompt,
                return_dict=True,
            )
            text = template.render(messages, generation_prompt=prompt).text
            ids = inner.encode(text, add_special_tokens=False).ids
            assert ids == expected["input_ids"], seed


def test_a_template_may_refuse_a_conversation(tmp_path):
    template = write(tmp_path, TEMPLATES["gemma"])
    messages = next(
        messages for messages in map(random_conversation, range(99)) if messages[0].role == "system"
    )
    with pytest.raises(TemplateRefusal, match=r"template.jinja:3: .*: System role not supported$"):
        template.render(messages)
