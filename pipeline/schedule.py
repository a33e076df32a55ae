"""Decides views: (schedule, key, view, width, height) -> ViewParams, a pure function.

Every random number is a word of Philox, a counter-based generator, keyed by (seed, sample key) and
counted by the view. The words are mapped to floats here, so that no library's change of stream can
move a crop. Crops are fractions of the source and blur is a fraction of the view's side: one
schedule serves a teacher at 224 px and a student at 64 px.
"""

import math
import struct
import threading
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.options import options

GEOMETRIES = ("crop", "shortest", "longest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")
EVAL = "eval"

# Words of one (key, view), by place. A place never moves: switching one operation on or off, or
# adding one at the end, leaves every other draw as it was.
_NUM_WORDS = 32
_NUM_ATTEMPTS = 10
_AREA, _RATIO = 0, 10  # the first of ten words each
_X, _Y, _FLIP, _JITTER = 20, 21, 22, 23  # 24 is free
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 25, 26, 27, 28
_GRAYSCALE, _BLUR, _SIGMA = 29, 30, 31
_MAX_REACH = 100  # far beyond use; photometry keeps fewer bits the greater its factors


class ViewParams(NamedTuple):
    """The numbers that decide one view, each exactly a float32; a row of the cache's `params`.

    x, y, width, height: the seen box, as fractions of the source. geometry: index into GEOMETRIES
    (crop: cut the box and resize it; the others: resize, then cut or pad at the centre).
    interpolation: index into INTERPOLATIONS. flip: 1 mirrors left and right. brightness, contrast,
    saturation: factors, 1 changes nothing. hue: turns of the colour circle, 0 changes nothing.
    grayscale: 1 drops colour. blur_sigma: Gaussian sigma as a fraction of the view's side, 0 for
    none.
    """

    x: float = 0.0
    y: float = 0.0
    width: float = 1.0
    height: float = 1.0
    geometry: float = 0.0
    interpolation: float = 0.0
    flip: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur_sigma: float = 0.0


@options
class Schedule:
    """The rule for training views. Probabilities are 0 to 1; 0 switches an operation off.

    Operations, in order: crop and resize, flip, colour jitter, grayscale, blur. Defaults are those
    of MoCo-v2, which the source document lists among its starting points; its own list is in an
    appendix that was not published.
    """

    name: str = "views"
    seed: int = 0
    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the source's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop, in pixels
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5
    jitter: float = 0.8  # probability that the four below are applied at all
    brightness: float = 0.4  # factor drawn from 1 +- this
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # turns of the colour circle, +- this
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1 / 224, 2.0 / 224)  # fraction of the view's side

    def __post_init__(self) -> None:
        letters = self.name.replace("-", "")
        if self.name == EVAL or not (letters.isascii() and letters.isalnum()):
            raise ValueError(f"name must be letters, digits and '-', and not {EVAL!r}: {self.name}")
        for field in ("flip", "jitter", "grayscale", "blur"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is a probability, 0 to 1, not {getattr(self, field)}")
        for field in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, field)
            object.__setattr__(self, field, (float(low), float(high)))
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{field} must be [low, high], 0 < low <= high: {[low, high]}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale is a share of the area, at most 1: {self.crop_scale}")
        if self.blur_sigma[1] > 1:
            raise ValueError(f"blur_sigma is a fraction of the side, not pixels: {self.blur_sigma}")
        for field in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, field) <= _MAX_REACH:
                raise ValueError(f"{field} is 0 to {_MAX_REACH}, not {getattr(self, field)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be between 0 and 0.5 turns: {self.hue}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2**63 - 1: {self.seed}")

    def params(self, key: str, view: int, width: int, height: int) -> ViewParams:
        """Decide view number `view` of the sample `key`, whose image is width x height pixels."""
        uniform = view_uniforms(self.seed, key, view)
        return ViewParams(
            *_crop(self, uniform, width, height),
            geometry=GEOMETRIES.index("crop"),
            interpolation=INTERPOLATIONS.index(self.interpolation),
            flip=float(uniform[_FLIP] < self.flip),
            **_photometry(self, uniform),
        )


@options
class EvalSchedule:
    """The teacher's own preprocessing as a schedule of one view: resize, then cut the centre."""

    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def params(self, key: str, view: int, width: int, height: int) -> ViewParams:
        """Decide the only view (0); the same for every key."""
        if view != 0:
            raise ValueError(f"the eval schedule has one view, number 0, not {view}")
        side = min(width, height)
        cut = (side / width, side / height) if self.resize_mode == "shortest" else (1.0, 1.0)
        return ViewParams(
            x=_float32((1 - cut[0]) / 2),
            y=_float32((1 - cut[1]) / 2),
            width=_float32(cut[0]),
            height=_float32(cut[1]),
            geometry=GEOMETRIES.index(self.resize_mode),
            interpolation=INTERPOLATIONS.index(self.interpolation),
        )


AnySchedule = Schedule | EvalSchedule


def schedule_from(mapping: Mapping[str, Any]) -> AnySchedule:
    """Rebuild a schedule from its manifest entry (a mapping with `kind` and its fields)."""
    fields = {key: value for key, value in mapping.items() if key != "kind"}
    return EvalSchedule(**fields) if mapping["kind"] == EVAL else Schedule(**fields)


def view_uniforms(seed: int, key: str, view: int) -> list[float]:
    """Return the view's 32 uniform numbers in [0, 1).

    blake2b of (seed, key) keys Philox-4x64; its counter starts at [0, view, 0, 0], since Philox
    counts up the first word every four outputs and views must not overlap.
    """
    words = philox_words(_philox_key(seed, key), view, _NUM_WORDS)
    uniform: list[float] = ((words >> np.uint64(11)) * 2.0**-53).tolist()
    return uniform


@lru_cache(maxsize=1)  # a sample's views are asked for one after another
def _philox_key(seed: int, key: str) -> np.ndarray:
    text = seed.to_bytes(8, "little") + key.encode("utf-8", "surrogateescape")
    digest = blake2b(text, digest_size=16, person=b"beamclip-view-1 ").digest()
    return np.frombuffer(digest, "<u8")


def philox_words(key: np.ndarray, block: int, count: int) -> np.ndarray:
    """Return `count` uint64 words of Philox with this key, from counter [0, block, 0, 0]."""
    generator = _philox()
    generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": np.array([0, block, 0, 0], np.uint64), "key": key},
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,  # empty: the next word starts a fresh block
        "has_uint32": 0,
        "uinteger": 0,
    }
    return np.asarray(generator.random_raw(count))


_FLOAT32 = struct.Struct("<f")
_local = threading.local()


def _philox() -> np.random.Philox:
    """Return this thread's generator; setting its state is four times faster than a new one."""
    if not hasattr(_local, "philox"):
        _local.philox = np.random.Philox(key=0)
    generator: np.random.Philox = _local.philox
    return generator


def _float32(value: float) -> float:
    """Round to the nearest float32."""
    return float(_FLOAT32.unpack(_FLOAT32.pack(value))[0])


def _crop(
    rule: Schedule, uniform: list[float], width: int, height: int
) -> tuple[float, float, float, float]:
    """Draw a box of random area and aspect ratio (Inception's rule): fractions x, y, w, h.

    Ten attempts; if none fits, the largest centred box whose ratio is within bounds.
    """
    scale_low, scale_high = rule.crop_scale
    ratio_low, ratio_high = math.log(rule.crop_ratio[0]), math.log(rule.crop_ratio[1])
    for attempt in range(_NUM_ATTEMPTS):
        scale = scale_low + (scale_high - scale_low) * uniform[_AREA + attempt]
        ratio = math.exp(ratio_low + (ratio_high - ratio_low) * uniform[_RATIO + attempt])
        w = math.sqrt(scale * ratio * height / width)
        h = math.sqrt(scale / ratio * width / height)
        if w <= 1 and h <= 1:
            x, y = (1 - w) * uniform[_X], (1 - h) * uniform[_Y]
            break
    else:
        ratio = min(max(width / height, rule.crop_ratio[0]), rule.crop_ratio[1])
        w, h = min(1.0, ratio * height / width), min(1.0, width / ratio / height)
        x, y = (1 - w) / 2, (1 - h) / 2
    return _float32(x), _float32(y), _float32(w), _float32(h)


def _photometry(rule: Schedule, uniform: list[float]) -> dict[str, float]:
    """Draw the colour and blur parameters; operations that do not happen keep the identity."""
    drawn: dict[str, float] = {}
    if uniform[_JITTER] < rule.jitter:
        for name, place in (
            ("brightness", _BRIGHTNESS),
            ("contrast", _CONTRAST),
            ("saturation", _SATURATION),
        ):
            reach = getattr(rule, name)
            low = max(0.0, 1 - reach)
            drawn[name] = _float32(low + (1 + reach - low) * uniform[place])
        drawn["hue"] = _float32(rule.hue * (2 * uniform[_HUE] - 1))
    drawn["grayscale"] = float(uniform[_GRAYSCALE] < rule.grayscale)
    if uniform[_BLUR] < rule.blur:
        low, high = rule.blur_sigma
        drawn["blur_sigma"] = _float32(low + (high - low) * uniform[_SIGMA])
    return drawn
