"""The description of one architecture of `transformers`: its config and its tensors.

A table of rules says which tensor holds which parameters; it serves reading and writing alike. A
tensor of a Hugging Face file and the jaxlm parameters that hold the same numbers differ only in the
order of their dimensions. Layouts name dimensions by letters (`h k d`). Letters written together
are one dimension of the tensor (`hk d`), and a digit counts the parameters that the tensor holds in
a row: "d 3hk" is query, key and value, each "dhk"; "h3k d" holds the three of each head in turn.

    d  width           h  query heads      k  width of a head   v  vocabulary (padded in jaxlm)
    e  token width     g  key/value heads  f  width of the MLP  p  positions
    t  token types     b  relative buckets o  one
    c  labels of a classifier
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from jaxlm.config import ModelConfig
from jaxlm.interop.hf_config import HFConfig


class Rule(NamedTuple):
    """One tensor of a file and the parameters in it.

    A rule is skipped where the model has none of its parameters: a bias, say, that is turned off.
    """

    tensor: str  # name in the file; "{}" is the number of the layer
    layout: str  # of the tensor: "d 3hk"
    parameters: tuple[str, ...]  # paths; those in "blocks" are stacked, and the tensor has "{}"
    dims: str  # of each parameter, without the layers: "dhk"
    first_layer: int = 0  # the tensor exists from this layer on
    # Without the parameter the tensor is written as zeros; a file may leave it out.
    zeros: bool = False
    # Paths that the parameters must have ("!path": must lack) for the rule to hold:
    # T5's "wi" is called "wi_1" in gated models.
    when: str = ""
    # Names under which the same numbers are written too; files need not have them, and they are
    # not compared when a file is read.
    copies: tuple[str, ...] = ()


class TensorPresence(Protocol):
    """The tensors of a directory, as far as reading a config depends on them."""

    def __contains__(self, name: str) -> bool: ...

    def any(self, name: str) -> bool:
        """Return whether the tensor exists and has a value other than 0."""
        ...


class Architecture(NamedTuple):
    """One `model_type` of `transformers`."""

    model_type: str
    classes: tuple[str, ...]  # values of "architectures" that are read; the first one is written
    family: str
    read: Callable[[HFConfig, TensorPresence], ModelConfig]
    # Values of config.json. What a config.json can't say is left out: reading it again shows that.
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: tuple[Rule, ...]
    root: str = ""  # prefix of names that base models leave out: "transformer."
    # Patterns (re.fullmatch) of tensors that the model doesn't need: buffers, poolers.
    ignored: tuple[str, ...] = ()
    # Tensors that repeat another one: {"lm_head.weight": "transformer.wte.weight"}
    aliases: Mapping[str, str] = {}
    # Renames (re.sub) of names in old files: {r"LayerNorm\.gamma$": "LayerNorm.weight"}
    renamed: Mapping[str, str] = {}
    classifier: str = "none"  # the kind of ClassifierConfig that the classes are
    # Folders inside that hold another network of the model. The values of config.json have those
    # of each folder's config.json under its name.
    subfolders: "Mapping[str, Architecture]" = MappingProxyType({})
