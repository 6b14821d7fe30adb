"""Chat templates in the formats that published models use, written here, and conversations.

Each marks the assistant's turns; `without_marks` gives the template as most models come with it.
The sources describe the formats: where the special tokens and the line ends are.
"""

import random
import re

import tokenizers

from jaxlm.chat import Message
from support import tokenizer_files

# github.com/openai/openai-python/blob/release-v0.28.1/chatml.md
CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{% else %}
{{ message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# github.com/meta-llama/llama, chat_completion: the system message is a part of the first turn
LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
{% set opening = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}
{% set turns = messages[1:] %}
{% else %}
{% set opening, turns = '', messages %}
{% endif %}
{% for message in turns %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% set content = message['content'].strip() %}
{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + (opening if loop.index0 == 0 else '') + content + ' [/INST]' }}
{%- else %}
{% generation %}{{ ' ' + content + ' ' + eos_token }}{% endgeneration %}
{% endif %}
{% endfor %}
"""

# llama.com/docs/model-cards-and-prompt-formats/meta-llama-3
LLAMA3 = """\
{% set loop_messages = messages %}
{% for message in loop_messages %}
{% set head = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}
{{ head }}
{%- if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}
{% else %}
{{ message['content'] | trim + '<|eot_id|>' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# docs.mistral.ai, "Basic RAG and chat templates" of version 3: the system message goes into the
# last of the user's
MISTRAL = """\
{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else none %}
{{ bos_token }}
{%- for message in messages if message['role'] != 'system' %}
{% if message['role'] == 'user' %}
{% if loop.last or loop.revindex == 2 and not add_generation_prompt %}
{{ '[INST] ' + (system + '\\n\\n' if system else '') + message['content'] + '[/INST]' }}
{%- else %}
{{ '[INST] ' + message['content'] + '[/INST]' }}
{%- endif %}
{% else %}
{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}
{% endif %}
{% endfor %}
"""

# huggingface.co/docs/transformers/chat_templating shows Zephyr's
ZEPHYR = """\
{% for message in messages %}
{{ '<|' + message['role'] + '|>\\n' }}
{%- if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{% else %}
{{ message['content'] + eos_token }}
{%- endif %}
{{ '\\n' }}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
{% endfor %}
"""

# ai.google.dev/gemma/docs/core/prompt-structure: no system message
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}
{% endif %}
{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ '<start_of_turn>model\\n' }}
{%- generation %}{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}
{% else %}
{{ '<start_of_turn>' + message['role'] + '\\n' + message['content'] | trim + '<end_of_turn>' }}
{%- endif %}
{{ '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

# huggingface.co/microsoft/Phi-3-mini-4k-instruct, "Chat Format": the text ends with eos_token
PHI3 = """\
{% for message in messages %}
{{ '<|' + message['role'] + '|>\\n' }}
{%- if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}
{% else %}
{{ message['content'] + '<|end|>' }}
{%- endif %}
{{ '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

# qwen.readthedocs.io, "Key Concepts": ChatML with a system message of its own
QWEN25 = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == "assistant" %}
        {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

TEMPLATES = {
    "chatml": CHATML,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "zephyr": ZEPHYR,
    "gemma": GEMMA,
    "phi3": PHI3,
    "qwen2.5": QWEN25,
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("[INST]", "[/INST]", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    *("<start_of_turn>", "<end_of_turn>"),
)
PIECES = (
    *(
        "It was the best of times",
        "Größe",
        " ",
        "\n",
        "\n\n",
        "漢字かな",
        "\U0001f642\u200d\U0001f4bb",
    ),
    *("  two  spaces", "\t", "e\u0301", "don't", "{{ 7 * 7 }}", "{% if %}", "User: ", "<|im_end|>"),
    *("[INST] x [/INST]", "</s>", "\u2028", "\u00a0", "x" * 40, "\\n", "'\"", "&lt;<b>"),
)


def without_marks(template: str) -> str:
    """Return a template without its {% generation %} tags."""
    return re.sub(r"\{%(-?) (?:end)?generation (-?)%\}", r"{%\1 if true \2%}{% endif %}", template)


def tokenizer() -> tokenizers.Tokenizer:
    """Return a small byte-level BPE with the special tokens of the templates."""
    inner = tokenizer_files.byte_level(("<s>", "</s>", "<pad>"))
    inner.add_special_tokens([*SPECIAL])
    return inner


def random_conversation(seed: int, *, system: bool = True) -> list[Message]:
    """Return a conversation of 1 to 4 turns a side, with odd texts; some have a system message."""
    draw = random.Random(seed)
    has_system = draw.random() < 0.4

    messages = [Message("system", random_text(draw))] if system and has_system else []
    for _ in range(draw.randint(1, 4)):
        messages += [Message("user", random_text(draw)), Message("assistant", random_text(draw))]
    return messages


def random_text(draw: random.Random) -> str:
    """Return a text that is not blank, of which white space may be the start or the end."""
    while True:
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 8)))
        if text.strip():
            return text
