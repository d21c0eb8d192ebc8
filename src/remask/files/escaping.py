"""Names of any kind as text that can be printed, stored and drawn: one escape, which `literal` undoes.

File names are bytes. Those that are no UTF-8 reach Python as surrogates (PEP 383), which no file and no screen takes.
Such a byte is written as \\xe9, and a character that does not print as \\n, \\u2028 or \\U000e0001, as a shell's $'...'
reads them too. A backslash stays as it is, unless it could be taken for the begin of an escape: it is doubled then.
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
"""Surrogates that stand for the bytes 0x80 to 0xff."""
MARK = "escaped:"
"""Begins a text in a TOML file that is escaped, for TOML cannot say a byte."""


def printable(name: str | Path) -> str:
    """A name on one line that prints everywhere; no two names become the same."""
    text = str(name)
    if text.isprintable() and "\\" not in text:
        return text
    found = ""
    for char in reversed(text):
        shown = _shown(char)
        found = shown + (shown if char == "\\" and _ESCAPE.match(shown + found) else "") + found
    return found


def literal(text: str) -> str:
    """The name that `printable` escaped."""

    def char(found: re.Match[str]) -> str:
        if found[1]:
            return _LONG[found[1]]
        if found[2]:
            value = int(found[2], 16)
            return chr(value if value < 0x80 else value + 0xDC00)
        return chr(int(found[3] or found[4], 16))

    return _ESCAPE.sub(char, text)


def on_one_line(text: str) -> str:
    """A sentence in which names may stand, on one line that prints everywhere; backslashes stay as they are."""
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
    """A word as a shell reads it, on one line that prints everywhere."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    inside = on_one_line(text.replace("\\", "\\\\").replace("'", "\\'"))
    return f"$'{inside}'"


def escape_on(*streams: object) -> None:
    """Let streams escape what they cannot encode: a name on the screen is no reason to stop."""
    codecs.register_error("escape", _instead)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="escape")


def _instead(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    odd = error.object[error.start : error.end]
    text = "".join(_shown(char) if ord(char) in _BYTES else char for char in odd)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def is_text(text: str) -> bool:
    """Whether it can be encoded: it holds no bytes that are no UTF-8, and no half of a pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encodable(content: Any) -> Any:
    """JSON's content without surrogates, which its readers refuse: texts that hold some are escaped, keys too."""
    if isinstance(content, str):
        return content if is_text(content) else printable(content)
    if isinstance(content, Mapping):
        return {encodable(key): encodable(value) for key, value in content.items()}
    return [encodable(value) for value in content] if isinstance(content, list | tuple) else content


def in_utf8(text: str) -> str:
    """A page's text with what cannot be encoded escaped."""
    return text if is_text(text) else _SURROGATE.sub(lambda found: _shown(found[0]), text)


def marked(text: str) -> str:
    """A text as a TOML file takes it: as it is, or escaped behind a mark."""
    return text if is_text(text) and not text.startswith(MARK) else MARK + printable(text)


def unmarked(content: Any) -> Any:
    """A TOML file's content with the texts that `marked` escaped."""
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
