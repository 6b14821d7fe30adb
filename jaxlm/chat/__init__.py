"""Conversations as text: read them from records, and render them by chat templates.

    template = load_template("chatml", tokens={"eos_token": "<|endoftext|>"})
    text, spans = template.render(read_conversation(fields, keys, "chats.jsonl:1"))
    mask = token_mask(encoding.offsets, spans)

Imports no jax.
"""

from jaxlm.chat.conversations import FIELD_NAMES as FIELD_NAMES
from jaxlm.chat.conversations import Message as Message
from jaxlm.chat.conversations import read_conversation as read_conversation
from jaxlm.chat.conversations import read_messages as read_messages
from jaxlm.chat.loading import TEMPLATE_FILE as TEMPLATE_FILE
from jaxlm.chat.loading import check_named_template as check_named_template
from jaxlm.chat.loading import find_source as find_source
from jaxlm.chat.loading import has_template as has_template
from jaxlm.chat.loading import keep_template as keep_template
from jaxlm.chat.loading import load_config_template as load_config_template
from jaxlm.chat.loading import load_template as load_template
from jaxlm.chat.named_templates import NAMED_TEMPLATES as NAMED_TEMPLATES
from jaxlm.chat.rendering import TemplateRefusal as TemplateRefusal
from jaxlm.chat.template import ChatTemplate as ChatTemplate
from jaxlm.chat.template import Rendered as Rendered
from jaxlm.chat.template import token_mask as token_mask
