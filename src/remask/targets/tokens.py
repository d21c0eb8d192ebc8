"""Token ids as targets, [B, N, 1]: the nearest of k-means centres, ids stored beforehand, or those of DALL-E's dVAE.

BEiT (2106.08254) predicts ids of a learned tokenizer. A codebook over any vector target is a tokenizer without trained
weights of others; stored ids are for a tokenizer that is too slow, or in too foreign code, to run in a step.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Int64, Num
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from remask.distances import full_precision
from remask.errors import UserError
from remask.files.bounds import MOST_WEIGHTS, open_regular
from remask.files.paths import check_readable
from remask.files.replacing import write_bytes
from remask.files.system_errors import refuse_shortage
from remask.targets.dalle import Dalle, DalleEncoder, load_dalle
from remask.tokens import grid_of
from remask.types import Images, Size
from remask.views import Views

DIGEST = "sha256"
"""Key of a file's metadata, with the digest of all that the file holds besides."""
CHUNK = 1 << 22
"""Distances held at once: 16 MB."""


class Codebook(nn.Module):
    """The id of the nearest centre, by squared distance, of each token of a vector target.

    features   a target with vectors, [B, N, P]
    centres    [V, P], as `fit_codebook` makes them
    Raises UserError where the two differ in P.
    """

    centres: Tensor

    def __init__(self, features: Any, centres: Float[Tensor, "V P"]) -> None:
        super().__init__()
        if features.width != centres.shape[1]:
            raise UserError(
                f"the codebook was made for vectors of {centres.shape[1]} numbers, but {features.describe()} "
                f"gives {features.width}; use the features it was fitted on, or fit another"
            )
        self.features, self.width = features, centres.shape[0]
        self.register_buffer("centres", centres.float().to(torch.get_default_device()), persistent=False)

    @torch.no_grad()
    def forward(self, images: Images, views: Views | None = None) -> Int[Tensor, "B N 1"]:
        vectors = self.features(images, views).float()
        with full_precision(images.device):
            return nearest(vectors.flatten(0, 1), self.centres).view(*vectors.shape[:2], 1)

    def describe(self) -> str:
        return f"{self.width} k-means codes of {self.features.describe()}"


def nearest(rows: Float[Tensor, "n P"], centres: Float[Tensor, "V P"]) -> Int[Tensor, "n"]:
    """Index of the nearest centre of each row, by |c|²/2 - x·c, which is half the squared distance but for |x|²/2."""
    halves = centres.square().sum(1) / 2
    chunks = rows.split(max(1, CHUNK // centres.shape[0]))
    return torch.cat([torch.addmm(halves, chunk, centres.T, alpha=-1).argmin(1) for chunk in chunks])


def fit_codebook(rows: Float[Tensor, "n P"], size: int, seed: int) -> Float[Tensor, "size P"]:
    """`size` centres of the rows by mini-batch k-means from a k-means++ start; every centre is nearest to some row.

    At most ten passes over the rows. Raises UserError where there are fewer distinct rows than centres.
    """
    from sklearn.cluster import MiniBatchKMeans

    rows = rows.detach().float().cpu()
    distinct = torch.unique(rows, dim=0)
    if len(distinct) < size:
        raise UserError(
            f"{size} centres need as many distinct vectors, and there are {len(distinct)}; "
            "fit on more pictures or ask for fewer centres"
        )
    batch = max(1024, size)
    model = MiniBatchKMeans(
        size, init="k-means++", n_init="auto", init_size=max(3072, 2 * size), batch_size=batch, max_iter=10,
        random_state=seed,
    )  # fmt: skip
    centres = torch.from_numpy(model.fit(rows.numpy()).cluster_centers_).float()
    for _ in range(100):
        ids = nearest(distinct, centres)
        empty = torch.bincount(ids, minlength=size) == 0  # of two equal centres the second is empty
        if not empty.any():
            return centres
        far = (distinct - centres[ids]).square().sum(1).argsort(descending=True, stable=True)
        centres[empty] = distinct[far[: int(empty.sum())]]
    raise UserError(f"the vectors are too alike for {size} centres; ask for fewer")


def save_codebook(path: str | Path, centres: Float[Tensor, "V P"], about: Mapping[str, Any]) -> None:
    """Write one safetensors file: the centres, and in its metadata `about`, the features they were fitted on."""
    _write(path, {"centres": centres.detach().float().cpu().contiguous()}, {"about": json.dumps(about)})


def read_codebook(path: str | Path) -> tuple[Float[Tensor, "V P"], dict[str, Any]]:
    """Centres and the features that they were fitted on. Raises UserError for a file that is no codebook."""
    tensors, metadata = _read(path, ("centres",), "codebook")
    centres = tensors["centres"]
    if centres.ndim != 2 or not centres.numel():
        raise UserError(f"{path} is no codebook: its centres are no table but {[*centres.shape]}")
    if not centres.is_floating_point() or not bool(torch.isfinite(centres.float()).all()):
        raise UserError(f"{path} is no codebook: its centres are no finite numbers; fit it again")
    try:
        about = json.loads(metadata.get("about", "{}"))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{path} is no codebook: what it says of its features is damaged; fit it again")
    return centres.float(), about


class StoredIds(nn.Module):
    """Ids computed beforehand, found by the content of the crop, [B, N, 1].

    path         a file of `save_ids`
    patch        pixels of a student's token
    vocabulary   number of ids that there are
    Raises UserError for an unknown image; to check that, the step waits for the device once.
    """

    keys: Tensor
    ids: Tensor

    def __init__(self, path: str | Path, patch: Size, vocabulary: int) -> None:
        super().__init__()
        tensors, _ = _read(path, ("keys", "ids"), "file of stored ids")
        ids = tensors["ids"]
        if tensors["keys"].ndim != 1 or any(t.is_floating_point() or t.is_complex() for t in tensors.values()):
            raise UserError(f"{path} is no file of stored ids: its keys and ids are no whole numbers")
        keys, order = tensors["keys"].long().sort()
        if ids.ndim != 2 or len(ids) != len(keys) or not ids.numel():
            raise UserError(f"{path} needs one row of ids per key, not {[*ids.shape]} for {len(keys)}")
        if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
            raise UserError(
                f"{path} holds ids {int(ids.min())}..{int(ids.max())}, a vocabulary of {vocabulary} does not"
            )
        self.path, self.patch, self.width, ids = str(path), patch, vocabulary, ids[order]
        for name, tensor in (("keys", keys), ("ids", ids)):
            self.register_buffer(name, tensor.to(torch.get_default_device()), persistent=False)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the compiler folds the weights without wrapping at 2⁶⁴
    @torch.no_grad()
    def forward(self, images: Images, views: Views | None = None) -> Int[Tensor, "B N 1"]:
        rows, cols = grid_of((images.shape[-2], images.shape[-1]), self.patch)
        if self.ids.shape[1] != rows * cols:
            raise UserError(f"{self.path} holds {self.ids.shape[1]} ids an image, the grid has {rows}×{cols} tokens")
        wanted = content_key(images)
        places = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        if not images.is_meta and not bool((self.keys[places] == wanted).all()):
            raise UserError(
                f"{self.path} holds no ids for some of these crops: compute them on the very same ones, "
                "with data.crop_scale = [1, 1] and data.flip = false in both runs"
            )
        return self.ids[places].long().unsqueeze(-1)

    def describe(self) -> str:
        return f"{self.width} stored codes"


def content_key(images: Images) -> Int64[Tensor, "B"]:
    """One number per image, of its 8-bit pixels and its shape alone: the same on every device.

    The sum of pixel · weight modulo 2⁶⁴ with odd pseudo-random weights; two images share a key by chance once in 2⁵⁶
    at most. Raises UserError for float images, whose pixels are no longer those that were stored.
    """
    if images.dtype != torch.uint8:
        raise UserError("stored ids are looked up by 8-bit pixels: give images as uint8, not normalised")
    start = (images.shape[-2] * 65536 + images.shape[-1]) << 24  # other weights for another shape
    weights = _mixed(torch.arange(1, images[0].numel() + 1, device=images.device) + start) | 1
    return torch.cat([(chunk.flatten(1).long() * weights).sum(1) for chunk in images.split(16)])


def save_ids(path: str | Path, keys: Int64[Tensor, "n"], ids: Int[Tensor, "n N"], vocabulary: int) -> None:
    """Write one safetensors file, sorted by key, each image once; ids in the smallest type for the vocabulary."""
    keys, order = keys.cpu().sort(stable=True)
    first = torch.cat([torch.ones(1, dtype=torch.bool), keys[1:] != keys[:-1]])
    small = ids.cpu()[order][first].to(torch.int16 if vocabulary <= 1 << 15 else torch.int32)
    _write(path, {"keys": keys[first], "ids": small}, {"vocabulary": str(vocabulary)})


def _mixed(x: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014): neighbours become unrelated 64-bit numbers."""
    x = x * -0x61C8864680B583EB
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Int64[Tensor, "*any"], bits: int) -> Int64[Tensor, "*any"]:
    """Shifted right as if without sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _read(path: str | Path, names: tuple[str, ...], what: str) -> tuple[dict[str, Num[Tensor, "..."]], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    check_readable(path)
    try:
        open_regular(path, MOST_WEIGHTS).close()
        with torch.device("cpu"), safe_open(path, "pt") as stored:  # also where networks are counted on "meta"
            tensors, metadata = {name: stored.get_tensor(name) for name in names}, stored.metadata() or {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        refuse_shortage(error, path)
        raise UserError(f"{path} is no {what}: {(str(error).splitlines() or ['empty'])[0]}") from error
    stated = metadata.pop(DIGEST, None)  # earlier versions wrote none
    if stated is not None and stated != _digest(tensors, metadata):
        raise UserError(f"{path} is damaged: it is not what was written; put it back from a copy, or make it again")
    return tensors, metadata


def _write(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file whose metadata holds the digest of all that it says."""
    content = save(dict(tensors), {**metadata, DIGEST: _digest(tensors, metadata)})
    write_bytes(Path(path), content)


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, types, shapes and bytes of the tensors, and of the metadata."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


__all__ = [
    "Codebook", "Dalle", "DalleEncoder", "StoredIds", "content_key", "fit_codebook", "load_dalle",
    "nearest", "read_codebook", "save_codebook", "save_ids",
]  # fmt: skip
