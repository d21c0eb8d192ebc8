"""DALL-E's discrete VAE (Ramesh et al., 2102.12092) as tokenizer: BEiT's target (2106.08254, section 2.1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from remask.distances import full_precision
from remask.errors import UserError, setting
from remask.files.tensors import Foreign, content_of, refuse_non_finite
from remask.targets.hog import pixel_values
from remask.targets.map_teacher import Frozen, resized
from remask.tokens import grid_of
from remask.types import Images, Size
from remask.views import Views

STRIDE = 8
"""Pixels of the second view that become one token."""

GROUPS, FIRST = 4, "blocks.input.w"


class Dalle(nn.Module):
    """Ids of the dVAE, [B, N, 1]: argmax of its logits on a second view of the same crop, 8 pixels a token.

    patch      pixels of a student's token
    mean, std  constants by which float images were normalised; integers are pixel values
    The encoder is frozen and in no state dict; ids are decided in fp32, also under autocast.
    # official: the original crop resized by Lanczos to 112 pixels; here the student's view, resized on the device by
    # antialiased bicubic, because the full-size crop is not available there. See docs/decisions/0008.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: "DalleEncoder", patch: Size, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) not in (1, encoder.channels):
            raise UserError(
                f"the tokenizer sees {encoder.channels} channels, not {len(mean)}; "
                f"{setting('set data.channels', 'give images of as many')}"
            )
        self.encoder, self.patch, self.width, self.channels = (
            Frozen(encoder),
            patch,
            encoder.vocabulary,
            encoder.channels,
        )
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Images, views: Views | None = None) -> Int[Tensor, "B N 1"]:
        rows, cols = grid_of((images.shape[-2], images.shape[-1]), self.patch)
        pixels = resized(pixel_values(images, self.mean, self.std), (STRIDE * rows, STRIDE * cols))
        with full_precision(images.device):
            logits = self.encoder(map_pixels(pixels / 255).expand(-1, self.channels, -1, -1))
        return logits.argmax(1).flatten(1).unsqueeze(-1)

    def describe(self) -> str:
        return f"{self.width} dVAE codes"


def map_pixels(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """0..1 to 0.1..0.9, away from the ends that the dVAE's logit-Laplace cannot reach (2102.12092, appendix A.3)."""
    return 0.8 * x + 0.1


class DalleEncoder(nn.Module):
    """[B, C, H, W] of `map_pixels` pixels -> logits [B, vocabulary, H / 8, W / 8], in the published state-dict layout.

    A 7×7 convolution, four groups of residual blocks of width 1, 2, 4 and 8 times `hidden`, max-pooled by 2 between
    them, and a 1×1 convolution.
    """

    def __init__(self, hidden: int = 256, blocks_per_group: int = 2, vocabulary: int = 8192, channels: int = 3) -> None:
        super().__init__()
        self.vocabulary, self.channels = vocabulary, channels
        gain = 1 / (GROUPS * blocks_per_group) ** 2
        stages: dict[str, nn.Module] = {"input": Conv(channels, hidden, 7)}
        width = hidden
        for group in range(GROUPS):
            out = hidden * 2**group
            blocks = {f"block_{i + 1}": Residual(width if i == 0 else out, out, gain) for i in range(blocks_per_group)}
            stages[f"group_{group + 1}"] = nn.ModuleDict(blocks)
            width = out
        stages["output"] = nn.ModuleDict({"conv": Conv(width, vocabulary, 1)})
        self.blocks = nn.ModuleDict(stages)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B vocabulary h w"]:
        x = self.blocks["input"](x)
        for group in range(1, GROUPS + 1):
            for block in self.blocks[f"group_{group}"].values():  # type: ignore[operator]
                x = block(x)
            x = F.max_pool2d(x, 2) if group < GROUPS else x
        return self.blocks["output"]["conv"](F.relu(x))  # type: ignore[index]


class Residual(nn.Module):
    """x + gain · four convolutions, each after a ReLU, a quarter as wide inside."""

    def __init__(self, width_in: int, width_out: int, gain: float) -> None:
        super().__init__()
        inner = width_out // 4
        widths = (width_in, inner, inner, inner, width_out)
        sides = (3, 3, 3, 1)
        self.gain = gain
        self.id_path = Conv(width_in, width_out, 1) if width_in != width_out else nn.Identity()
        self.res_path = nn.ModuleDict(
            {f"conv_{i + 1}": Conv(widths[i], widths[i + 1], side) for i, side in enumerate(sides)}
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        inside = x
        for conv in self.res_path.values():
            inside = conv(F.relu(inside))
        return self.id_path(x) + self.gain * inside


class Conv(nn.Module):
    """A convolution that keeps height and width, with the published names of its tensors."""

    def __init__(self, width_in: int, width_out: int, side: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(width_out, width_in, side, side) / (width_in * side**2) ** 0.5)
        self.b = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


def load_dalle(path: str | Path) -> DalleEncoder:
    """A dVAE encoder from a state dict (.safetensors, .pt, .pth or .pkl), strictly, its sizes read from the tensors.

    Raises UserError, in one line, for a file that cannot be read, holds code, or has other names or shapes.
    """
    state = _state(Path(path))
    try:
        hidden, channels = state[FIRST].shape[:2]
        vocabulary = state["blocks.output.conv.w"].shape[0]
    except KeyError as error:
        raise UserError(f"{path} is no DALL-E encoder: it has no {error.args[0]}") from None
    depth = len({key.split(".")[2] for key in state if key.startswith("blocks.group_1.")})
    encoder = DalleEncoder(hidden, depth, vocabulary, channels)
    expected = encoder.state_dict()
    differing = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    faults = {"missing": expected.keys() - state, "unknown": state.keys() - expected, "of another shape": differing}
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {', '.join(sorted(keys))}" for fault, keys in faults.items() if keys)
        raise UserError(f"{path} is no DALL-E encoder as published: {listed}")
    if not encoder.blocks["input"].w.is_meta:
        encoder.load_state_dict(state)
    return encoder


def _state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, alone or under "state_dict", without the prefix of a wrapper."""
    content = content_of(path)
    if isinstance(content, Foreign):
        raise UserError(
            f"{path} holds a pickled module, which could run code: give a file of its weights alone, which "
            "torch.save(encoder.state_dict(), FILE) writes where the dall_e package is installed"
        )
    if isinstance(content, Mapping):
        content = next((content[name] for name in ("state_dict", "model") if name in content), content)
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise UserError(f"{path} holds no weights: names and tensors were expected")
    refuse_non_finite(content, path)
    prefix = next((key.removesuffix(FIRST) for key in content if key.endswith(FIRST)), "")
    return {key.removeprefix(prefix): tensor for key, tensor in content.items()}


__all__ = ["Dalle", "DalleEncoder", "load_dalle", "map_pixels"]
