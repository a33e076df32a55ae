"""Images as bytes: arrays encoded without loss, large ones re-encoded to a shorter side."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_JPEG = {"quality": 95, "subsampling": 0}  # no colour is thrown away that a crop could show


def png(pixels: "np.ndarray") -> bytes:
    """Encode uint8 [H,W] or [H,W,3] as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shrunk(content: bytes, max_px: int) -> bytes:
    """Return an encoded image whose shorter side is at most `max_px`, in its own format.

    One that is small enough, or that cannot be decoded, is returned as it is: stage one puts the
    latter on record. EXIF data goes (its orientation is not applied, as everywhere), an ICC profile
    stays.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if min(image.size) <= max_px or image.format not in ("JPEG", "PNG", "WEBP"):
                return content
            return _resized(image, max_px)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return content


def _resized(image: Any, max_px: int) -> bytes:
    from PIL import Image

    scale = max_px / min(image.size)
    size = tuple(max(max_px, round(side * scale)) for side in image.size)
    profile, kind = image.info.get("icc_profile"), image.format
    plain = image.convert("RGBA" if "transparency" in image.info else "RGB")
    pixels = image if image.mode in ("L", "RGB", "RGBA", "CMYK") else plain
    buffer = io.BytesIO()
    options = {"JPEG": _JPEG, "WEBP": {"quality": 95}}.get(kind, {})
    resized = pixels.resize(size, Image.Resampling.LANCZOS)
    resized.save(buffer, kind, icc_profile=profile, **options)
    return buffer.getvalue()
