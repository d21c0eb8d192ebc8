"""interop/encoder_files.py: every official layout there is opens by a specification, and what it lacks is asked for."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from remask.backbones import Backbone
from remask.errors import UserError
from remask.interop import beit, convmae, dmae, dmjd, fastmim, mae, maskfeat, mocov3, simmim
from remask.interop.start import constants, start
from tests.golden.vectors import Folder, roots, size_of, size_unless_square

IMAGENET = (0.485, 0.456, 0.406)


class Layout(NamedTuple):
    """A kind, its file, where config.json says what must be stated, what opens it, and the message where it lacks."""

    kind: str
    file: str
    heads: tuple[str, ...] | None
    size: tuple[str, ...] | None
    load: Any
    lacks: str | None
    mean: tuple[float, ...] = IMAGENET


class Stored(NamedTuple):
    """A layout and a file of it, with what has to be stated of its network."""

    layout: Layout
    path: Path
    heads: Any
    size: tuple[int, int] | None


ENCODER, VIT = ("encoder", "heads"), ("vit", "heads")
LAYOUTS = {
    "mae": Layout("mae", "mae/state_dict", ENCODER, None, mae.load_backbone, "MAE's ViT-B"),
    "dmae": Layout("dmae", "dmae/student_state_dict", ("student", "heads"), None, dmae.load_backbone, "ViT-S has 6"),
    "mocov3": Layout("mocov3", "mocov3/checkpoint_state_dict", VIT, None, mocov3.load_backbone, "MoCo v3's"),
    "dmjd": Layout("dmjd", "dmjd/state_dict", ENCODER, None, dmjd.load_backbone, "DMJD's ConViT-B"),
    "convmae": Layout("convmae", "convmae/state_dict", ENCODER, None, convmae.load_backbone, "ConvMAE's ConViT-B"),
    "beit": Layout("beit", "beit/state_dict_unilm_format", None, None, beit.load_backbone, None, (0.5,) * 3),
    "maskfeat": Layout(
        "maskfeat", "maskfeat/vit_mmpretrain_state_dict", VIT, None, maskfeat.load_backbone, "MaskFeat's"
    ),
    "simmim-vit": Layout("simmim", "simmim/vit_state_dict", None, None, simmim.load_backbone, None),
    "simmim-swin": Layout(
        "simmim", "simmim/swin_state_dict", None, ("swin", "image_size"), simmim.load_backbone, "size of its"
    ),
    "fastmim-vit": Layout("fastmim", "fastmim/vit_hog*_state_dict", VIT, None, fastmim.load_backbone, "one number"),
    "fastmim-swin": Layout(
        "fastmim", "fastmim/swin_hog*_state_dict", None, ("image_size",), fastmim.load_backbone, "size of"
    ),
    "fastmim-pvt": Layout(
        "fastmim",
        "fastmim/pvtv2_hog*_state_dict",
        ("pvtv2", "heads"),
        ("image_size",),
        fastmim.load_backbone,
        "4 stages",
    ),
    "fastmim-cmt": Layout("fastmim", "fastmim/cmt_hog*_state_dict", None, None, fastmim.load_backbone, None),
}


@pytest.fixture(params=LAYOUTS)
def stored(request: pytest.FixtureRequest) -> Stored:
    found = LAYOUTS[request.param]
    for root in roots().values():
        for path in sorted(root.glob(f"{found.file}.safetensors")):
            config = Folder(path.parent).config
            side = stated(config, found.size)
            size = size_of(side) if side else stated_unless_square(config, found)
            return Stored(found, path, stated(config, found.heads), size)
    pytest.skip(f"{found.file} is absent")


def stated(config: Any, where: tuple[str, ...] | None) -> Any:
    """The entry of config.json that these keys lead to."""
    if where is None:
        return None
    for key in where:
        config = config[key]
    return config


def stated_unless_square(config: Any, layout: Layout) -> tuple[int, int] | None:
    """The size of the images of a ViT that are not square. A ConViT's three numbers are those of its stages."""
    part = config[layout.heads[0] if layout.heads else "vit"] if not layout.size else {}
    side = part.get("image_size", 1) if isinstance(part, dict) else 1
    return None if isinstance(side, list) and len(side) > 2 else size_unless_square(side)


def features(backbone: Backbone, size: tuple[int, int]) -> Tensor:
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.eval()(pixels).tokens  # type: ignore[attr-defined]


def test_a_specification_opens_it(stored: Stored) -> None:
    known, path, heads, side = stored
    backbone, size = start(f"{known.kind}:{path}", side, heads=heads)
    assert constants(backbone)[0] == pytest.approx(known.mean)
    told = {key: value for key, value in (("heads", heads), ("size", side)) if value is not None}
    content = simmim.read(path) if known.kind == "simmim" else str(path)
    direct = known.load(content, **told, mean=known.mean, std=constants(backbone)[1])
    want = direct.network.state_dict()
    own = backbone.network.state_dict()
    assert own.keys() == want.keys()
    assert all(torch.equal(own[name], want[name]) for name in want)
    assert torch.allclose(features(backbone, size), features(direct, size), atol=1e-5)


def test_it_trains_at_another_size(stored: Stored) -> None:
    """As fine-tuning at another resolution has it: tables of positions and windows are resized, if they are square."""
    known, path, heads, side = stored
    if side and side[0] != side[1]:  # the size that is asked for is that which the table was made for
        with pytest.raises(UserError, match="no square"):
            start(f"{known.kind}:{path}", (side[0] + 1000, side[1]), heads=heads)
        return
    own, first = start(f"{known.kind}:{path}", side, heads=heads)
    larger = first[0] + own.patch[0], first[1] + own.patch[1]
    backbone, size = start(f"{known.kind}:{path}", larger, heads=heads, drop_path=0.1)
    assert size == larger
    assert features(backbone, size).isfinite().all()
    twin, _ = start(f"{known.kind}:{path}", larger, heads=heads, untrained=True)
    assert twin.network.state_dict().keys() == backbone.network.state_dict().keys()


def test_what_it_does_not_tell_is_asked_for(stored: Stored) -> None:
    known, path, heads, side = stored
    spec = f"{known.kind}:{path}"
    if known.lacks:
        with pytest.raises(UserError, match=known.lacks) as caught:
            start(spec)
        assert "\n" not in str(caught.value)
    if heads is None:
        with pytest.raises(UserError, match="position tables for"):
            start(spec, side, heads=10**4)  # more than any network has
