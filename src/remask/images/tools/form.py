"""How images are packed. Free of torch."""

from dataclasses import dataclass

from remask.errors import UserError


@dataclass(frozen=True)
class Form:
    """How images are packed.

    kind      "jpeg", or "raw": uint8 pixels, which are never decoded again
    shorter   pixels of the shorter side at most; larger images are resized. None: as they are
    exactly   instead, this height and width: resized to cover it and cut to its middle
    quality   of JPEGs that are written, 1..100; one that is small enough is copied byte for byte
    channels  of raw pixels, or 1 or 3 of JPEGs that are written
    """

    kind: str = "jpeg"
    shorter: int | None = 256
    exactly: tuple[int, int] | None = None
    quality: int = 90
    channels: int = 3

    def __post_init__(self) -> None:
        if self.kind not in ("jpeg", "raw"):
            raise UserError(f"there is no format {self.kind!r}: choose jpeg or raw")
        if self.kind == "jpeg" and self.channels not in (1, 3):
            raise UserError(f"a JPEG has 1 or 3 channels, not {self.channels}: choose --format raw")
        if not 1 <= self.quality <= 100 or self.channels < 1 or min(self.exactly or (self.shorter or 1,)) < 1:
            raise UserError("quality lies in 1..100, channels and sizes begin with 1")
