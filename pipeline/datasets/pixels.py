"""Images as bytes: arrays encoded without loss, large ones re-encoded to a shorter side."""

import io
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import SampleError

if TYPE_CHECKING:
    import numpy as np

_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},  # no colour is thrown away that a crop could show
    "WEBP": {"quality": 95},
    "PNG": {},
}
_GREY = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B")


class _Header(NamedTuple):
    """What Pillow says of an image before it decodes it; the profile belongs to its colours."""

    size: tuple[int, int]
    kind: str
    mode: str
    profile: bytes | None


def png(pixels: "np.ndarray") -> bytes:
    """Encode uint8 [H,W] or [H,W,3] as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shrunk(content: bytes, max_px: int) -> bytes:
    """Return an encoded image whose shorter side is at most `max_px`, in its own format.

    It is decoded as stage one would (`pipeline.decode`: alpha dropped, 16-bit grey by its high
    byte), but for the caps, and becomes grey or RGB. One that is small enough, or that cannot be
    decoded, is returned as it is: stage one puts the latter on record. EXIF data goes (its
    orientation is not applied, as everywhere); an ICC profile of RGB or grey stays.
    """
    header = _header(content)
    if header is None or min(header.size) <= max_px:
        return content
    from pipeline.decode import MOST_PIXELS, DecodePolicy, decode

    policy = DecodePolicy(
        max_bytes=max(1, len(content)), max_pixels=MOST_PIXELS, max_aspect=1e9, min_side_px=1
    )
    try:
        return _resized(decode(content, policy), header, max_px)
    except SampleError:
        return content


def _header(content: bytes) -> _Header | None:
    """Return what the header says, or None if it is none of a format that serves."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size and metadata: decoding will tell
            with Image.open(io.BytesIO(content), formats=tuple(_OPTIONS)) as image:
                profile = image.info.get("icc_profile") if image.mode != "CMYK" else None
                return _Header(image.size, str(image.format), image.mode, profile)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _resized(pixels_HW3: "np.ndarray", header: _Header, max_px: int) -> bytes:
    from PIL import Image

    scale = max_px / min(header.size)
    width, height = (max(max_px, round(side * scale)) for side in header.size)
    pixels = pixels_HW3[:, :, 0] if header.mode in _GREY else pixels_HW3
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    resized.save(buffer, header.kind, icc_profile=header.profile, **_OPTIONS[header.kind])
    return buffer.getvalue()
