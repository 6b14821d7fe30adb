"""Runs a table of tensors in both directions, one tensor at a time.

Reading fills the shards of this host directly: in host memory there are never more than those and one tensor as it is in the file.
Everything about names and shapes is checked before the first number is read.
"""

import re
from collections.abc import Container, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from jaxlm import config
from jaxlm.config import UserError
from jaxlm.interop import files, layout
from jaxlm.interop.files import Entry, Listing, Reader, Tensor
from jaxlm.interop.mapping import Architecture, Rule
from jaxlm.types import Array, Tree

SHOWN = 3  # names in a message
Span = tuple[tuple[int, int], ...]  # from, to, of each dimension


class Row(NamedTuple):
    """A rule on one model: `ours` are its parameters' shapes, none where theirs is only written as zeros."""

    rule: Rule
    ours: tuple[jax.ShapeDtypeStruct, ...]
    sizes: layout.Sizes
    shape: tuple[int, ...]  # of theirs
    layers: range | None  # those that theirs has; None: it isn't in a stack
    repeated: tuple[
        str, ...
    ] = ()  # names under which the numbers must be once more, for what the model lacks of the architecture

    def names(self) -> Iterator[tuple[int | None, str]]:
        """The layers and the tensors that they are in."""
        if self.layers is None:
            yield None, self.rule.theirs
        else:
            for layer in self.layers:
                yield layer, self.rule.theirs.replace("{}", str(layer))


def by_path(tree: Tree) -> dict[str, Any]:
    """'blocks.mlp.up_kernel' -> leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def rows(
    architecture: Architecture, model: config.ModelConfig, shapes: Tree, whole: Tree | None = None
) -> list[Row]:
    """The rules that `model` has a use for. Each parameter must be in exactly one, else the table is wrong.

    `whole` are the shapes that the architecture has without the section "jaxlm" of config.json: what the model lacks of them is
    zeros, or a gate that repeats the other half.
    """
    known, found, missing = by_path(shapes), [], set(by_path(shapes))
    entire = known if whole is None else by_path(whole)
    gates: dict[str, Rule] = {}  # that repeat another parameter, by that one's path
    for rule in architecture.rules:
        other = rule.ours[0].replace(".gate_", ".up_")
        if (
            holds(rule, entire)
            and rule.ours[0] in entire
            and rule.ours[0] not in known
            and other in known
            and len(rule.ours) == 1
        ):
            gates[other] = rule
    for rule in architecture.rules:
        if not holds(rule, entire) or rule in gates.values():
            continue
        present = [path for path in rule.ours if path in known]
        if not present:
            if rule.ours[0] in entire:
                found.append(lacking_row(rule, entire, model))
            elif rule.zeros:
                found.append(zeros_row(rule, model))
            continue
        if len(present) < len(rule.ours) and entire.keys() >= set(rule.ours):
            raise UserError(
                f"{architecture.model_type} has {rule.theirs} for {' and '.join(rule.ours)}, which can't be without the other"
            )
        if set(present) != set(rule.ours) or not missing.issuperset(present):
            raise ValueError(
                f"{architecture.model_type}: {rule.ours} are not all in the model, or in an earlier rule too"
            )
        missing.difference_update(present)
        ours, stacked = tuple(known[path] for path in rule.ours), "{}" in rule.theirs
        sizes = layout.sizes(rule, [leaf.shape[stacked:] for leaf in ours], model.vocabulary_size)
        layers = range(rule.first, ours[0].shape[0]) if stacked else None
        gate = gates.get(rule.ours[0])
        if gate is not None and (gate.layout, gate.dims, gate.first) != (
            rule.layout,
            rule.dims,
            rule.first,
        ):
            raise ValueError(f"{architecture.model_type}: {gate} can't repeat {rule}")
        found.append(
            Row(
                rule,
                ours,
                sizes,
                layout.shape(rule, sizes),
                layers,
                () if gate is None else (gate.theirs,),
            )
        )
    if missing:
        raise ValueError(f"{architecture.model_type}: no rule for {', '.join(sorted(missing))}")
    return found


def holds(rule: Rule, paths: Container[str]) -> bool:
    """Whether what the rule depends on is there."""
    return all(
        (path.removeprefix("!") in paths) != path.startswith("!") for path in rule.when.split()
    )


def lacking_row(rule: Rule, entire: dict[str, Any], model: config.ModelConfig) -> Row:
    """A tensor of zeros in place of what the architecture has by its own config and the model lacks."""
    leaves, stacked = [entire[path] for path in rule.ours], "{}" in rule.theirs
    sizes = layout.sizes(rule, [leaf.shape[stacked:] for leaf in leaves], model.vocabulary_size)
    return Row(
        rule,
        (),
        sizes,
        layout.shape(rule, sizes),
        range(rule.first, leaves[0].shape[0]) if stacked else None,
    )


def zeros_row(rule: Rule, model: config.ModelConfig) -> Row:
    """A tensor of theirs that the model has no parameter for: its sizes are the config's."""
    stack = model.encoder if rule.ours[0].startswith("encoder.") else model
    sizes = {
        "d": stack.width,
        "e": stack.token_width,
        "h": stack.heads,
        "g": stack.key_value_heads,
        "k": stack.width_per_head,
        "f": stack.hidden_width,
        "v": stack.vocabulary_size,
        "p": stack.context_length + stack.position_offset,
        "t": stack.token_types,
        "b": stack.relative_buckets,
    }
    layers = range(rule.first, stack.layers) if "{}" in rule.theirs else None
    return Row(rule, (), sizes, layout.shape(rule, sizes), layers)


class Tensors:
    """The tensors of a directory by the names of the architecture's table."""

    def __init__(self, architecture: Architecture, listing: Listing):
        self.architecture, self.listing = architecture, listing
        self.entries: dict[str, Entry] = {}
        for entry in listing.entries.values():
            name = entry.name
            for pattern, new in architecture.renamed.items():
                name = re.sub(pattern, new, name)
            if name in self.entries:
                raise entry.refuse(f"is there as {files.plain(self.entries[name].name)} too")
            self.entries[name] = entry

    def find(self, name: str) -> tuple[str, Entry] | None:
        """The tensor, which base models have under a shorter name, and the name that it has."""
        root = self.architecture.root
        for known in (name, name.removeprefix(root)):
            if known in self.entries:
                return known, self.entries[known]
        return None

    def __contains__(self, name: object) -> bool:
        return self.find(str(name)) is not None

    def any(self, name: str) -> bool:
        """Whether it is there and has a number that is not 0."""
        found = self.find(name)
        return found is not None and files.any_number(found[1])


class Use(NamedTuple):
    """A row with the tensors that are there for it: (layer, tensor)."""

    row: Row
    entries: tuple[tuple[int | None, Entry], ...]


def assign(tensors: Tensors, found: list[Row]) -> list[Use]:
    """Which tensor is read for what. UserError for one that is missing, left over or of another shape."""
    left, uses = dict(tensors.entries), []
    for row in found:
        entries = []
        for layer, name in row.names():
            match = resolve(tensors, found, name)
            if match is None:
                if row.rule.zeros:
                    continue
                raise UserError(
                    f"{tensors.listing.source}: {name}: there is no such tensor, expected {shown(row.shape)}"
                )
            known, entry = match
            left.pop(known, None)
            check(row, entry)
            entries.append((layer, entry))
            for again in repeats(row, layer):
                left.pop(check_repeated(tensors, again, entry), None)
        uses.append(Use(row, tuple(entries)))
    check_rest(tensors, found, left)
    return uses


def check_repeated(tensors: Tensors, name: str, entry: Entry) -> str:
    """The name in the file of the tensor that has the same numbers."""
    match = tensors.find(name)
    if match is None:
        raise UserError(
            f"{tensors.listing.source}: {name}: there is no such tensor, expected {shown(entry.shape)}"
        )
    if not files.equal(match[1], entry):
        raise match[1].refuse(
            f'differs from {files.plain(entry.name)}, which it must repeat as "jaxlm" in config.json has it'
        )
    return match[0]


def resolve(tensors: Tensors, found: list[Row], name: str) -> tuple[str, Entry] | None:
    """The tensor, or one that repeats it: files may hold shared numbers under any of their names."""
    taken = {row.rule.theirs for row in found if row.ours}
    repeated = [
        alias
        for alias, of in tensors.architecture.aliases.items()
        if of == name and alias not in taken
    ]
    return next(
        (match for match in map(tensors.find, (name, *repeated)) if match is not None), None
    )


def check(row: Row, entry: Entry) -> None:
    if entry.dtype not in files.FLOATS:
        raise entry.refuse(
            f"has dtype {entry.dtype}; weights are read as {', '.join(files.FLOATS)}"
        )
    if entry.shape != row.shape:
        raise entry.refuse(f"has shape {shown(entry.shape)}, expected {shown(row.shape)}")
    if not row.ours and files.any_number(entry):
        raise entry.refuse("has numbers other than 0, which this model has no place for")


def check_rest(tensors: Tensors, found: list[Row], left: dict[str, Entry]) -> None:
    """What no row reads must repeat what one does, or be of no use to the model."""
    architecture, extra = tensors.architecture, []
    again = {copy for row in found for layer, _ in row.names() for copy in copies(row, layer)}
    for name, entry in left.items():
        full = (name, architecture.root + name)
        alias = next(
            (architecture.aliases[each] for each in full if each in architecture.aliases), None
        )
        original = resolve(tensors, found, alias) if alias is not None else None
        if original is not None and original[1] is not entry:
            if not files.equal(entry, original[1]):
                raise entry.refuse(
                    f"differs from {files.plain(original[1].name)}, which it must repeat as config.json has it"
                )
        elif not again.intersection(full) and not any(
            re.fullmatch(pattern, each) for pattern in architecture.ignored for each in full
        ):
            extra.append(entry)
    if extra:
        more = "".join(f", {files.plain(entry.name)}" for entry in extra[1:SHOWN])
        more += f" and {len(extra) - SHOWN} more" if len(extra) > SHOWN else ""
        raise extra[0].refuse(
            f"is no tensor of a {architecture.model_type} model with this config.json{more and f'; nor is{more[1:]}'}"
        )


def shown(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def read(
    architecture: Architecture,
    model: config.ModelConfig,
    listing: Listing,
    shapes: Tree,
    shardings: Tree | None,
    dtype: Any,
    whole: Tree | None = None,
) -> Tree:
    """The parameters, in `dtype` and where `shardings` says (None: all on the default device). `whole` is that of `rows`."""
    uses = assign(Tensors(architecture, listing), rows(architecture, model, shapes, whole))
    placed = {} if shardings is None else by_path(shardings)
    largest = max((entry.size for use in uses for _, entry in use.entries), default=0)
    params: dict[str, Array] = {}
    with Reader(largest) as reader:
        for use in uses:
            if use.row.ours:
                params |= read_row(use, reader, placed, dtype, 0.0 if model.norm_offset else 1.0)
    # Tree order is not the rules' order.
    return jax.tree_util.tree_map_with_path(
        lambda path, _: params[jax.tree_util.keystr(path, simple=True, separator=".")], shapes
    )


def read_row(
    use: Use, reader: Reader, placed: dict[str, Sharding], dtype: Any, unit: float
) -> dict[str, Array]:
    """The parameters of one row. `unit` is the scale of a norm that does nothing."""
    row = use.row
    targets = [
        Target(leaf.shape, placed.get(path), dtype)
        for path, leaf in zip(row.rule.ours, row.ours, strict=True)
    ]
    for target, path in zip(targets, row.rule.ours, strict=True):
        if row.rule.first and path.endswith("scale"):
            for layer in range(row.rule.first):
                target.fill(layer, unit)
    for layer, entry in use.entries:
        views = layout.views(row.rule, reader.read(entry), row.sizes)
        for target, view in zip(targets, views, strict=True):
            target.put(layer, view)
    return {path: target.array() for path, target in zip(row.rule.ours, targets, strict=True)}


class Target:
    """The shards of one parameter that this host holds; devices with the same shard share one buffer."""

    def __init__(self, shape: tuple[int, ...], sharding: Sharding | None, dtype: Any):
        self.shape, self.sharding = shape, sharding
        indices = (
            {None: (slice(None),) * len(shape)}
            if sharding is None
            else sharding.addressable_devices_indices_map(shape)
        )
        self.devices = {device: bounds(index, shape) for device, index in indices.items()}
        spans = dict.fromkeys(self.devices.values())
        # Rows that only pad the vocabulary are zeros, and stay it.
        self.buffers = {
            span: files.aligned([stop - start for start, stop in span], dtype) for span in spans
        }

    def put(self, layer: int | None, view: np.ndarray) -> None:
        for inside, span in self.each(layer):
            part = view[tuple(slice(start, stop) for start, stop in span)]
            inside[tuple(slice(size) for size in part.shape)] = part

    def fill(self, layer: int, value: float) -> None:
        for inside, _ in self.each(layer):
            inside[...] = value

    def each(self, layer: int | None) -> Iterator[tuple[np.ndarray, Span]]:
        """A layer's part of every buffer, and what of the layer it is."""
        for span, buffer in self.buffers.items():
            if layer is None:
                yield buffer, span
            elif span[0][0] <= layer < span[0][1]:
                yield buffer[layer - span[0][0]], span[1:]

    def array(self) -> Array:
        """The global array. The buffers must not be written any more: on a CPU they are its memory."""
        if self.sharding is None:
            array = jax.device_put(next(iter(self.buffers.values())))
        else:
            shards = [
                jax.device_put(self.buffers[span], SingleDeviceSharding(device))
                for device, span in self.devices.items()
            ]
            array = jax.make_array_from_single_device_arrays(self.shape, self.sharding, shards)
        return jax.block_until_ready(
            array
        )  # until a copy to another kind of device is done it holds on to the buffers


def bounds(index: Any, shape: tuple[int, ...]) -> Span:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def written(found: list[Row], dtype: str) -> list[Tensor]:
    """What `arrays` gives, in its order."""
    return [
        Tensor(name, dtype, row.shape)
        for row in found
        for layer, first in row.names()
        for name in (first, *copies(row, layer))
    ]


def copies(row: Row, layer: int | None) -> list[str]:
    return [name.replace("{}", str(layer)) for name in (*row.rule.copies, *row.repeated)]


def repeats(row: Row, layer: int | None) -> list[str]:
    return [name.replace("{}", str(layer)) for name in row.repeated]


def arrays(found: list[Row], params: Tree, dtype: str) -> Iterator[np.ndarray]:
    """The numbers of `written`, one tensor after another."""
    known = by_path(params)
    for row in found:
        for layer, _ in row.names():
            theirs = np.zeros(row.shape, files.FLOATS[dtype])
            views = layout.views(row.rule, theirs, row.sizes) if row.ours else []
            for path, view in zip(row.rule.ours, views, strict=False):
                for span, piece in pieces(known[path], layer):
                    part = view[
                        tuple(slice(start, stop) for start, stop in span)
                    ]  # padded rows are behind its end
                    part[...] = piece[tuple(slice(size) for size in part.shape)]
            yield theirs
            for _ in copies(row, layer):
                yield theirs


def pieces(leaf: Array, layer: int | None) -> Iterator[tuple[Span, np.ndarray]]:
    """One layer of a stacked parameter, or all of one that isn't stacked, as the devices hold it: (what of it, numbers)."""
    if not isinstance(leaf, jax.Array):
        whole = leaf if layer is None else leaf[layer]
        yield tuple((0, size) for size in whole.shape), whole
        return
    if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        raise ValueError(
            "parameters that are spread over several processes can't be written by one"
        )
    shards = {bounds(shard.index, leaf.shape): shard for shard in leaf.addressable_shards}
    for span, shard in shards.items():
        if layer is None:
            yield span, np.asarray(shard.data)
        elif span[0][0] <= layer < span[0][1]:
            row = layer - span[0][0]
            yield (
                span[1:],
                np.asarray(shard.data)[row]
                if on_host(shard)
                else np.asarray(one_layer(shard.data, row)),
            )


def on_host(shard: Any) -> bool:
    """Whether the whole stack is in host memory already; from elsewhere only the layer is fetched."""
    return shard.device.platform == "cpu"


@jax.jit
def one_layer(stack: Array, layer: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)


def check_tree(shapes: Tree, params: Tree) -> None:
    """ValueError where `params` are not those of the model."""
    expected = {path: leaf.shape for path, leaf in by_path(shapes).items()}
    given = {path: tuple(leaf.shape) for path, leaf in by_path(params).items()}
    wrong = [path for path in expected | given if expected.get(path) != given.get(path)]
    if wrong:
        raise ValueError(
            f"{wrong[0]}: shape {given.get(wrong[0])} given, {expected.get(wrong[0])} in the model"
        )
