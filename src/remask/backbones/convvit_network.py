"""ConvViT's plain network: two stages of convolutions, a third of transformer blocks. Its state dict is the export.

Part of `f` in the equation. ConvMAE: Masked Convolution Meets Masked Autoencoders (Gao et al., arXiv 2205.03892), where
it is called ConViT; timm knows another network by that name (docs/decisions/0006). Channels come last throughout, so
that everything but the 5×5 depth-wise convolution is a matrix product over positions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch.nn.functional as F
from jaxtyping import Float, Num
from timm.layers import DropPath, LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from remask.backbones.tables import resize_positions
from remask.errors import UserError
from remask.tokens import grid_of, sincos_positions
from remask.types import Grid, Size

Mix: TypeAlias = Callable[[nn.Conv2d, Float[Tensor, "..."]], Float[Tensor, "..."]]
"""(depth-wise convolution of a block, input) -> output, on a dense map or on the visible positions of one."""


class Sizes(NamedTuple):
    """strides, dims, depths and mlp_ratios by stage, first to third; heads of the third, the only one with attention.

    # official: one image size per stage is given too; here it follows from the strides.
    """

    strides: tuple[int, int, int] = (4, 2, 2)
    dims: tuple[int, int, int] = (256, 384, 768)
    depths: tuple[int, int, int] = (2, 2, 11)
    num_heads: int = 12
    mlp_ratios: tuple[float, float, float] = (4, 4, 4)

    @property
    def patch(self) -> int:
        """Pixels of a token's side: the total stride."""
        return self.strides[0] * self.strides[1] * self.strides[2]


class ConvViTNetwork(nn.Module):
    """The trunk of ConvMAE and DMJD, as a feature extractor or with a classifier on top.

    size       pixels of the images whose grid the position table is built for; any other that the stride divides is
               taken too, the table is then resized
    channels   of the images, which come normalised
    drop_path  rate of the last block; from 0 at the first it grows evenly over the blocks of all stages
    classes    0: tokens after the final norm. Else logits, from the "mean" of the tokens through a norm of its own
               (`fc_norm`, and no `norm`), or from the "first" token, which is the top left one: there is no class token
    """

    def __init__(
        self,
        size: Size,
        channels: int,
        sizes: Sizes,
        drop_path: float = 0.0,
        classes: int = 0,
        pool: Literal["mean", "first"] = "mean",
    ) -> None:
        super().__init__()
        self.sizes, self.channels, self.classes, self.pool = sizes, channels, classes, pool
        self.grad_checkpointing = False
        self.built_for = self.grid(size)
        widths, total = (channels, *sizes.dims), sum(sizes.depths)
        rates = iter([drop_path * i / max(total - 1, 1) for i in range(total)])
        self.patch_embed1, self.patch_embed2, self.patch_embed3 = map(PatchEmbed, widths, sizes.dims, sizes.strides)
        self.blocks1, self.blocks2 = (
            nn.ModuleList(ConvBlock(sizes.dims[i], sizes.mlp_ratios[i], next(rates)) for _ in range(sizes.depths[i]))
            for i in (0, 1)
        )
        width, norm = sizes.dims[2], partial(LayerNorm, eps=1e-6)
        self.patch_embed4 = nn.Linear(width, width)
        # official: the table is frozen in pre-training and trained in fine-tuning
        self.pos_embed = nn.Parameter(sincos_positions(self.built_for, width)[None], requires_grad=classes > 0)
        self.blocks3 = nn.ModuleList(
            Block(width, sizes.num_heads, sizes.mlp_ratios[2], True, drop_path=next(rates), norm_layer=norm)
            for _ in range(sizes.depths[2])
        )
        averages = classes > 0 and pool == "mean"
        self.norm = nn.Identity() if averages else nn.LayerNorm(width, eps=1e-6)
        self.fc_norm = nn.LayerNorm(width, eps=1e-6) if averages else nn.Identity()
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def grid(self, size: Size) -> Grid:
        """Token grid of an image of `size` pixels. Raises UserError where the total stride does not divide it."""
        patch = self.sizes.patch
        if size[0] % patch or size[1] % patch:
            raise UserError(
                f"an image of {size[0]}×{size[1]} px cannot be cut into ConvViT's cells of {patch}×{patch} px; "
                "change data.image_size or backbone.patch_size"
            )
        return grid_of(size, (patch, patch))

    def positions(self, grid: Grid) -> Float[Tensor, "N D"]:
        """The position table, resized where the grid is not the one built for."""
        return resize_positions(self.pos_embed, self.built_for, grid)[0]

    def stages(
        self, images: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B h1 w1 C1"], Float[Tensor, "B h2 w2 C2"], Float[Tensor, "B N D"]]:
        """The maps of the first two stages and the tokens after the final norm."""
        grid = self.grid((images.shape[-2], images.shape[-1]))
        first = self.patch_embed1(images.permute(0, 2, 3, 1))
        for block in self.blocks1:
            first = self.run(block, first)
        second = self.patch_embed2(first)
        for block in self.blocks2:
            second = self.run(block, second)
        x = self.patch_embed4(self.patch_embed3(second)).flatten(1, 2) + self.positions(grid)
        for block in self.blocks3:
            x = self.run(block, x)
        return first, second, self.norm(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: activations inside a block are not stored but recomputed in the backward pass."""
        self.grad_checkpointing = enable

    def run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Run one block, its activations stored or recomputed in the backward pass."""
        return checkpoint(block, *inputs, use_reentrant=False) if self.grad_checkpointing else block(*inputs)

    def forward_features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """Tokens of the whole image, after the final norm, in raster order."""
        return self.stages(images)[2]

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B ..."]:
        """Tokens, or logits where there are classes."""
        x = self.forward_features(images)
        if not self.classes:
            return x
        return self.head(self.fc_norm(x.mean(1) if self.pool == "mean" else x[:, 0]))

    def pyramid(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D h w"]]:
        """Maps at four strides for dense tasks: the three stages', the third after the norm, and that one pooled."""
        first, second, tokens = self.stages(images)
        third = tokens.unflatten(1, self.grid((images.shape[-2], images.shape[-1]))).permute(0, 3, 1, 2)
        return [first.permute(0, 3, 1, 2), second.permute(0, 3, 1, 2), third, F.max_pool2d(third, 2, ceil_mode=True)]


class PatchEmbed(nn.Module):
    """A convolution whose kernel is its stride, LayerNorm over the channels (eps 1e-5), GELU."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, stride, stride)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
        return F.gelu(self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))

    def windows(self, x: Float[Tensor, "*rows P"]) -> Float[Tensor, "*rows D"]:
        """The same for windows that are already cut out; P runs row, column, channel."""
        weight = nest(self.proj.weight, self.proj.kernel_size[:1], self.proj.kernel_size[1:]).flatten(1)
        return F.gelu(self.norm(F.linear(x, weight, self.proj.bias)))


class ConvBlock(nn.Module):
    """A pre-norm block with a 5×5 depth-wise convolution, between two 1×1 ones, where attention would stand.

    Its LayerNorms have eps 1e-5, unlike the transformer's 1e-6. `attn` is the official name of the convolution.
    """

    def __init__(self, width: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.conv1 = nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(width)
        self.mlp = ConvMlp(width, round(width * mlp_ratio))

    def forward(self, x: Float[Tensor, "R *positions C"], mix: Mix | None = None) -> Float[Tensor, "R *positions C"]:
        mix = depthwise if mix is None else mix  # not `or`: the compiler of torch 2.11 breaks the graph at it
        mixed = mix(self.attn, pointwise(self.conv1, self.norm1(x)))
        x = x + self.drop_path(pointwise(self.conv2, mixed))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConvMlp(nn.Module):
    """Two 1×1 convolutions with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        return pointwise(self.fc2, F.gelu(pointwise(self.fc1, x)))


def pointwise(conv: nn.Conv2d, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows D"]:
    """A 1×1 convolution as the matrix product it is."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def depthwise(conv: nn.Conv2d, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
    """A convolution of a whole map, channels last."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def nest(x: Num[Tensor, "A C H W"], rows: Sequence[int], cols: Sequence[int]) -> Num[Tensor, "A *nested C"]:
    """Positions in nested order, channels last: rows and columns are cut into the given factors, coarse to fine.

    (h, s, t) and (w, s, t) give the axes h, w, s, s, t, t: cells of the grid, cells inside them, positions in those.
    """
    pairs = [axis for i in range(len(rows)) for axis in (2 + i, 2 + len(rows) + i)]
    return x.unflatten(3, tuple(cols)).unflatten(2, tuple(rows)).permute(0, *pairs, 1)


__all__ = ["ConvBlock", "ConvViTNetwork", "Mix", "PatchEmbed", "Sizes", "nest", "pointwise"]
