"""Colour jitter, grayscale and blur of a batch of views, in integer arithmetic.

Factors become 16-bit fixed-point numbers on the CPU; pixels are 32-bit integers from there on, so
that every device gives the same bytes. Shape letters: B batch, P params, H W pixels, K taps.
"""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from pipeline.schedule import ViewParams

_ONE = 1 << 16  # the fixed-point number 1
_HALF = _ONE >> 1
# Rec. 601 luma in fixed point (sums to _ONE), as Pillow's conversion to "L" rounds it.
_LUMA = (19595, 38470, 7471)
_ORDERS = np.array(list(permutations(range(4))))  # 24 orders of the four jitter operations
_COLUMN = {name: place for place, name in enumerate(ViewParams._fields)}

# Luma-chroma (NTSC YIQ) and back: hue turns the chroma plane and leaves luma alone.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def apply_photometry(views_B3HW: Tensor, params_BP: np.ndarray) -> Tensor:
    """Return uint8 [B,3,H,W] views after jitter, grayscale and blur, on the views' device.

    params_BP: float32 rows of ViewParams, on the CPU. Rows whose parameters are the identity come
    back unchanged. Never modifies its input.
    """
    jitter_B4 = _ORDERS[params_BP[:, _COLUMN["jitter_order"]].astype(np.int64)]
    for step in range(4):
        for number, name in enumerate(_JITTER):
            due = jitter_B4[:, step] == number
            views_B3HW = _apply(name, views_B3HW, params_BP, due)
    for name in ("grayscale", "blur_sigma"):
        views_B3HW = _apply(name, views_B3HW, params_BP, np.True_)
    return views_B3HW


def _apply(
    name: str, views_B3HW: Tensor, params_BP: np.ndarray, due: np.ndarray | np.bool
) -> Tensor:
    """Replace the rows that are due, and whose parameter changes something, by the result."""
    operation, identity = _OPERATIONS[name]
    values_B = params_BP[:, _COLUMN[name]].astype(np.float64)
    rows = np.flatnonzero(due & (values_B != identity))
    if rows.size == 0:
        return views_B3HW
    index = torch.from_numpy(rows).to(views_B3HW.device)
    changed = operation(views_B3HW[index].to(torch.int32), values_B[rows])
    return views_B3HW.index_copy(0, index, changed.clamp(0, 255).to(torch.uint8))


def _fixed(values: np.ndarray, device: torch.device) -> Tensor:
    """Turn factors into fixed-point int32."""
    rounded = np.rint(values * _ONE).astype(np.int32)
    return torch.from_numpy(rounded).to(device)


def _blend(pixels: Tensor, other: Tensor | int, factor: np.ndarray) -> Tensor:
    """Return factor * pixels + (1 - factor) * other, rounded."""
    f = _fixed(factor, pixels.device)[:, None, None, None]
    return (f * pixels + (_ONE - f) * other + _HALF) >> 16


def _luma(pixels: Tensor) -> Tensor:
    """Return [B,1,H,W] luma."""
    red, green, blue = (pixels[:, i : i + 1] for i in range(3))
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue + _HALF) >> 16


def _brightness(pixels: Tensor, factor: np.ndarray) -> Tensor:
    return _blend(pixels, 0, factor)


def _contrast(pixels: Tensor, factor: np.ndarray) -> Tensor:
    luma = _luma(pixels)
    count = luma.shape[2] * luma.shape[3]
    mean = (luma.sum((2, 3), keepdim=True) + count // 2) // count  # int64: exact at any size
    return _blend(pixels, mean.to(torch.int32), factor)


def _saturation(pixels: Tensor, factor: np.ndarray) -> Tensor:
    return _blend(pixels, _luma(pixels), factor)


def _hue(pixels: Tensor, turns: np.ndarray) -> Tensor:
    """Turn chroma by a share of the circle: a linear map, where HSV's shift is piecewise."""
    angle = -2 * np.pi * turns  # from red over yellow to green, as HSV counts
    turn = np.zeros((len(angle), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 2, 1] = np.sin(angle)
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrix = _fixed(_FROM_YIQ @ turn @ _TO_YIQ, pixels.device)
    mixed = (matrix[:, :, :, None, None] * pixels[:, None]).sum(2, dtype=torch.int32)
    return (mixed + _HALF) >> 16


def _grayscale(pixels: Tensor, _: np.ndarray) -> Tensor:
    return _luma(pixels).expand_as(pixels)


def _blur(pixels: Tensor, sigma: np.ndarray) -> Tensor:
    """Gaussian blur, one axis after the other, borders mirrored; 8 extra bits in between."""
    sigma_px = sigma * pixels.shape[-1]
    rows = _convolve(pixels, _taps(sigma_px, 1 << 16, pixels.device), dim=3)
    both = _convolve(rows >> 8, _taps(sigma_px, 1 << 14, pixels.device), dim=2)
    return (both + (1 << 21)) >> 22


def _taps(sigma_px: np.ndarray, total: int, device: torch.device) -> Tensor:
    """Return int32 [B,K] Gaussian weights, each row cut at 3 sigma and summing to `total`.

    Rows are padded with zeros to the widest: a view's weights do not depend on its batch.
    """
    radius = np.ceil(3 * sigma_px).astype(np.int64)
    offsets = np.arange(-radius.max(), radius.max() + 1)
    weights = np.exp(-0.5 * (offsets / sigma_px[:, None]) ** 2)
    weights[np.abs(offsets) > radius[:, None]] = 0
    fixed = np.rint(weights / weights.sum(1, keepdims=True) * total).astype(np.int64)
    fixed[:, radius.max()] += total - fixed.sum(1)
    return torch.from_numpy(fixed.astype(np.int32)).to(device)


def _convolve(pixels: Tensor, taps_BK: Tensor, dim: int) -> Tensor:
    """Weighted sum of shifted copies along `dim`; the border is mirrored without repeating it."""
    length, radius = pixels.shape[dim], taps_BK.shape[1] // 2
    period = max(1, 2 * (length - 1))
    mirror = torch.arange(-radius, length + radius, device=pixels.device) % period
    padded = pixels.index_select(dim, torch.minimum(mirror, period - mirror).clamp(max=length - 1))
    total = torch.zeros_like(pixels)
    for place in range(taps_BK.shape[1]):
        total += taps_BK[:, place, None, None, None] * padded.narrow(dim, place, length)
    return total


Operation = Callable[[Tensor, np.ndarray], Tensor]
_JITTER = ("brightness", "contrast", "saturation", "hue")
# Parameter -> (what it does to int32 pixels, the value that changes nothing).
_OPERATIONS: dict[str, tuple[Operation, float]] = {
    "brightness": (_brightness, 1),
    "contrast": (_contrast, 1),
    "saturation": (_saturation, 1),
    "hue": (_hue, 0),
    "grayscale": (_grayscale, 0),
    "blur_sigma": (_blur, 0),
}
