"""Reversible escaping, so that any file name can be printed, stored and drawn; `literal` undoes `printable`.

File names are bytes. Bytes that are not UTF-8 reach Python as surrogates (PEP 383), which cannot be encoded again.
Such a byte is written as \\xe9, and an unprintable character as \\n, \\u2028 or \\U000e0001, the notation of a shell's
$'...'. A backslash stays as it is, unless the text after it would read as an escape: then the backslash is doubled.
"""

import codecs
import io
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_ESCAPE = re.compile(r"\\(?:([nrt\\])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG = {short[1]: char for char, short in _SHORT.items()} | {"\\": "\\"}
_BYTES = range(0xDC80, 0xDD00)
"""Surrogates that PEP 383 uses for the bytes 0x80 to 0xff."""
MARK = "escaped:"
"""Prefix of an escaped string in a TOML file; TOML strings cannot hold arbitrary bytes."""


def printable(name: str | Path) -> str:
    """The name as one printable line; different names give different lines, and `literal` restores the name."""
    text = str(name)
    if text.isprintable() and "\\" not in text:
        return text
    escaped = ""
    for char in reversed(text):
        shown = _shown(char)
        escaped = shown + (shown if char == "\\" and _ESCAPE.match(shown + escaped) else "") + escaped
    return escaped


def literal(text: str) -> str:
    """The original name of a text that `printable` escaped."""

    def char(match: re.Match[str]) -> str:
        if match[1]:
            return _LONG[match[1]]
        if match[2]:
            value = int(match[2], 16)
            return chr(value if value < 0x80 else value + 0xDC00)
        return chr(int(match[3] or match[4], 16))

    return _ESCAPE.sub(char, text)


def on_one_line(text: str) -> str:
    """The text with unprintable characters escaped, as one line; backslashes are not doubled, so this is not undone."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    number = ord(char)
    if char.isprintable():
        return char
    if number in _BYTES:
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return _SHORT.get(char, f"\\x{number:02x}")
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def quoted(word: str | Path) -> str:
    """The word quoted for a shell, as one printable line."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    inside = on_one_line(text.replace("\\", "\\\\").replace("'", "\\'"))
    return f"$'{inside}'"


def escape_on(*streams: object) -> None:
    """Make text streams escape characters that they cannot encode, instead of raising UnicodeEncodeError."""
    codecs.register_error("escape", _escape_unencodable)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="escape")


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unencodable = error.object[error.start : error.end]
    text = "".join(_shown(char) if ord(char) in _BYTES else char for char in unencodable)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def is_text(text: str) -> bool:
    """Whether the text can be encoded as UTF-8, that is, holds no surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encodable(content: Any) -> Any:
    """JSON content (nested dicts and lists) with every string, keys too, that holds surrogates escaped."""
    if isinstance(content, str):
        return content if is_text(content) else printable(content)
    if isinstance(content, Mapping):
        return {encodable(key): encodable(value) for key, value in content.items()}
    return [encodable(value) for value in content] if isinstance(content, list | tuple) else content


def in_utf8(text: str) -> str:
    """The text with surrogates escaped, and all other characters unchanged; for HTML pages."""
    return text if is_text(text) else _SURROGATE.sub(lambda match: _shown(match[0]), text)


def marked(text: str) -> str:
    """The text for a TOML string: unchanged if it is UTF-8, else `MARK` and the escaped text."""
    return text if is_text(text) and not text.startswith(MARK) else MARK + printable(text)


def unmarked(content: Any) -> Any:
    """TOML content (nested dicts and lists) with the strings that `marked` escaped restored."""
    if isinstance(content, str):
        return literal(content.removeprefix(MARK)) if content.startswith(MARK) else content
    if isinstance(content, dict):
        return {key: unmarked(value) for key, value in content.items()}
    return [unmarked(value) for value in content] if isinstance(content, list) else content


__all__ = [
    "encodable",
    "escape_on",
    "in_utf8",
    "is_text",
    "literal",
    "marked",
    "on_one_line",
    "printable",
    "quoted",
    "unmarked",
]
