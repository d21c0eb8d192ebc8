"""images/tools/packing.py: what somebody planted under the temporary's name is not written into."""

import os
from pathlib import Path

import pytest

from remask.errors import UserError
from remask.files.text import tmp_beside
from remask.images.tools.packing import _tmp_beside


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    out, precious = tmp_path / "set.remask", tmp_path / "precious"
    precious.write_text("mine")
    tmp_beside(out).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"), _tmp_beside(out):
        pass
    tmp_beside(out).unlink()
    os.link(precious, tmp_beside(out))
    with pytest.raises(UserError, match="another name of a file elsewhere"), _tmp_beside(out):
        pass
    assert precious.read_text() == "mine"
