"""Renders views: encoded bytes and ViewParams in, pixels out, with no randomness inside.

The only definition of a view in the project: stage one and stage two both call it. Shape letters:
V views, S side of a view in pixels, H W pixels of the source.
"""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import SampleError
from pipeline.options import options
from pipeline.photometry import apply_photometry
from pipeline.schedule import GEOMETRIES, INTERPOLATIONS, ViewParams

_FORMATS = ("JPEG", "PNG", "WEBP")
_MOST_PIXELS = 1024**3 // 4 // 3  # beyond this Pillow itself refuses
_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@options
class DecodePolicy:
    """Which images are used and how they become RGB; part of a cache's fingerprint.

    Fixed: the type is told by content and is JPEG, PNG or WebP. EXIF orientation is not applied
    and alpha is dropped, as CLIP's own preprocessing does. Palette and 1-bit images become RGB
    before any resize. 16-bit grey keeps its high byte. CMYK becomes RGB by Pillow's formula. Of
    an animation, the first frame. The caps below are checked before pixels are allocated.
    """

    max_bytes: int = 64 * 1024 * 1024  # of the encoded image
    max_pixels: int = 50_000_000
    max_aspect: float = 50.0  # longer side / shorter side
    min_side_px: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= _MOST_PIXELS:
            raise ValueError(f"max_pixels is 1 to {_MOST_PIXELS}, not {self.max_pixels}")
        for field in ("max_bytes", "max_aspect", "min_side_px"):
            if not getattr(self, field) >= 1:
                raise ValueError(f"{field} is at least 1, not {getattr(self, field)}")


def render_views(
    encoded: bytes, params: Sequence[ViewParams], size: int, policy: DecodePolicy | None = None
) -> Tensor:
    """Render one uint8 [V,3,S,S] view per element of `params`; raises SampleError."""
    image = decode(encoded, policy or DecodePolicy())
    geometry = render_geometry(image, params, size)
    params_VP = np.array(params, np.float32).reshape(len(params), len(ViewParams._fields))
    return apply_photometry(geometry, params_VP)


def decode(encoded: bytes, policy: DecodePolicy) -> np.ndarray:
    """Return uint8 [H,W,3] RGB, or raise SampleError with a countable reason."""
    if not encoded:
        raise SampleError("empty", "the image has 0 bytes")
    if len(encoded) > policy.max_bytes:
        raise SampleError("too-many-bytes", f"{len(encoded)} bytes, at most {policy.max_bytes}")
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
        reason = "truncated" if "truncated" in str(error) else "undecodable"
        raise SampleError(reason, f"{type(error).__name__}: {error}"[:200]) from None


def render_geometry(image_HW3: np.ndarray, params: Sequence[ViewParams], size: int) -> Tensor:
    """Crop, resize and flip: uint8 [V,3,S,S], byte-equal wherever the same size is asked for."""
    views_V3SS = torch.empty((len(params), 3, size, size), dtype=torch.uint8)
    for number, view in enumerate(params):
        two_step = GEOMETRIES[int(view.geometry)] != "crop"
        pixels = (
            _resize_then_cut(image_HW3, view, size)
            if two_step
            else _cut_then_resize(image_HW3, view, size)
        )
        views_V3SS[number] = pixels.flip(2) if view.flip else pixels
    return views_V3SS


def pixel_box(view: ViewParams, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the view's box in whole source pixels (left, top, width, height), never empty."""
    wide = min(width, max(1, round(view.width * width)))
    tall = min(height, max(1, round(view.height * height)))
    left = min(width - wide, max(0, round(view.x * width)))
    top = min(height - tall, max(0, round(view.y * height)))
    return left, top, wide, tall


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


def _cut_then_resize(image_HW3: np.ndarray, view: ViewParams, size: int) -> Tensor:
    height, width = image_HW3.shape[:2]
    left, top, wide, tall = pixel_box(view, width, height)
    box_HW3 = image_HW3[top : top + tall, left : left + wide]
    return F.interpolate(
        torch.from_numpy(box_HW3).permute(2, 0, 1)[None],
        size=(size, size),
        mode=INTERPOLATIONS[int(view.interpolation)],
        antialias=True,
    )[0]


def _resize_then_cut(image_HW3: np.ndarray, view: ViewParams, size: int) -> Tensor:
    """Resize by the mode's rule, then cut or pad at the centre, as open_clip's preprocess does."""
    height, width = image_HW3.shape[:2]
    mode = GEOMETRIES[int(view.geometry)]
    wide, tall = _resized(width, height, size, mode)
    resample = _PILLOW[INTERPOLATIONS[int(view.interpolation)]]
    pixels_HW3 = np.array(Image.fromarray(image_HW3).resize((wide, tall), resample))
    canvas_SS3 = np.zeros((size, size, 3), np.uint8)
    (source_y, target_y), (source_x, target_x) = _centre(tall, size), _centre(wide, size)
    canvas_SS3[target_y, target_x] = pixels_HW3[source_y, source_x]
    return torch.from_numpy(canvas_SS3).permute(2, 0, 1)


def _resized(width: int, height: int, size: int, mode: str) -> tuple[int, int]:
    """Return the size before the centre cut: torchvision's rounding for 'shortest'."""
    if mode == "squash":
        return size, size
    if mode == "shortest":
        short = min(width, height)
        return int(size * width / short), int(size * height / short)
    ratio = max(width, height) / size
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _centre(length: int, size: int) -> tuple[slice, slice]:
    """Return which part of `length` pixels is seen, and where it lies in `size` pixels."""
    if length >= size:
        start = round((length - size) / 2.0)
        return slice(start, start + size), slice(0, size)
    start = (size - length) // 2
    return slice(0, length), slice(start, start + length)
