"""The form of a packed set, as the flags of `remask data pack` describe it. Free of torch."""

from remask.images.tools.form import Form
from remask.recipe.values import image_size


def parse_form(kind: str, size: str, quality: int, channels: int) -> Form:
    """The form that --format, --size, --quality and --channels describe.

    size   256 for the shorter side, 256x256 for the whole image, 0 for the size that each image has
    """
    if "x" in size:
        return Form(kind, None, image_size(size, "--size"), quality, channels)
    shorter = None if size == "0" else (image_size(size, "--size") or (0, 0))[0]
    return Form(kind, shorter, None, quality, channels)


__all__ = ["parse_form"]
