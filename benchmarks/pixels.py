"""Ways to decode, crop and recolour, one thread, milliseconds: why views are made as they are."""

import io
from collections.abc import Callable
from statistics import median

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks.inputs import FULL, PHOTO, photo
from benchmarks.measure import Row, row, seconds
from pipeline.decode import SourceImage
from pipeline.photometry import apply_photometry
from pipeline.schedule import ViewParams
from pipeline.views import render_geometry

SIDE, TIMES, ROUNDS = 224, 20, 5


def rows() -> list[Row]:
    """Measure every way in turn, round after round."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {name: [] for name in _WAYS}
    for _ in range(ROUNDS):
        for name, way in _WAYS.items():
            found[name].append(1000 * median(seconds(way) for _ in range(TIMES)))
    return [row(name, values, "ms") for name, values in found.items()]


_JPEG = photo(1)
_PIXELS_HW3 = simplejpeg.decode_jpeg(_JPEG)
_IMAGE = Image.fromarray(_PIXELS_HW3)
_BUFFER = torch.tensor(list(_JPEG), dtype=torch.uint8)
_VIEW_13SS = torch.from_numpy(_PIXELS_HW3[:SIDE, :SIDE].copy()).permute(2, 0, 1)[None].contiguous()
_VIEWS_B3SS = _VIEW_13SS.repeat(16, 1, 1, 1)
_PARAMS = np.array(
    [FULL.params(str(i), 0, *PHOTO) for i in range(16)], np.float32
)  # a jitter, a grey or a blur in most


_SOURCE = SourceImage.of(_PIXELS_HW3)
_PLANES_13HW = torch.from_numpy(_PIXELS_HW3).permute(2, 0, 1)[None].contiguous()


def _torch_resize() -> None:
    F.interpolate(_PLANES_13HW, size=(SIDE, SIDE), mode="bicubic", antialias=True)


def _torchvision_decode() -> None:
    from torchvision.io import decode_jpeg

    decode_jpeg(_BUFFER)


def _half() -> None:
    width, height = PHOTO
    simplejpeg.decode_jpeg(_JPEG, min_height=-(-height // 2), min_width=-(-width // 2))


def _photometry() -> None:
    apply_photometry(_VIEWS_B3SS, _PARAMS)


def _torchvision_jitter() -> None:
    from torchvision.transforms import v2

    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    blur = v2.GaussianBlur(13, (0.1, 2.0))
    for place in range(16):  # as often as the defaults apply them
        view = _VIEW_13SS
        if place % 5:
            view = jitter(view)
        if place % 2:
            view = blur(view)


_WAYS: dict[str, Callable[[], object]] = {
    "decode 500x375: Pillow": lambda: np.asarray(Image.open(io.BytesIO(_JPEG)).convert("RGB")),
    "decode 500x375: torchvision.io": _torchvision_decode,
    "decode 500x375: simplejpeg (used)": lambda: simplejpeg.decode_jpeg(_JPEG),
    "decode 500x375 at half scale: simplejpeg (used)": _half,
    "whole to 224 px, bicubic: Pillow (eval views)": lambda: _IMAGE.resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    ),
    "whole to 224 px, bicubic: torch uint8, a plane per colour": _torch_resize,
    "whole to 224 px, bicubic: torch uint8, channels_last (crops)": lambda: render_geometry(
        _SOURCE, [ViewParams()], SIDE
    ),
    "16 views, default jitter and blur: torchvision v2": _torchvision_jitter,
    "16 views, default jitter and blur: photometry (used)": _photometry,
}
