"""interop/encoder_files.py: every official layout there is opens by a specification, and what it lacks is asked for."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from remask.backbones import Backbone
from remask.interop import beit, convmae, dmae, dmjd, fastmim, mae, maskfeat, mocov3, simmim
from remask.interop.start import constants, start
from remask.types import UserError
from tests.golden.vectors import roots

IMAGENET = (0.485, 0.456, 0.406)


class Layout(NamedTuple):
    """A kind, its file, what must be stated, what opens it without a specification, and the message where it lacks."""

    kind: str
    file: str
    heads: Any
    size: tuple[int, int] | None
    load: Any
    lacks: str | None
    mean: tuple[float, ...] = IMAGENET


LAYOUTS = {
    "mae": Layout("mae", "mae/state_dict", 4, None, mae.load_backbone, "MAE's ViT-B"),
    "dmae": Layout("dmae", "dmae/student_state_dict", 4, None, dmae.load_backbone, "ViT-S has 6"),
    "mocov3": Layout("mocov3", "mocov3/checkpoint_state_dict", 4, None, mocov3.load_backbone, "MoCo v3's"),
    "dmjd": Layout("dmjd", "dmjd/state_dict", 4, None, dmjd.load_backbone, "DMJD's ConViT-B"),
    "convmae": Layout("convmae", "convmae/state_dict", 4, None, convmae.load_backbone, "ConvMAE's ConViT-B"),
    "beit": Layout("beit", "beit/state_dict_unilm_format", None, None, beit.load_backbone, None, (0.5,) * 3),
    "maskfeat": Layout("maskfeat", "maskfeat/vit_mmpretrain_state_dict", 4, None, maskfeat.load_backbone, "MaskFeat's"),
    "simmim-vit": Layout("simmim", "simmim/vit_state_dict", None, None, simmim.load_backbone, None),
    "simmim-swin": Layout("simmim", "simmim/swin_state_dict", None, (64, 64), simmim.load_backbone, "size of its"),
    "fastmim-vit": Layout("fastmim", "fastmim/vit_hog_state_dict", 4, None, fastmim.load_backbone, "state one number"),
    "fastmim-swin": Layout("fastmim", "fastmim/swin_hog_state_dict", None, (64, 64), fastmim.load_backbone, "size of"),
    "fastmim-pvt": Layout(
        "fastmim", "fastmim/pvtv2_hog_block32_state_dict", [1, 2, 5, 4], (64, 64), fastmim.load_backbone, "4 stages"
    ),
    "fastmim-cmt": Layout("fastmim", "fastmim/cmt_hog_block32_state_dict", None, None, fastmim.load_backbone, None),
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> tuple[Layout, Path]:
    found = LAYOUTS[request.param]
    for root in roots().values():
        if (path := root / f"{found.file}.safetensors").is_file():
            return found, path
    pytest.skip(f"{found.file} is absent")


def features(backbone: Backbone, size: tuple[int, int]) -> Tensor:
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.eval()(pixels).tokens  # type: ignore[attr-defined]


def test_a_specification_opens_it(layout: tuple[Layout, Path]) -> None:
    known, path = layout
    backbone, size = start(f"{known.kind}:{path}", known.size, heads=known.heads)
    assert constants(backbone)[0] == pytest.approx(known.mean)
    stated = {key: value for key, value in (("heads", known.heads), ("size", known.size)) if value is not None}
    content = simmim.read(path) if known.kind == "simmim" else str(path)
    direct = known.load(content, **stated, mean=known.mean, std=constants(backbone)[1])
    want = direct.network.state_dict()
    own = backbone.network.state_dict()
    assert own.keys() == want.keys()
    assert all(torch.equal(own[name], want[name]) for name in want)
    assert torch.allclose(features(backbone, size), features(direct, size), atol=1e-5)


def test_it_trains_at_another_size(layout: tuple[Layout, Path]) -> None:
    """As fine-tuning at another resolution has it: tables of positions and windows are resized."""
    known, path = layout
    backbone, size = start(f"{known.kind}:{path}", (96, 96), heads=known.heads, drop_path=0.1)
    assert size == (96, 96)
    assert features(backbone, size).isfinite().all()
    twin, _ = start(f"{known.kind}:{path}", (96, 96), heads=known.heads, untrained=True)
    assert twin.network.state_dict().keys() == backbone.network.state_dict().keys()


def test_what_it_does_not_tell_is_asked_for(layout: tuple[Layout, Path]) -> None:
    known, path = layout
    spec = f"{known.kind}:{path}"
    if known.lacks:
        with pytest.raises(UserError, match=known.lacks) as caught:
            start(spec)
        assert "\n" not in str(caught.value)
    if known.heads is None:
        with pytest.raises(UserError, match="position tables for"):
            start(spec, known.size, heads=3)
