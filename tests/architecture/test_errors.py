"""docs/errors.md lists every message that the code raises."""

import ast

from tests.errors_page import PAGE, messages, page


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: make errors"


def test_messages_are_seen_whole() -> None:
    code = (
        'raise UserError(f"{path} holds {n:.1f} pictures, " "and needs two: give more")\nfail("a" + b)\nUserError(line)'
    )
    assert [*messages(ast.parse(code))] == ["… holds … pictures, and needs two: give more", "a…"]
    assert page().count("\n- `") >= 500
