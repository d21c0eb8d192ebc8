"""Crops made on the device: of a set cached there, or of JPEGs decoded there. Boxes are drawn as on the host.

The resize is that of `transforms.resize`, with the same integer weights, as two matrix products: host and device give
the same pixels.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int, UInt8
from PIL import ExifTags, Image
from torch import Generator, Tensor

from remask.errors import UserError
from remask.images.decoding import BadImage, Reduction, decode
from remask.images.loading.image_cache import ImageCache
from remask.images.loading.memory import half_of_memory_mb
from remask.images.loading.workers import chunks, map_batches
from remask.images.transforms import Box, RandomCropFlip, rows_first
from remask.types import Size

CHUNK = 1 << 22
"""Pixels that are cut at once, the padding of smaller boxes included; intermediate tensors then take 0.15 GB."""

IMAGES_PER_TASK = 32
"""Images that a worker decodes and returns at once."""

SHARE = 4
"""A cached set may take a quarter of the device's free memory."""


class CropOnDevice:
    """`RandomCropFlip` of a batch on its device: the same boxes from the same seeds."""

    def __init__(self, crop: RandomCropFlip) -> None:
        self._crop = crop

    def __call__(self, images: Sequence[Tensor], seeds: Sequence[int]) -> UInt8[Tensor, "B C h w"]:
        pairs, generator = zip(images, seeds, strict=True), Generator()
        boxes = [self._crop.place(image.shape[1], image.shape[2], generator.manual_seed(seed)) for image, seed in pairs]
        return cut(images, boxes, self._crop.size)


def cut(images: Sequence[UInt8[Tensor, "C _ _"]], boxes: Sequence[Box], size: Size) -> UInt8[Tensor, "B C h w"]:
    """boxes[i] of images[i] resized to `size`, on the images' device; the images may differ in size."""
    channels, device = images[0].shape[0], images[0].device
    out = torch.empty(len(images), channels, *size, dtype=torch.uint8, device=device)
    first = [rows_first(box.height, box.width, size) for box in boxes]
    for rows in (True, False):
        for chunk in _chunks([i for i, vertical in enumerate(first) if vertical == rows], boxes):
            out[chunk] = _cut([images[i] for i in chunk], [boxes[i] for i in chunk], size, rows)
    return out


def _chunks(numbers: list[int], boxes: Sequence[Box]) -> Iterator[list[int]]:
    """The numbers in groups of boxes of similar size: one box, or at most CHUNK pixels when padded to the largest."""
    chunk, tall, wide = list[int](), 0, 0
    for i in sorted(numbers, key=lambda i: boxes[i].height * boxes[i].width):
        tall, wide = max(tall, boxes[i].height), max(wide, boxes[i].width)
        if chunk and (len(chunk) + 1) * tall * wide > CHUNK:
            yield chunk
            chunk, tall, wide = [], boxes[i].height, boxes[i].width
        chunk.append(i)
    if chunk:
        yield chunk


def _cut(images: list[Tensor], boxes: list[Box], size: Size, rows: bool) -> UInt8[Tensor, "B C h w"]:
    pixels, starts = _joined(images)
    geometry = [[start, int(image.shape[2]), *box] for image, start, box in zip(images, starts, boxes, strict=True)]
    start, width, top, left, tall, wide, mirrored = torch.tensor(geometry).T.to(pixels.device, non_blocking=True)
    y = torch.arange(max(box.height for box in boxes), device=pixels.device).minimum(tall[:, None] - 1)
    x = torch.arange(max(box.width for box in boxes), device=pixels.device).minimum(wide[:, None] - 1)
    index = ((top[:, None] + y) * width[:, None] + start[:, None] + left[:, None])[:, :, None] + x[:, None]
    crop = pixels[index].permute(0, 3, 1, 2).float()
    for axis in (-2, -1) if rows else (-1, -2):
        crop = _resized(crop, tall if axis == -2 else wide, size[axis], axis)
    return torch.where(mirrored.bool()[:, None, None, None], crop.flip(-1), crop).to(torch.uint8)


def _joined(images: list[Tensor]) -> tuple[UInt8[Tensor, "P C"], list[int]]:
    """All pixels, one a row, and the row at which each image begins. Images of one arena are not copied."""
    channels, storage = images[0].shape[0], images[0].untyped_storage()
    together = all(image.untyped_storage().data_ptr() == storage.data_ptr() for image in images)
    if together and all(image.permute(1, 2, 0).is_contiguous() for image in images):
        arena = torch.empty(0, dtype=torch.uint8, device=images[0].device).set_(storage)
        usable = len(arena) // channels * channels
        return arena[:usable].view(-1, channels), [int(image.storage_offset()) // channels for image in images]
    flat = [image.permute(1, 2, 0).reshape(-1, channels) for image in images]
    starts = [0]
    for pixels in flat:
        starts.append(starts[-1] + len(pixels))
    return torch.cat(flat), starts[:-1]


def _resized(crop: Float[Tensor, "B C H W"], lengths: Int[Tensor, "B"], size: int, axis: int) -> Tensor:
    """One pass along an axis. Both products are of integers below 2^9 and sum to less than 2^24: exact in float32, and
    with TF32 factors too, where no line shrinks more than 64 times."""
    weights, precision = _weights(lengths, crop.shape[axis], size)
    high = weights >> 8
    along = crop if axis == -1 else crop.transpose(-1, -2)
    with torch.autocast(crop.device.type, enabled=False):
        sums = [torch.matmul(along.flatten(1, 2), factor.float().mT).int() for factor in (high, weights - (high << 8))]
    precision = precision[:, None, None]
    out = (((sums[0] << 8) + sums[1] + (1 << precision - 1)) >> precision).clamp_(0, 255).float()
    out = out.unflatten(1, along.shape[1:3])
    return out if axis == -1 else out.transpose(-1, -2)


def _weights(lengths: Int[Tensor, "B"], longest: int, size: int) -> tuple[Int[Tensor, "B o i"], Int[Tensor, "B"]]:
    """Integer weights from each pixel of a line of `lengths` pixels to each of `size`, and their binary places.

    Keys' cubic with a = -1/2, widened by the factor of shrinking, at the precision that 15 bits and a sign allow.
    """
    scale = (lengths.double() / size)[:, None, None]
    wide = scale.clamp(min=1)
    centre = (torch.arange(size, device=lengths.device)[None, :, None] + 0.5) * scale
    i = torch.arange(longest, device=lengths.device)
    low = (centre - 2 * wide + 0.5).floor().clamp(min=0)
    high = (centre + 2 * wide + 0.5).floor().minimum(lengths[:, None, None])
    x = ((i - centre + 0.5) * (1 / wide)).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    value = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    value = torch.where((i >= low) & (i < high), value, 0.0)
    value = value / value.sum(-1, keepdim=True)
    powers = 2.0 ** torch.arange(1, 23, device=lengths.device)
    precision = (value.amax((1, 2))[:, None] * powers + 0.5 < 1 << 15).sum(1).int()
    shifted = value * 2.0 ** precision[:, None, None]
    return (shifted + torch.where(shifted < 0, -0.5, 0.5)).trunc().int(), precision


class CachedOnDevice:
    """Images cached as uint8 on a device: decoded by workers before the first batch, or each at its first use.

    Raises UserError where the set would take more than a quarter of the device's free memory.
    """

    def __init__(self, images: ImageCache, device: torch.device, workers: int = 0) -> None:
        self._images, self._device, self._workers = images, device, workers
        self.beyond: dict[int, str] = {}
        self._room = _free(device) // SHARE
        self._places: dict[int, tuple[int, int, int]] = {}
        expected = images.estimate()
        if expected > self._room:
            raise UserError(
                f'data.keep "device": the pictures of {images.source.name} take about {expected / 1e9:.1f} GB '
                f"decoded, more than a quarter of what is free on {device} ({SHARE * self._room / 1e9:.1f} GB): "
                'pack them smaller with remask data pack SRC --size 256 --out FILE.remask, or use data.keep "auto"'
            )
        self._arena = torch.empty(expected, dtype=torch.uint8, device=device)
        self._filled = 0

    def __len__(self) -> int:
        return len(self._images)

    def ahead(self, numbers: Sequence[int]) -> None:
        """At the first call, decode the whole set with the worker processes."""
        workers, self._workers = self._workers, 0
        if workers:
            decode_chunk = partial(_decoded, self._images)
            for pixels, shapes in map_batches(decode_chunk, chunks(len(self), IMAGES_PER_TASK), workers):
                at = 0
                for i, height, width in shapes:
                    length = height * width * self._images.channels
                    image = pixels[at : at + length].view(height, width, -1).permute(2, 0, 1)
                    at += length
                    if i not in self._places:
                        self._put(i, image)

    def get(self, i: int, reduction: Reduction | None = None) -> UInt8[Tensor, "C H W"]:
        if i not in self._places:
            self._put(i, self._images.get(i))
            if i not in self._places:  # no room is left: the images are larger than the sampled ones
                return self._images.get(i).to(self._device)
        start, height, width = self._places[i]
        channels = self._images.channels
        return self._arena[start:].as_strided(
            (channels, height, width), (1, width * channels, channels), self._arena.storage_offset() + start
        )

    def _put(self, i: int, image: Tensor) -> None:
        end = self._filled + image.nbytes
        if end > len(self._arena):
            if end > self._room:
                return
            more = torch.empty(min(end + end // 4, self._room), dtype=torch.uint8, device=self._device)
            more[: self._filled] = self._arena[: self._filled]
            self._arena = more
        self._arena[self._filled : end] = image.permute(1, 2, 0).flatten().to(self._device)
        self._places[i] = (self._filled, *image.shape[1:])
        self._filled = end


def _decoded(images: ImageCache, numbers: range) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """(pixels of the usable images, HWC one after the other; [(number, height, width), …] of each)."""
    pixels, shapes = [torch.empty(0, dtype=torch.uint8)], []
    for i in numbers:
        with contextlib.suppress(BadImage):  # reported when a batch needs the image
            image = images.get(i)
            pixels.append(image.permute(1, 2, 0).flatten())
            shapes.append((i, image.shape[1], image.shape[2]))
    return torch.cat(pixels), shapes


def fits(images: ImageCache, device: torch.device | None, limit_mb: int) -> bool:
    """Whether "auto" caches a set on a GPU: 8 bits, at most `limit_mb` MiB and a quarter of the free memory."""
    if device is None or device.type != "cuda" or not limit_mb:
        return False
    return 0 < images.estimate() <= min(limit_mb << 20, _free(device) // SHARE) and not images.deep


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return half_of_memory_mb() << 21


class DecodedOnDevice:
    """Images whose JPEGs nvJPEG decodes on a CUDA device, a batch at once; the host decodes all others."""

    def __init__(self, images: ImageCache, device: torch.device) -> None:
        self._images, self._device = images, device
        self.beyond: dict[int, str] = {}
        self._next: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._images)

    def ahead(self, numbers: Sequence[int]) -> None:
        """Decode the JPEGs among these images at once, for the calls of `get` that follow."""
        read = {i: self._images.read(i) for i in numbers}
        plain = {i: data for i, data in read.items() if isinstance(data, bytes) and is_plain(data)}
        self._next = {}
        with contextlib.suppress(RuntimeError):  # nvJPEG refuses one of them: the host decodes all, one by one
            decoded = decode_on_device(list(plain.values()), self._images.channels, self._device)
            self._next = dict(zip(plain, decoded, strict=True))

    def get(self, i: int, reduction: Reduction | None = None) -> UInt8[Tensor, "C H W"]:
        if i not in self._next:
            return self._images.get(i).to(self._device)
        return self._images.checked(self._next[i])


def is_plain(data: bytes) -> bool:
    """Whether this is a JPEG of 8 bits, gray or colour, that EXIF does not turn."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            small = image.width * image.height <= 100_000_000
            return small and image.mode in ("L", "RGB") and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # Pillow may raise anything on it, and the host's decoder reports the fault
        return False


def decode_on_device(data: Sequence[bytes], channels: int, device: torch.device) -> list[UInt8[Tensor, "C _ _"]]:
    """JPEGs decoded on a CUDA device. Raises RuntimeError where torchvision or nvJPEG cannot."""
    warnings.filterwarnings("ignore", message="The image decoding and encoding", category=DeprecationWarning)
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in data]
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    return list(decode_jpeg(encoded, mode, device=device)) if encoded else []


def no_decoder(device: torch.device | None, channels: int) -> str | None:
    """Why JPEGs cannot be decoded on this device, found by decoding a small one; None where they can."""
    if device is None or device.type != "cuda":
        return f"{device or 'cpu'} is no CUDA device"
    if channels not in (1, 3):
        return f"JPEGs have 1 or 3 channels, not {channels}"
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(stream, "JPEG")
    try:
        on_device = decode_on_device([stream.getvalue()], channels, device)[0]
        on_host = decode(stream.getvalue(), channels)
        return None if (on_device.cpu().int() - on_host.int()).abs().max() <= 8 else "its nvJPEG gives other colours"
    except (RuntimeError, ImportError, BadImage) as error:
        return " ".join(str(error).split())[:120]
