"""Renders views: encoded bytes and ViewParams in, pixels out, with no randomness inside.

The only definition of a view in the project: stage one and stage two both call it. Shape letters:
V views, S side of a view in pixels, H W pixels of the source.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.decode import FULL, SCALES, DecodePolicy, SourceImage
from pipeline.photometry import apply_photometry
from pipeline.schedule import GEOMETRIES, INTERPOLATIONS, ViewParams

_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def render_views(
    encoded: bytes, params: Sequence[ViewParams], size: int, policy: DecodePolicy | None = None
) -> Tensor:
    """Render one uint8 [V,3,S,S] view per element of `params`; raises SampleError."""
    image = SourceImage(encoded, policy or DecodePolicy())
    geometry = render_geometry(image, params, size)
    params_VP = np.array(params, np.float32).reshape(len(params), len(ViewParams._fields))
    return apply_photometry(geometry, params_VP)


def render_geometry(
    image: SourceImage, params: Sequence[ViewParams], size: int, *, out: Tensor | None = None
) -> Tensor:
    """Crop, resize and flip: uint8 [V,3,S,S], byte-equal wherever the same size is asked for.

    In memory, the colours of a pixel lie together (torch's channels_last), as decoders leave them.
    out: where to put the views. Raises SampleError if the image cannot be decoded.
    """
    views_V3SS = blank_views(len(params), size) if out is None else out
    for number, view in enumerate(params):
        two_step = GEOMETRIES[int(view.geometry)] != "crop"
        render = _resize_then_cut if two_step else _cut_then_resize
        pixels = render(image, view, size)
        views_V3SS[number] = pixels.flip(2) if view.flip else pixels
    return views_V3SS


def blank_views(count: int, size: int) -> Tensor:
    """Return uint8 [count,3,S,S], channels_last, of any content."""
    return torch.empty((count, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def decoding_scale(view: ViewParams, width: int, height: int, size: int) -> int:
    """Return the least scale, in eighths, at which a crop is still no smaller than the view.

    The other geometries are open_clip's own preprocessing, which decodes in full.
    """
    if GEOMETRIES[int(view.geometry)] != "crop":
        return FULL
    side = min(view.width * width, view.height * height)
    for eighths in SCALES[:-1]:
        if side * eighths / FULL < size - 2:  # whole pixels add less than two
            continue
        box = pixel_box(view, -(-width * eighths // FULL), -(-height * eighths // FULL))
        if min(box[2:]) >= size:
            return eighths
    return FULL


def pixel_box(view: ViewParams, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the view's box in whole source pixels (left, top, width, height), never empty."""
    wide = min(width, max(1, round(view.width * width)))
    tall = min(height, max(1, round(view.height * height)))
    left = min(width - wide, max(0, round(view.x * width)))
    top = min(height - tall, max(0, round(view.y * height)))
    return left, top, wide, tall


def _cut_then_resize(image: SourceImage, view: ViewParams, size: int) -> Tensor:
    box_HW3 = torch.from_numpy(_cut(image, view, size))
    tall, wide = box_HW3.shape[:2]
    # Strides that say channels_last: permute() would leave them ambiguous for a batch of one, and
    # interpolate() would take its slower way.
    row = box_HW3.stride(0)
    return F.interpolate(
        box_HW3.as_strided((1, 3, tall, wide), (tall * row, 1, row, 3)),
        size=(size, size),
        mode=INTERPOLATIONS[int(view.interpolation)],
        antialias=True,
    )[0]


def _cut(image: SourceImage, view: ViewParams, size: int) -> np.ndarray:
    """Return the pixels of a crop's box, uint8 [H,W,3], decoded no further down than that."""
    eighths = decoding_scale(view, image.width, image.height, size)
    expected = image.size(eighths)
    left, top, wide, tall = pixel_box(view, *expected)
    pixels_HW3 = image.pixels(eighths, rows=top + tall)
    if image.size(eighths) != expected:  # it turned out to have no smaller scale
        left, top, wide, tall = pixel_box(view, image.width, image.height)
    return pixels_HW3[top : top + tall, left : left + wide]


def _resize_then_cut(image: SourceImage, view: ViewParams, size: int) -> Tensor:
    """Resize by the mode's rule, then cut or pad at the centre, as open_clip's preprocess does."""
    image_HW3 = image.pixels()
    mode = GEOMETRIES[int(view.geometry)]
    wide, tall = _resized(image.width, image.height, size, mode)
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
