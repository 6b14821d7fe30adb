"""The chat templates that a config can name.

Each marks the assistant's turns by {% generation %}. The special tokens of a tokenizer are
variables; tokens that a template spells out should be in the tokenizer, else they are words.
"""

# OpenAI's ChatML, as Qwen and many others use it.
CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{% else %}
{{ message.content + '<|im_end|>' }}
{%- endif %}
{{ '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# The prompts of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca), with and without input. A
# system message takes the place of their first paragraph; later turns repeat the headings.
ALPACA = """\
{% set task = 'Below is an instruction that describes a task' %}
{% set answer = 'rite a response that appropriately completes the request.' %}
{% if messages[0].role == 'system' %}
{{ messages[0].content + '\\n\\n' }}
{%- elif messages[0].input %}
{{ task + ', paired with an input that provides further context. W' + answer + '\\n\\n' }}
{%- else %}
{{ task + '. W' + answer + '\\n\\n' }}
{%- endif %}
{% for message in messages if message.role != 'system' %}
{% if message.role == 'assistant' %}
{{ '### Response:' }}
{%- generation %}{{ message.content + eos_token }}{% endgeneration %}
{% if not loop.last %}{{ '\\n\\n' }}{% endif %}
{% elif message.input %}
{{ '### Instruction:\\n' + message.instruction + '\\n\\n' }}
{{- '### Input:\\n' + message.input + '\\n\\n' }}
{%- else %}
{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '### Response:' }}
{%- endif %}
"""

PLAIN = """\
{% for message in messages %}
{% if message.role == 'assistant' %}
{{ 'Assistant:' }}
{%- generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
{% if not loop.last %}{{ '\\n' }}{% endif %}
{% elif message.role == 'user' %}
{{ 'User: ' + message.content + '\\n' }}
{%- else %}
{{ message.content + '\\n\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ 'Assistant:' }}
{%- endif %}
"""

# Llama 3 (llama.com/docs/model-cards-and-prompt-formats), without tools.
LLAMA3 = """\
{{ bos_token }}
{%- for message in messages %}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{%- if message.role == 'assistant' %}
{% generation %}{{ message.content | trim + '<|eot_id|>' }}{% endgeneration %}
{% else %}
{{ message.content | trim + '<|eot_id|>' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

NAMED_TEMPLATES = {"chatml": CHATML, "alpaca": ALPACA, "plain": PLAIN, "llama3": LLAMA3}
