"""Any name as text: nothing is lost, nothing becomes the same, and a shell, TOML and JSON read it back."""

import os
import subprocess
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remask.errors import UserError
from remask.files.escaping import encodable, in_utf8, is_text, literal, marked, on_one_line, printable, quoted, unmarked

ANY = st.text(st.characters(exclude_categories=()) | st.sampled_from("\\\\\\nrtxuU0aA8e9'\"$\n\udcff\x85\u202e"))


@given(ANY)
def test_a_name_comes_back(name: str) -> None:
    text = printable(name)
    assert text.isprintable()
    assert is_text(text)
    assert literal(text) == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain $_^[x]", "plain $_^[x]"),
        ("a\\b", "a\\b"),  # \b is no escape
        ("a\\new", "a\\\\new"),
        ("line\nbreak", "line\\nbreak"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("caf\\xe9", "caf\\\\xe9"),
        ("\x85", "\\u0085"),  # a character, where \x85 is a byte
        (os.fsdecode(b"\x85"), "\\x85"),
        ("עברית\u202e", "עברית\\u202e"),
        ("\ud800", "\\ud800"),
        ("\\" + os.fsdecode(b"\xff"), "\\\\\\xff"),
    ],
)
def test_the_escape(name: str, text: str) -> None:
    assert printable(name) == text


@given(ANY)
def test_toml_gives_back_what_it_was_given(name: str) -> None:
    text = f"escaped:{name}" if name.startswith("e") else name
    assert is_text(marked(text))
    assert unmarked({"a": [marked(text)]}) == {"a": [text]}


def test_a_text_that_begins_like_an_escaped_one_is_told_from_it() -> None:
    assert unmarked(tomllib.loads(f"a = '{marked('escaped:x')}'")) == {"a": "escaped:x"}


@pytest.mark.parametrize(
    "name", ["plain", "two words", "it's", "a\nb'\\", os.fsdecode(b"caf\xe9\\n"), "\u202e🐜", "$HOME"]
)
def test_a_shell_reads_a_quoted_word(name: str) -> None:
    shell = subprocess.run(["bash", "-c", f"printf %s {quoted(name)}"], capture_output=True, env={"LC_ALL": "C.UTF-8"})
    assert os.fsdecode(shell.stdout) == name
    assert quoted(name).isprintable()


def test_json_has_no_surrogates() -> None:
    found = encodable({"a\udcff": ["\udce9", ("é", 1, None)], "b": "\ud800", "c": "a\\xff"})
    assert found == {"a\\xff": ["\\xe9", ["é", 1, None]], "b": "\\ud800", "c": "a\\xff"}


def test_sentences_keep_their_backslashes() -> None:
    assert on_one_line("at a\\new: b\nc \udcff") == "at a\\new: b\\nc \\xff"
    assert in_utf8("two\nlines \udcff") == "two\nlines \\xff"
    assert str(UserError("no file a\nb\udcff")) == "no file a\\nb\\xff"
