"""Every `model_type` that can be read and written.

Where several architectures fit a model, the first one is written.
"""

from jaxlm.interop.architectures.bart import BART
from jaxlm.interop.architectures.bert import BERT, DISTILBERT, ROBERTA
from jaxlm.interop.architectures.blenderbot import BLENDERBOT, MARIAN, MBART
from jaxlm.interop.architectures.bloom import BLOOM
from jaxlm.interop.architectures.classifiers import CLASSIFIERS
from jaxlm.interop.architectures.electra import ELECTRA, ELECTRA_ENCODER
from jaxlm.interop.architectures.gemma2 import GEMMA2
from jaxlm.interop.architectures.gpt2 import GPT2
from jaxlm.interop.architectures.gpt_neox import GPT_NEOX
from jaxlm.interop.architectures.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from jaxlm.interop.architectures.modernbert import MODERNBERT
from jaxlm.interop.architectures.opt import OPT
from jaxlm.interop.architectures.t5 import T5
from jaxlm.interop.mapping import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "bloom": BLOOM,
    "gpt_neox": GPT_NEOX,
    "opt": OPT,
    "bert": BERT,
    "roberta": ROBERTA,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
    "electra": ELECTRA,
    "t5": T5,
    "bart": BART,
    "mbart": MBART,
    "blenderbot": BLENDERBOT,
    "marian": MARIAN,
}

# Other classes of a `model_type` above, which are models of another kind.
OTHER_CLASSES: tuple[Architecture, ...] = (ELECTRA_ENCODER, *CLASSIFIERS)
