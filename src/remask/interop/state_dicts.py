"""Which tensors of a file are the network: its entry, a moving average where there is one, without wrappers' prefixes.

One way for every layout of interop/. A tensor that each network of a layout has, its anchor, is searched under any
prefix (module., model., encoder., backbone., _orig_mod., student., net. and combinations of them) in any entry of the
file: the text before it is the prefix of the whole network. Classifiers beside it are left out and named.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from remask.errors import UserError
from remask.files.tensors import Foreign, content_of, described
from remask.interop.layouts import AVERAGES, CLASSIFIERS, COUNTERS, ENTRIES, LAYOUTS, MOCO, NO_NETWORK, WRAPPERS, Layout

State: TypeAlias = Mapping[str, Tensor]
Source: TypeAlias = str | Path | Mapping[str, Any]

DEPTH = 4
"""Levels of nested entries that are searched."""


class Copy(NamedTuple):
    """One network in a file: the names of its entry, outermost first, the entry, and the prefix of its names."""

    path: tuple[str, ...]
    entry: Mapping[str, Any]
    prefix: str

    @property
    def average(self) -> bool:
        return not AVERAGES.isdisjoint((*self.path, *self.prefix.split(".")))

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f'its entry "{".".join(map(str, self.path))}"' if self.path else "it"

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of its tensors, without classifiers, by their names without the prefix."""
        return {name: tensor.shape for name, tensor in self.tensors() if not CLASSIFIERS.match(name)}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for key, value in self.entry.items():
            if isinstance(key, str) and key.startswith(self.prefix) and isinstance(value, Tensor):
                yield key.removeprefix(self.prefix), value


class FileState(NamedTuple):
    """The tensors of a network in its layout's official names, with its decoder, and where they come from.

    where      the file, as messages name it
    copy       the entry of the file, as messages name it
    left_out   names of other tensors and values in the file
    said       remarks for the user
    new        number of tensors that the file lacks and that were created
    """

    state: dict[str, Tensor]
    where: str
    copy: str
    left_out: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    new: int = 0


def read(source: Source, kind: str | Layout = "mae", classifiers: bool = False) -> dict[str, Tensor]:
    """The tensors alone that `find` returns."""
    return find(source, kind, classifiers).state


def find(source: Source, kind: str | Layout = "mae", classifiers: bool = False) -> FileState:
    """The network of a file, or of a dict, in the official names of its layout.

    classifiers   include tensors named as classifiers, for a loader that takes all of a file and refuses unknown names
    A state without an anchor is returned as it is, for the loaders to name missing tensors. Raises UserError for a
    source without tensors, for an entry among the weights that is no tensor, and where several networks match equally.
    """
    layout = LAYOUTS[kind] if isinstance(kind, str) else kind
    where = "the state" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else content_of(Path(source))
    copies = [*_copies(content, layout)]
    if layout.names and copies:
        counts = [len(layout.names & copy.shapes().keys()) for copy in copies]
        copies = [copy for copy, count in zip(copies, counts, strict=True) if count == max(counts)]
    if not copies:
        path, entry = _state(content, where)
        return FileState(_tensors(entry, "", where, path)[0], where, Copy(path, entry, "").label)
    chosen, remarks = _chosen(copies, layout, where)
    return _named(chosen, layout, where, remarks, classifiers)


def label(source: Source) -> str:
    """The name of a source in messages."""
    return "the state" if isinstance(source, Mapping) else str(source)


def _copies(content: Any, layout: Layout, path: tuple[str, ...] = ()) -> Iterator[Copy]:
    """Every network of a layout in a file's entries."""
    if not isinstance(content, Mapping) or len(path) >= DEPTH:
        return
    ends = {anchor: f".{anchor}" for anchor in layout.anchors}
    prefixes = dict.fromkeys(
        key.removesuffix(anchor)
        for key in content
        for anchor, end in ends.items()
        if isinstance(key, str) and (key == anchor or key.endswith(end)) and not isinstance(content[key], Mapping)
    )
    yield from (Copy(path, content, prefix) for prefix in prefixes if MOCO.isdisjoint(prefix.split(".")))
    for name, entry in content.items():
        if name not in NO_NETWORK:
            yield from _copies(entry, layout, (*path, name))


def _chosen(copies: Sequence[Copy], layout: Layout, where: str) -> tuple[Copy, list[str]]:
    """The copy to load, a moving average where it is one of the whole network, and remarks on the choice."""
    if not layout.average:
        return _likeliest(copies, where), []
    average, plain = [copy for copy in copies if copy.average], [copy for copy in copies if not copy.average]
    if not average:
        return _likeliest(plain, where), []
    mean = _likeliest(average, where)
    if not plain:
        return mean, [f"{_copy_name(mean)} is a moving average"]
    other = _likeliest(plain, where)
    theirs, own = mean.shapes(), other.shapes()
    if all(theirs.get(name) == size for name, size in own.items() if _needed(name)):
        return mean, [f"{_copy_name(mean)}, a moving average, was preferred to {_copy_name(other)}"]
    return other, [f"{_copy_name(mean)} was passed over, for it is no moving average of all of {_copy_name(other)}"]


def _copy_name(copy: Copy) -> str:
    """The name of a copy in remarks: its prefix, or its entry where it has none."""
    return f"{copy.prefix}*" if copy.prefix else copy.label


def _needed(name: str) -> bool:
    """Whether a moving average must have a tensor: not where it belongs to a decoder, or follows from the sizes."""
    return not name.startswith(("decoder", "mask_token", "predictor", "proj")) and not name.endswith(
        ("relative_position_index", "attn_mask", "num_batches_tracked")
    )


def _likeliest(copies: Sequence[Copy], where: str) -> Copy:
    """The copy of the likeliest entry, then of the prefix with the fewest unknown names. Raises UserError for a tie."""

    def rank(copy: Copy) -> tuple[int, int]:
        place = [ENTRIES.index(name) for name in copy.path if name in ENTRIES]
        unknown = {wrapper for wrapper in copy.prefix.split(".") if wrapper} - WRAPPERS - AVERAGES
        return (place[0] if place else len(ENTRIES) * bool(copy.path)), len(unknown)

    ordered = sorted(copies, key=rank)
    ties = [copy for copy in ordered if rank(copy) == rank(ordered[0])]
    if len(ties) > 1:
        listed = ", ".join(copy.prefix + "*" if copy.prefix else copy.label for copy in ties)
        raise UserError(f"{where} holds several networks, {listed}: save the one that is meant to a file of its own")
    return ordered[0]


def _named(copy: Copy, layout: Layout, where: str, remarks: list[str], classifiers: bool) -> FileState:
    """A copy in the official names of its layout."""
    bare = [name for name, _ in copy.tensors()]
    native = next((own for start, own in layout.native.items() if any(name.startswith(start) for name in bare)), "")
    outer = copy.prefix.removesuffix(native)
    tensors, left_out = _tensors(copy.entry, copy.prefix, where, copy.path)
    heads = [] if classifiers else [name for name in tensors if CLASSIFIERS.match(name)]
    state, left_out = {native + name: tensors[name] for name in tensors if name not in heads}, [*left_out, *heads]
    for key, value in copy.entry.items():
        if not isinstance(key, str) or key.startswith(copy.prefix):
            continue
        name = key.removeprefix(outer)
        sibling = key.startswith(outer) and bool(native) and not CLASSIFIERS.match(name)  # a decoder, for instance
        if isinstance(value, Tensor) and (sibling or ("." not in key and key not in COUNTERS)):
            state.setdefault(name, value)  # it may belong to the network; if not, the loader refuses it
        else:
            left_out.append(key)
    if copy.prefix not in ("", native):
        remarks = [*remarks, f"the prefix {outer or copy.prefix} was taken off"]
    norm, other, new = f"{native}norm.weight", tensors.get("fc_norm.weight"), 0
    if other is not None and norm not in state and not classifiers:
        state |= {norm: torch.ones_like(other), f"{native}norm.bias": torch.zeros_like(other)}
        remarks, new = [*remarks, "its final norm is new, for the file has fc_norm in its place"], 2
    return FileState(state, where, copy.label, tuple(left_out), tuple(remarks), new)


def _tensors(
    entry: Mapping[str, Any], prefix: str, where: str, path: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under a prefix, without it, and the names of numbers and words among them.

    Raises UserError where something else stands in the place of a weight.
    """
    state, others = dict[str, Tensor](), list[str]()
    for key, value in entry.items():
        if not isinstance(key, str) or not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
            state[name] = value
        elif "." in name or name.endswith(("token", "embed")) or isinstance(value, Tensor):
            kind = "a sparse or quantised tensor" if isinstance(value, Tensor) else described(value)
            under = f' under "{".".join(map(str, path))}"' if path else ""
            raise UserError(
                f'{where} holds an entry that is no tensor: "{key}"{under} is {kind}; save the weights as plain tensors'
            )
        else:
            others.append(name)
    return state, others


def _state(content: Any, where: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The entry of a file that holds tensors, where none has an anchor. Raises UserError where there is none."""
    entries = [*_entries(content)]
    if entries:
        place = {name: number for number, name in enumerate(ENTRIES)}
        return min(entries, key=lambda item: min((place.get(n, len(place)) for n in item[0]), default=-1))
    if isinstance(content, Foreign):
        raise UserError(f"{where} holds {described(content)} as a whole: save its state_dict() and give that file")
    if not isinstance(content, Mapping):
        raise UserError(f"{where} holds no weights but {described(content)}: names and tensors were expected")
    if not content:
        raise UserError(f"{where} holds no weights: it is an empty dictionary")
    entry = next((f'"{name}" is {described(content[name])}' for name in ENTRIES if name in content), None)
    listed = ", ".join(f'"{name}" is {described(value)}' for name, value in [*content.items()][:4])
    raise UserError(
        f"{where} holds no weights: its entry {entry or listed}; names and tensors were expected, as a state_dict() is"
    )


def _entries(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    if isinstance(content, Mapping) and len(path) < DEPTH:
        if any(isinstance(value, Tensor) for value in content.values()):
            yield path, content
        for name, entry in content.items():
            if name not in NO_NETWORK:
                yield from _entries(entry, (*path, name))


__all__ = ["FileState", "Source", "State", "find", "label", "read"]
