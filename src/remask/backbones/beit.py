"""BEiT's vision transformer (2106.08254; SimMIM's ViT too): any timm `Beit`, which replaces masked tokens.

It differs from a plain ViT in its positions, a table of attention biases per relative offset (shared by all blocks in
pre-training, one per block in fine-tuning), in layer scale, and in a query-key-value bias without a key part.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.beit import Beit, gen_relative_position_index
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from remask.backbones import Mode
from remask.backbones.normalise import Normalise
from remask.backbones.refusals import refuse_unless
from remask.backbones.tables import resize_positions, resize_table
from remask.errors import UserError, first_line
from remask.tokens import divisible_grid, patchify
from remask.types import Features, Grid, Images, Size
from remask.views import Views

# Sizes for small images and CPUs, as overrides of a timm model, so that timm.create_model rebuilds them.
SMALL: dict[str, tuple[str, dict[str, int]]] = {
    "beit_micro": ("beit_base_patch16_224", {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}),
    "beit_tiny": ("beit_base_patch16_224", {"patch_size": 8, "embed_dim": 192, "depth": 12, "num_heads": 3}),
}
CLASS_ROWS = 3
"""Last rows of a table: class → token, token → class, class → class."""


class Patches(NamedTuple):
    """The image's embedded patches: replacing comes after the embedding, which all views therefore share."""

    tokens: Float[Tensor, "B N D"]
    grid: Grid


class BeitViT(nn.Module):
    """A timm `Beit` as an encoder that replaces masked tokens. Images are normalised here, on their device.

    network     the timm model; its state dict is the export
    mean, std   per channel, of pixel values 0..1
    origin      name and arguments with which `timm.create_model` rebuilds the network
    """

    modes: tuple[Mode, ...] = ("replace",)

    def __init__(
        self,
        network: Any,
        mean: Sequence[float],
        std: Sequence[float],
        origin: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        refuse_unless(network, Beit, ("forward_features",))
        stem = network.patch_embed
        self.network, self.origin = network, origin
        self.patch: Size = (int(stem.patch_size[0]), int(stem.patch_size[1]))
        self.built_for: Grid = (int(stem.grid_size[0]), int(stem.grid_size[1]))
        self.width, self.depth = int(network.embed_dim), len(network.blocks)
        self.size: Size = (self.built_for[0] * self.patch[0], self.built_for[1] * self.patch[1])
        self.stem_width = self.width
        self.prefix, self.channels = int(network.num_prefix_tokens), stem.proj.in_channels
        self.normalise = Normalise(mean, std)

    def grid(self, size: Size) -> Grid:
        return divisible_grid(size, self.patch)

    def embed(self, images: Images) -> Patches:
        grid = self.grid((images.shape[-2], images.shape[-1]))
        pixels = self.normalise(images)
        conv = self.network.patch_embed.proj  # a matrix product, for its kernel and its stride are the patch
        tokens = F.linear(patchify(pixels, self.patch), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
        return Patches(self.network.patch_embed.norm(tokens), grid)

    def encode(
        self,
        patches: Patches,
        views: Views | None = None,
        mask_token: Float[Tensor, "D"] | None = None,
        layers: Sequence[int] = (-1,),
    ) -> dict[int, Features]:
        x, net = patches.tokens, self.network
        if views is not None:
            if mask_token is None:
                raise UserError("a BEiT backbone replaces masked tokens and cannot drop them; choose a plain ViT")
            x = views.repeat(x)
            x = torch.where(views.mask.flatten(0, 1).unsqueeze(-1), mask_token, x)
        x = torch.cat([net.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if net.pos_embed is not None:
            x = x + self._positions(patches.grid)
        return self._blocks(net.pos_drop(x), patches.grid, layers)

    def forward(self, images: Images, normalised: bool = False) -> Features:
        """Features of the whole image, after the final norm; float images in 0..1 need `normalised=True`."""
        self.normalise.refuse_unnormalised(images, normalised)
        return self.encode(self.embed(images))[-1]

    def _positions(self, grid: Grid) -> Float[Tensor, "1 T D"]:
        """The absolute positions, where the network has any, resized where the grid is not the one built for."""
        return resize_positions(self.network.pos_embed, self.built_for, grid, self.prefix)

    def _blocks(self, x: Float[Tensor, "R T D"], grid: Grid, layers: Sequence[int]) -> dict[int, Features]:
        """Features at the given layers; later blocks do not run."""
        net, out = self.network, dict[int, Features]()
        shared = None if net.rel_pos_bias is None else self.bias(net.rel_pos_bias, grid)
        last = self.depth if -1 in layers else max(layers) + 1
        for i, block in enumerate(net.blocks[:last]):
            block_bias = None if block.attn.relative_position_bias_table is None else self.bias(block.attn, grid)
            bias = shared if block_bias is None else block_bias if shared is None else shared + block_bias
            checkpointed = net.grad_checkpointing
            x = checkpoint(_block, block, x, bias, use_reentrant=False) if checkpointed else _block(block, x, bias)
            if i in layers:
                out[i] = Features(x[:, : self.prefix], x[:, self.prefix :])
        if -1 in layers:
            x = net.norm(x)
            out[-1] = Features(x[:, : self.prefix], x[:, self.prefix :])
        return out

    def bias(self, holder: Any, grid: Grid) -> Float[Tensor, "heads T T"]:
        """The attention bias of every pair of tokens, from the table of `holder`: the shared one or a block's."""
        table, index = holder.relative_position_bias_table, holder.relative_position_index
        if grid != self.built_for:
            table = resize_table(table, self.built_for, grid, CLASS_ROWS)
            index = gen_relative_position_index(grid).to(table.device)
        return table[index.flatten()].unflatten(0, (index.shape[0], -1)).permute(2, 0, 1).contiguous()

    def param_depth(self, name: str) -> int:
        """`name` as in `network.named_parameters()`. The shared table counts with the end (BEiT, SimMIM)."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("patch_embed", "cls_token", "pos_embed")) else self.depth + 1


def _block(block: Any, x: Float[Tensor, "R T D"], bias: Float[Tensor, "heads T T"] | None) -> Tensor:
    """timm's block with the bias given: its own would be gathered for the grid that the network was built for."""
    attended = block.drop_path1(_scaled(block.gamma_1, _attend(block.attn, block.norm1(x), bias)))
    x = x + attended
    return x + block.drop_path2(_scaled(block.gamma_2, block.mlp(block.norm2(x))))


def _scaled(gamma: Tensor | None, x: Float[Tensor, "R T D"]) -> Float[Tensor, "R T D"]:
    return x if gamma is None else gamma * x


def _attend(attention: Any, x: Float[Tensor, "R T D"], bias: Tensor | None) -> Float[Tensor, "R T D"]:
    added = None
    if attention.q_bias is not None:
        added = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    qkv = F.linear(x, attention.qkv.weight, added)
    q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    bias = None if bias is None else bias.to(q.dtype)
    if attention.fused_attn:
        dropout = attention.attn_drop.p if attention.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    else:
        scores = (q * attention.scale) @ k.transpose(-2, -1)
        mixed = attention.attn_drop((scores if bias is None else scores + bias).softmax(dim=-1)) @ v
    return attention.proj_drop(attention.proj(mixed.transpose(1, 2).flatten(2)))


def create_beit(
    name: str,
    size: Size,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    drop_path: float = 0.0,
    overrides: Mapping[str, int | float] | None = None,
) -> BeitViT:
    """A BEiT by timm name or by one of the small names here, for images of `size` pixels and len(mean) channels.

    As pre-trained: one shared table, no absolute positions, a final norm and no head; layer scale starts where the
    timm name says (.1 for base; BEiT's large models 1e-5).
    overrides   timm arguments (patch_size, embed_dim, depth, num_heads, mlp_ratio, init_values, use_rel_pos_bias …)
    Raises UserError for an unknown name, a model that is not a Beit, or a size no patch divides.
    """
    base, small = SMALL.get(name, (name, {}))
    if not timm.is_model(base):
        near = difflib.get_close_matches(name, [*SMALL, *timm.list_models("beit*")], n=3)
        raise UserError(f"no backbone is called {name!r}; did you mean {' or '.join(near) or 'beit_base_patch16_224'}?")
    pretraining = {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "use_abs_pos_emb": False}
    fixed = {"img_size": size, "in_chans": len(mean), "num_classes": 0, "global_pool": ""}
    arguments: dict[str, Any] = {**pretraining, **small, **(overrides or {}), **fixed}
    try:
        network = timm.create_model(base, pretrained=False, drop_path_rate=drop_path, **arguments)
    except Exception as error:  # timm may raise anything
        raise UserError(f"timm cannot build {name} with {arguments}: {first_line(error)}") from error
    if not isinstance(network, Beit):
        raise UserError(f"{name} is a {type(network).__name__}, not a BEiT")
    if network.embed_dim % (heads := network.blocks[0].attn.num_heads):
        raise UserError(f"{heads} heads do not divide the width {network.embed_dim} of {name}; change one of them")
    backbone = BeitViT(network, mean, std, origin=(base, arguments))
    backbone.grid(size)
    return backbone


__all__ = ["CLASS_ROWS", "SMALL", "BeitViT", "Patches", "create_beit"]
