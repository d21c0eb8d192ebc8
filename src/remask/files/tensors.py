"""Reads checkpoint files as data: no code in them is executed. The format is found by content, not by file name.

Formats: safetensors, torch's zip archives, and torch's format before 1.6. Beside tensors, a checkpoint may hold objects
of any class (arguments, paths, numpy scalars, configurations of other packages). Inert stand-ins replace these objects,
so that the weights can be read, and an object in the place of a weight can be named in an error.
"""

import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from remask.errors import UserError
from remask.files.bounds import MOST_WEIGHTS, open_regular, unfolds_to
from remask.files.memory import no_memory
from remask.files.system_errors import refuse_shortage

HEAD = 512
"""Bytes read from the beginning of a file to recognise its format."""

RUNNABLE = re.compile(r"(?:__builtin__|builtins|os|posix|nt|sys|subprocess|shutil|socket|runpy|importlib|webbrowser)\.")
HARMLESS = frozenset((
    "set", "frozenset", "complex", "bytearray", "slice", "range", "xrange", "object", "list", "dict", "tuple",
    "getattr",
))  # fmt: skip
"""Builtins that pickles of plain data name; stand-ins replace them too. Enumerations are pickled with getattr."""

KNOWN_AS = {
    f"numpy.{core}.multiarray.{own}": name
    for core in ("core", "_core")
    for own, name in {"scalar": "numpy number", "_reconstruct": "numpy array"}.items()
}
PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
WEB = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<script")
WANTED = "give a file that torch.save or safetensors wrote"
CURE = 'where the network was trained, save its weights alone: torch.save(model.state_dict(), "weights.pth")'
OTHERS: Mapping[bytes, str] = {
    b"\x1f\x8b": "is compressed by gzip: unpack it and give the file inside",
    b"BZh": "is compressed by bzip2: unpack it and give the file inside",
    b"\xfd7zXZ": "is compressed by xz: unpack it and give the file inside",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it and give the file inside",
    b"\x89HDF": f"is an HDF5 file, as Keras writes it: {WANTED}",
    b"GGUF": f"is a GGUF file: {WANTED}",
    b"\x93NUMPY": f"is one array of numpy: {WANTED}",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: fetch that with git lfs pull",
}
"""Beginnings of files that are no checkpoint, and what to do."""

BEGINNING = ("PROTO", "EMPTY_DICT", "BINPUT", "LONG_BINPUT", "PUT")
ENDS_OF_MARKS = ("SETITEMS", "APPENDS", "TUPLE", "LIST", "DICT", "POP_MARK", "OBJ", "INST", "ADDITEMS", "FROZENSET")


class Foreign:
    """Inert stand-in for an object of a class that is not imported: accepts any arguments and state, does nothing.

    origin  qualified name of the class in the file
    kind    list or OrderedDict if the pickle appends or sets items on the object: it then becomes an empty one of these
    """

    origin = "an object"
    kind: type = object

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return cls.kind() if cls.kind in (list, OrderedDict) else super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


REFUSED: Mapping[re.Pattern[str], type] = {
    re.compile(r"GLOBAL (\S+) was not an allowed global"): Foreign,
    re.compile(r"unsupported GLOBAL (\S+) whose module"): Foreign,
    re.compile(r"Can only (?:append|extend).* but got <class '([^']+)'>"): list,
    re.compile(r"Can only SETITEMS? .* but got <class '([^']+)'>"): OrderedDict,
}
"""Torch's messages about a class it refuses (group 1 is its name), and the kind of stand-in that replaces it."""


def content_of(path: Path) -> Any:
    """Content of a checkpoint, tensors on the CPU, usually a dict; `Foreign` replaces objects of other classes.

    Raises UserError, in one line, for a file that cannot be read, is no checkpoint, is damaged, or would run code.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path} cannot be read: it is a folder; give a file in it")
        with open_regular(path, MOST_WEIGHTS) as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if why := _no_checkpoint(path, head):
        raise UserError(f"{path} {why}")
    try:
        with torch.device("cpu"):  # the caller may be in torch.device("meta")
            content = load_file(path) if _is_safetensors(path, head) else _unpickled(path)
            if why := unfolds_to(unfolded(content), path.stat().st_size):
                raise UserError(f"{path} holds tensors that are expanded from few numbers: {why}; save them as clones")
            return content
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except DAMAGED as error:
        refuse_shortage(error, path)
        raise UserError(f"{path} is damaged or no checkpoint: {reason_of(error)}; download or copy it again") from error


DAMAGED = (
    SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, ImportError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error,
)  # fmt: skip
"""What torch's, pickle's and zipfile's readers raise on damaged files: nearly everything, as the fuzzing shows."""


def unfolded(content: Any, known: set[int] | None = None) -> int:
    """Bytes that the tensors of nested entries would take, each for itself, which may be more than their storages."""
    known = set() if known is None else known
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    entries = content.values() if isinstance(content, Mapping) else content if isinstance(content, list | tuple) else ()
    if not entries or id(content) in known:
        return 0
    known.add(id(content))
    return sum(unfolded(entry, known) for entry in entries)


def reason_of(error: BaseException) -> str:
    """The first line of what a reader raised, without torch's advice to load files as code."""
    first = (str(error).splitlines() or ["it ends too early"])[0]
    if no_memory(error):
        return "it claims more memory than there is"
    return "it holds more than tensors and plain values" if "weights" in first.lower() else first


def described(entry: object) -> str:
    """Type of a non-tensor entry, with an article, for error messages: "a dict", "an int"."""
    if isinstance(entry, Foreign):
        return f"a {entry.origin}"
    if isinstance(entry, type) and issubclass(entry, Foreign):
        return f"the class {entry.origin}"
    name = "None" if entry is None else type(entry).__name__
    return name if entry is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"


def refuse_non_finite(state: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise UserError if a weight is NaN or infinite; it names the first tensor and counts its values and the tensors.

    Tensors on the "meta" device pass. where: the file or spec that the error names.
    """
    floats = {name: t for name, t in state.items() if t.is_floating_point() and not t.is_meta}
    faults = {name: count for name, t in floats.items() if (count := int((~torch.isfinite(t)).sum()))}
    if faults:
        first = next(iter(faults))
        others = f", and so do {len(faults) - 1} other tensors" if len(faults) > 1 else ""
        raise UserError(
            f"{where} holds weights that are not finite: {first} has {faults[first]:,} of {state[first].numel():,} "
            f"values NaN or infinite{others}; take a checkpoint from before its training diverged"
        )


def _no_checkpoint(path: Path, head: bytes) -> str | None:
    """Why a file that begins with `head` holds no weights, and the remedy; None if it may hold weights."""
    if not head:
        return "is empty, 0 bytes: download or copy it again"
    if reason := next((why for start, why in OTHERS.items() if head.startswith(start)), None):
        return reason
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it and give the file inside"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(WEB):
        return "is a web page, saved in the place of the file: download the file itself"
    if head.startswith(b"PK"):
        return _no_torch_archive(path)
    if not any(byte < 9 or 13 < byte < 32 for byte in head):
        return f"is a text file, not weights: {WANTED}"
    if _is_safetensors(path, head) or head.startswith(PICKLES):
        return None
    return f"is damaged or no checkpoint: {WANTED}, or download it again"


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Whether `head` is a header length (uint64) and "{", or the suffix is .safetensors and `head` is not torch's."""
    return (head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000) or (
        path.suffix == ".safetensors" and not head.startswith((b"PK", *PICKLES))
    )


def _no_torch_archive(path: Path) -> str | None:
    """Why a zip archive is no checkpoint of torch, and the remedy; None if it is one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names, sizes = archive.namelist(), [info.file_size for info in archive.infolist()]
        if why := unfolds_to(sum(sizes), path.stat().st_size):
            return f"is an archive that claims too much: {why}; {WANTED}"
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError, struct.error) as error:
        return f"is damaged or cut off ({error}): download or copy it again"
    if any(name.endswith("constants.pkl") for name in names):
        return "is a TorchScript archive, which holds code: save torch.jit.load(FILE).state_dict() and give that file"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if any(name.endswith(".npy") for name in names):
        return f"is an archive of numpy arrays, as JAX's models come: {WANTED}"
    return "is a zip archive without weights of torch: unpack it and give the file inside"


def _unpickled(path: Path) -> Any:
    """Content of a torch file, with a stand-in for every class that `weights_only` refuses."""
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    stand_ins = {name: _stand_in(path, name) for name in unknown}
    while True:
        try:
            allowed = torch.serialization.safe_globals([(made, name) for name, made in stand_ins.items()])
            with allowed, open(path, "rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name, kind = _refused(str(error))
            if name is None or (name in stand_ins) == (kind is Foreign) or stand_ins.get(name) is kind:
                raise UserError(f"{path} cannot be read as data alone ({_reason(str(error))}); {CURE}") from error
            stand_ins[name] = _stand_in(path, name, kind)


def _refused(message: str) -> tuple[str | None, type]:
    """Name of the class that torch's message says it refused, None if unknown, and the kind of stand-in to try."""
    for pattern, kind in REFUSED.items():
        if match := pattern.search(message):
            return match[1] if "." in match[1] else f"builtins.{match[1]}", kind
    return None, Foreign


def _reason(message: str) -> str:
    """Why torch refused a pickle, in our words: its own advise users to load it as code."""
    if "persistent_load" in message:
        return "it holds a whole network, not its weights"
    name = _refused(message)[0]
    return f"it holds a {name}" if name else "its pickle is damaged or holds more than tensors and plain values"


def _stand_in(path: Path, name: str, kind: type = Foreign) -> type[Foreign]:
    """An inert class for the pickle's global `name`. Raises UserError if `name` could run code."""
    if RUNNABLE.match(name) and name.rpartition(".")[2] not in HARMLESS:
        entry = _entry_of(path, name)
        where = f'its entry "{entry}"' if entry else "it"
        raise UserError(f"{path} was refused, for loading it could run code: {where} calls {name}; {CURE}")
    module, _, class_name = name.rpartition(".")
    attributes = {"origin": KNOWN_AS.get(name, name), "kind": kind, "__module__": module}
    return type(class_name, (Foreign,), attributes)


def _entry_of(path: Path, name: str) -> str | None:
    """Key of the outermost dictionary under which the pickle names a global; None if it does so outside of it."""
    depth, outermost, entry = 0, -1, None
    for operation, argument in _operations(path):
        if outermost < 0 and operation not in BEGINNING:
            outermost = int(operation == "MARK")
        if operation == "MARK":
            depth += 1
        elif operation in ENDS_OF_MARKS:
            depth -= 1
        elif operation == "GLOBAL" and str(argument).replace(" ", ".").replace("__builtin__.", "builtins.") == name:
            return entry
        elif "UNICODE" in operation and depth == outermost:
            entry = str(argument)
    return None


def _operations(path: Path) -> Iterator[tuple[str, Any]]:
    """(opcode name, argument) of the file's pickle, disassembled and not executed."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            yield from ((code.name, argument) for code, argument, _ in pickletools.genops(archive.read(member)))
        return
    with open(path, "rb") as file:
        for _ in range(3):  # pickles of a magic number, a version and the sizes of types come first
            for _ in pickletools.genops(file):
                pass
        yield from ((code.name, argument) for code, argument, _ in pickletools.genops(file))


__all__ = ["DAMAGED", "Foreign", "content_of", "described", "reason_of", "refuse_non_finite", "unfolded"]
