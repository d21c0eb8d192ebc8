"""Reads small text files: UTF-8, or UTF-16/32 with a byte order mark, with any line ends; also JSON and TOML."""

import codecs
import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files.bounds import MOST_TEXT, read_file
from remask.files.escaping import unmarked

LONGEST = 255
"""Maximum length of a file name in bytes, on all common file systems."""

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's mark, which is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks and their encodings (The Unicode Standard, section 23.8)."""


def decoded(data: bytes, where: str, *, names: bool = False) -> str:
    """The text of a file, without its byte order mark, every line end as a line feed.

    where   the file, as errors name it
    names   the text holds file names, which need not be UTF-8: other bytes become surrogates, as in `os.fsdecode`
    Raises UserError, with the line number, for bytes that do not decode.
    """
    mark, encoding = next(((mark, name) for mark, name in MARKS if data.startswith(mark)), (b"", "utf-8"))
    content = data[len(mark) :]
    try:
        text = content.decode(encoding, "surrogateescape" if names and encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        line = _line(content[: error.start].decode(encoding, "replace"))
        what = encoding.removesuffix("-le").removesuffix("-be").upper()
        raise UserError(f"{where}: line {line} is not {what} text") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = _line(text[: text.index("\0")])
        raise UserError(f"{where}: line {line} holds a NUL byte, which no text does: save the file as UTF-8")
    return text


def read_text(path: str | Path, where: str | None = None, *, names: bool = False, most: int = MOST_TEXT) -> str:
    """The text of the regular file at `path`, of `most` bytes; see `decoded`. Raises OSError and UserError."""
    return decoded(read_file(path, most), where or str(path), names=names)


def read_json(path: str | Path, where: str | None = None, *, most: int = MOST_TEXT) -> Any:
    """The content of a JSON file. Raises OSError, UserError for bytes that are no text, ValueError for other faults."""
    try:
        return json.loads(read_text(path, where, most=most))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_toml(path: str | Path, where: str | None = None) -> dict[str, Any]:
    """The content of a TOML file; strings that `escaping.marked` wrote are unescaped.

    Raises OSError, UserError for bytes that are no text, tomllib.TOMLDecodeError.
    """
    try:
        content: dict[str, Any] = unmarked(tomllib.loads(read_text(path, where)))
    except RecursionError:
        raise tomllib.TOMLDecodeError("it is nested too deeply") from None
    except ValueError as error:  # tomllib's own, or Python's for a number of more than 4,300 digits
        raise tomllib.TOMLDecodeError(str(error)) from None
    return content


def tmp_beside(file: Path) -> Path:
    """Path of the hidden temporary file that replaces `file` once complete; its name is at most LONGEST bytes."""
    name = f".{file.name}.part"
    if len(os.fsencode(name)) > LONGEST:
        name = f".{hashlib.blake2b(os.fsencode(file.name), digest_size=16).hexdigest()}.part"
    return file.with_name(name)


def _line(before: str) -> int:
    """The number of the line that begins after the last line end of `before`."""
    return 1 + before.replace("\r\n", "\n").replace("\r", "\n").count("\n")


__all__ = ["LONGEST", "decoded", "read_json", "read_text", "read_toml", "tmp_beside"]
