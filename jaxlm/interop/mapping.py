"""What the mapping of one architecture is: its config both ways, and a table of its tensors that is read in both directions.

A tensor of theirs and the one or several of ours that hold the same numbers differ in the order of their dimensions alone. Layouts
name dimensions by letters (`h k d`); letters written together are one dimension of theirs (`hk d`), and a digit is the number of
ours that it holds in a row: "d 3hk" of query, key and value, each "dhk"; "h3k d" holds the three of each head in turn.

    d  width            h  query heads     k  width of a head    v  vocabulary (theirs logical, ours padded)
    e  token width      g  key/value heads f  width of the MLP   p  positions   t  token types   b  relative buckets   o  one
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from jaxlm import config
from jaxlm.interop.hf_config import HFConfig


class Rule(NamedTuple):
    """One row of a table. A row of which the model has none of `ours` is left out: a bias, say, that this model does without."""

    theirs: str  # the tensor's name; "{}" is the number of the layer
    layout: str  # of theirs: "d 3hk"
    ours: tuple[
        str, ...
    ]  # paths in the parameters: "blocks.attention.query_kernel" ("blocks" are stacked, so theirs has "{}")
    dims: str  # of each of ours, without the layers: "dhk"
    first: int = 0  # the first layer that has it in theirs
    zeros: bool = False  # theirs is written as zeros where the model lacks ours, and may be absent where it is read
    when: str = ""  # paths that the parameters have ("!path": lack), or this row is left out: T5's "wi" is "wi_1" in gated models
    copies: tuple[
        str, ...
    ] = ()  # names under which the same numbers are written too; not needed and not compared where they are read


class Weights(Protocol):
    """The tensors of a Hugging Face directory, as far as reading a config may need them."""

    def __contains__(self, name: str) -> bool: ...

    def any(self, name: str) -> bool:
        """Whether a tensor has a number that is not 0."""
        ...


class Architecture(NamedTuple):
    """One `model_type` of `transformers`."""

    model_type: str
    classes: tuple[
        str, ...
    ]  # the values of "architectures" that are read; the first is what is written
    family: str
    read: Callable[[HFConfig, Weights], config.ModelConfig]
    write: Callable[
        [config.ModelConfig], dict[str, Any]
    ]  # what it can't say is left out: reading it again shows that
    rules: tuple[Rule, ...]
    root: str = ""  # beginning of names that base models leave out: "transformer."
    ignored: tuple[
        str, ...
    ] = ()  # patterns (re.fullmatch) of tensors that the model doesn't need: buffers, poolers
    aliases: Mapping[
        str, str
    ] = {}  # tensors that repeat another one's numbers: {"lm_head.weight": "transformer.wte.weight"}
    renamed: Mapping[
        str, str
    ] = {}  # re.sub on their names before anything else, of old files: {r"LayerNorm\.gamma$": "LayerNorm.weight"}
