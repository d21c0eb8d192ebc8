"""Official checkpoints of DMAE, ConvMAE, DMJD and FastMIM: their seeds, and what reads them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remask.errors import UserError

OFFICIAL = ("dmae", "dmjd", "convmae", "fastmim")
SMALL, SIZE = (8, 8), (16, 16)
WIDE = (32, 32)
"""Pixels for FastMIM's networks of four stages, which halve them five times."""
HEADS = {b"encoder.block1.": (1, 1, 1, 1), b"encoder.layers.": None, b"encoder.blocks_a.": None}
"""A part of FastMIM's keys -> the heads that such a network is given; any other is a ViT."""


def seeds() -> dict[str, list[bytes]]:
    """A tiny checkpoint of each paper and network, in all three formats."""
    import torch
    from safetensors.torch import save

    from remask.backbones.convvit import create_convvit
    from remask.backbones.vit import create_vit
    from remask.interop import convmae, dmae, dmjd, mae
    from remask.masking import Masking
    from remask.methods import dmae as with_alignment
    from remask.methods.convmae import convmae as convolutional
    from remask.methods.dmjd import dm, jd
    from remask.targets import Hog, Pixels

    torch.manual_seed(0)
    sizes = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0}
    vit = create_vit("vit_base_patch16_224", SMALL, mae.MEAN, mae.STD, overrides=sizes)
    pixels = Pixels(vit.patch, mae.MEAN, mae.STD, per_patch=False)
    aligned = with_alignment(
        vit, Masking(0.5), pixels, teachers(), SMALL, [0], width=8, depth=1, heads=2, mlp_ratio=1.0
    )
    stages = {"strides": (2, 2, 2), "dims": (4, 4, 8), "depths": (1, 1, 1), "num_heads": 2, "mlp_ratios": (1, 1, 1)}
    trunk = create_convvit("convvit_base", SIZE, mae.MEAN, mae.STD, overrides=stages)
    hog = Hog(trunk.patch, mae.MEAN, mae.STD)
    plain = convolutional(trunk, Masking(0.5), Pixels(trunk.patch, mae.MEAN, mae.STD), SIZE, 8, 1, 2, 1.0)
    joint = jd(dm(convolutional(trunk, Masking(0.5, cell=2), hog, SIZE, 8, 1, 2, 1.0)), hog, 8)

    def saved(state: dict[str, Any], zipped: bool = True) -> bytes:
        stream = io.BytesIO()
        torch.save({"model": halved(state), "epoch": 3}, stream, _use_new_zipfile_serialization=zipped)
        return stream.getvalue()

    def halved(state: dict[str, Any]) -> dict[str, Any]:
        return {key: t.contiguous().half() if t.is_floating_point() else t for key, t in state.items()}

    return {
        "dmae": [saved(dmae.to_official(aligned))],
        "convmae": [saved(convmae.to_official(plain), zipped=False)],
        "dmjd": [save(halved(dmjd.to_official(joint)))],
        "fastmim": [save(halved(state)) for state in _fastmim()],
    }


def teachers() -> list[Any]:
    """The teacher of DMAE's seed, of which the checkpoint holds a head."""
    import torch

    from remask.backbones.vit import create_vit
    from remask.interop import mae
    from remask.targets.token_teacher import TokenTeacher

    torch.manual_seed(1)
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0}
    network = create_vit("vit_base_patch16_224", SMALL, mae.MEAN, mae.STD, overrides=sizes)
    return [TokenTeacher(network, network.patch, mae.MEAN, mae.STD, layer=0, sees="view", norm="unit", name="it")]


def _fastmim() -> list[dict[str, Any]]:
    from remask.backbones.hierarchical import create_hierarchical
    from remask.backbones.swin import create_swin
    from remask.backbones.vit import create_vit
    from remask.interop import fastmim
    from remask.masking import Masking
    from remask.methods import fastmim as method
    from remask.targets import Hog

    one, narrow = (1, 1, 1, 1), {"embed_dims": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    vit = {"patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0}
    swin = {"patch_size": 4, "embed_dim": 4, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    pvt = {**narrow, "mlp_ratios": one, "sr_ratios": (8, 4, 2, 1)}
    cmt = {**narrow, "stem_width": 4, "mlp_ratio": 1.0, "sr_ratios": (8, 4, 2, 1)}
    mean, std = fastmim.MEAN, fastmim.STD
    networks: list[Any] = [
        create_vit("vit_base_patch16_224", WIDE, mean, std, overrides=vit),
        create_swin("swin_micro", WIDE, mean, std, overrides=swin),
        create_hierarchical("pvt_v2_b0", WIDE, mean, std, overrides=pvt),
        create_hierarchical("cmt_micro", WIDE, mean, std, overrides=cmt),
    ]
    found = []
    for network in networks:  # the first with its decoder
        unit = (min(network.patch[0], 32),) * 2
        target = Hog(unit, mean, std, "sobel", norm="l2")
        state = fastmim.to_official(method(network, Masking(0.5), target, unit, 8, 1, 2))
        found.append({key: t for key, t in state.items() if not found or not key.startswith("decoder_")})
    return found


def reader(kind: str) -> Callable[[bytes, Path], None]:
    """The encoder alone, and the whole as what goes on training."""

    def read(data: bytes, folder: Path) -> None:
        from remask.interop import convmae, dmae, dmjd, fastmim
        from remask.interop.encoders import open_encoder

        file = folder / "w.pth"
        file.write_bytes(data)
        heads = next((heads for part, heads in HEADS.items() if part in data), 2) if kind == "fastmim" else 2
        size = WIDE if kind == "fastmim" else None
        loads: dict[str, Callable[[], object]] = {
            "dmae": lambda: dmae.load(file, teachers(), layers=[0], heads=2, decoder_heads=2),
            "convmae": lambda: convmae.load(file, heads=2, decoder_heads=2),
            "dmjd": lambda: dmjd.load(file, heads=2, decoder_heads=2),
            "fastmim": lambda: fastmim.load(file, heads=heads, decoder_heads=2, size=size),
        }
        taken, refusal = 0, UserError("refused")
        for load in (lambda: open_encoder(f"{kind}:{file}", heads=heads, size=size), loads[kind]):
            try:
                load()
                taken += 1
            except UserError as error:
                refusal = error
        if not taken:
            raise refusal

    return read


__all__ = ["OFFICIAL", "reader", "seeds"]
