"""Decodes images under a fixed policy; a JPEG also at 1/2, 1/4 and 1/8 of its size.

Shape letters: H W pixels.
"""

import contextlib
import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.errors import SampleError
from pipeline.jpegs import shortened
from pipeline.options import options

FULL = 8  # scales are counted in eighths, as libjpeg does
SCALES = (1, 2, 4, FULL)
_FORMATS = ("JPEG", "PNG", "WEBP")
MOST_PIXELS = 1024**3 // 4 // 3  # beyond this Pillow itself refuses
_JPEG = b"\xff\xd8\xff"


@options
class DecodePolicy:
    """Which images are used and how they become RGB; part of a cache's fingerprint.

    Fixed: the type is told by content and is JPEG, PNG or WebP. EXIF orientation is not applied
    and alpha is dropped, as CLIP's own preprocessing does. Palette and 1-bit images become RGB
    before any resize. 16-bit grey keeps its high byte. CMYK becomes RGB by Pillow's formula. Of
    an animation, the first frame. A JPEG whose pixels end too early is refused, though it may have
    an end mark. The caps below are checked before pixels are allocated.
    """

    max_bytes: int = 64 * 1024 * 1024  # of the encoded image
    max_pixels: int = 50_000_000
    max_aspect: float = 50.0  # longer side / shorter side
    min_side_px: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= MOST_PIXELS:
            raise ValueError(f"max_pixels is 1 to {MOST_PIXELS}, not {self.max_pixels}")
        for field in ("max_bytes", "max_aspect", "min_side_px"):
            if not getattr(self, field) >= 1:
                raise ValueError(f"{field} is at least 1, not {getattr(self, field)}")


class SourceImage:
    """An image to cut views from; pixels are decoded when asked for, once per scale.

    width, height: of the whole image, in pixels. seen_whole: these very bytes were decoded to the
    end before, without a SampleError, so that a JPEG's end need not be looked at again.
    """

    def __init__(self, encoded: bytes, policy: DecodePolicy, *, seen_whole: bool = False) -> None:
        """Check the header; raises SampleError with a countable reason."""
        if not encoded:
            raise SampleError("empty", "the image has 0 bytes")
        if len(encoded) > policy.max_bytes:
            raise SampleError("too-many-bytes", f"{len(encoded)} bytes, at most {policy.max_bytes}")
        self._encoded, self._policy, self._seen_whole = encoded, policy, seen_whole
        self._decoded: dict[int, np.ndarray] = {}
        size = _jpeg_size(encoded)
        self._scalable = size is not None
        if size is None:
            self._decoded[FULL] = _decode_any(encoded, policy)
            size = self._decoded[FULL].shape[1], self._decoded[FULL].shape[0]
        _check_size(*size, policy)
        self.width, self.height = size

    @classmethod
    def of(cls, pixels_HW3: np.ndarray) -> "SourceImage":
        """Hold pixels that are decoded already, uint8 RGB."""
        image = cls.__new__(cls)
        image.height, image.width = pixels_HW3.shape[:2]
        image._scalable, image._decoded = False, {FULL: np.ascontiguousarray(pixels_HW3)}
        return image

    def size(self, eighths: int = FULL) -> tuple[int, int]:
        """Return width and height of what `pixels` shows at a scale, rows left out included."""
        if not self._scalable:
            return self.width, self.height
        return -(-self.width * eighths // FULL), -(-self.height * eighths // FULL)

    def pixels(self, eighths: int = FULL, *, rows: int | None = None) -> np.ndarray:
        """Return uint8 [H,W,3] RGB at `eighths`/8 of the size, or the whole if it has no smaller.

        rows: how many are needed from the top; an image that was seen whole may come without some
        of those below. The array is C-contiguous. The full size equals Pillow's decoding, byte for
        byte. Raises SampleError. Ask for `size` afterwards: decoding may find that an image has no
        smaller scale.
        """
        if self._scalable:
            height = self.size(eighths)[1]
            needed = height if rows is None else min(rows, height)
            if eighths not in self._decoded or len(self._decoded[eighths]) < needed:
                self._decode_jpeg(eighths, needed)
        return self._decoded[eighths if self._scalable else FULL]

    def _decode_jpeg(self, eighths: int, rows: int) -> None:
        if self._seen_whole and (short := shortened(self._encoded, rows, eighths)):
            with contextlib.suppress(ValueError):
                self._decoded[eighths] = self._scaled(*short, eighths, strict=False)
                return
        try:
            self._decoded[eighths] = self._scaled(self._encoded, self.height, eighths, strict=True)
        except ValueError as error:
            if "premature end" in str(error).lower():  # Pillow would fill in what is missing
                raise SampleError("truncated", str(error)[:200]) from None
            self._decode_damaged(eighths)

    def _decode_damaged(self, eighths: int) -> None:
        """Decode what is damaged, or merely unusual: Pillow says whether it is an image.

        The scale stays what it was, so that pixels do not hang on damage further down.
        """
        whole_HW3 = _decode_any(self._encoded, self._policy)
        try:
            self._decoded[eighths] = self._scaled(self._encoded, self.height, eighths, strict=False)
        except ValueError:
            self._scalable, self._decoded[FULL] = False, whole_HW3

    def _scaled(
        self, encoded: bytes | bytearray, height: int, eighths: int, *, strict: bool
    ) -> np.ndarray:
        """Decode all rows of a JPEG, `height` by its header; raises ValueError."""
        pixels_HW3: np.ndarray = simplejpeg.decode_jpeg(
            encoded,
            min_height=-(-height * eighths // FULL),
            min_width=-(-self.width * eighths // FULL),
            strict=strict,
        )
        return pixels_HW3


def decode(encoded: bytes, policy: DecodePolicy) -> np.ndarray:
    """Return uint8 [H,W,3] RGB at full size, or raise SampleError with a countable reason."""
    return SourceImage(encoded, policy).pixels()


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG that libjpeg-turbo decodes as Pillow does, else None."""
    if not encoded.startswith(_JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except (ValueError, KeyError):  # KeyError: of a subsampling that it has no name for
        return None
    return (width, height) if colours in ("YCbCr", "Gray") else None


def _decode_any(encoded: bytes, policy: DecodePolicy) -> np.ndarray:
    """Decode by Pillow."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of wrong metadata, beside pixels that are whole
            with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
                _check_size(*image.size, policy)
                return _to_rgb(image)
    except (SampleError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # twice Pillow's own limit, or more
        raise SampleError("too-many-pixels", str(error)) from None
    except UnidentifiedImageError:  # its own words hold an address, which differs between runs
        detail = f"no JPEG, PNG or WebP; it begins {encoded[:24]!r}"
        raise SampleError("undecodable", detail) from None
    except Exception as error:  # decoders raise many kinds; all mean that the sample is bad
        reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise SampleError(reason, f"{type(error).__name__}: {error}"[:200]) from None


def _check_size(width: int, height: int, policy: DecodePolicy) -> None:
    if width * height > policy.max_pixels:
        detail = f"{width}x{height} pixels, at most {policy.max_pixels} in all"
        raise SampleError("too-many-pixels", detail)
    if min(width, height) < policy.min_side_px:
        raise SampleError("too-small", f"{width}x{height}, at least {policy.min_side_px} a side")
    if max(width, height) > policy.max_aspect * min(width, height):
        raise SampleError("too-long", f"{width}x{height}, at most {policy.max_aspect} to 1")


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # Pillow's own conversion would clip 16-bit grey to white
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(max=255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
