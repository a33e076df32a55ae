"""Colour jitter, grayscale and blur of a batch of views, exact on every device.

In luma and chroma (NTSC YIQ) brightness and contrast scale, saturation scales chroma, hue turns it
and grayscale drops it. Without clipping in between (torchvision clips after each) these maps
commute, so that no order needs to be drawn, and a view's whole colour change is one 3 x 3 matrix
and one offset. Matrix, offset and blur weights become whole numbers, and every sum is a whole
number below 2**24, which float32 holds exactly: neither the order of additions nor fusing them
changes a bit. Shape letters: B batch, P params, H W pixels, K taps.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.schedule import ViewParams
from pipeline.transfers import sent

# float32 holds every whole number up to 2**24; rounding a sum's four terms may add 383 to it.
_EXACT = float((1 << 24) - 512)
_COLUMN = {name: place for place, name in enumerate(ViewParams._fields)}
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_LUMA_PER_MILLE = (299, 587, 114)
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
# Blur: both passes' weights sum to 2**12; between them, pixels have 4 bits below the point.
_TAP_BITS, _BETWEEN_BITS = 12, 4


def apply_photometry(views_B3HW: Tensor, params_BP: np.ndarray) -> Tensor:
    """Return uint8 [B,3,H,W] views after jitter, grayscale and blur, on the views' device.

    params_BP: float32 rows of ViewParams, on the CPU. Rows whose parameters are the identity come
    back unchanged; if all are, so does the tensor itself. Never modifies its input, whose layout in
    memory may be any.
    """
    sigma_B = params_BP[:, _COLUMN["blur_sigma"]].astype(np.float64)
    recoloured_B = _changes_colour(params_BP)
    due = np.flatnonzero(recoloured_B | (sigma_B > 0))
    if due.size == 0:
        return views_B3HW
    result_B3HW = views_B3HW.clone(memory_format=torch.contiguous_format)
    for rows, places in _steps(due, views_B3HW.device):
        pixels = result_B3HW[places].to(torch.float32)
        if recoloured_B[rows].any():
            pixels = _recolour(pixels, params_BP[rows])
        if sigma_B[rows].any():
            pixels = _blur(pixels, sigma_B[rows])
        # By way of int32: a conversion straight to uint8 is not vectorised on CPUs.
        result_B3HW[places] = pixels.to(torch.int32).to(torch.uint8)
    return result_B3HW


def _steps(
    due: np.ndarray, device: torch.device
) -> Sequence[tuple[slice | np.ndarray, slice | Tensor]]:
    """Split rows into steps: a CPU works from its cache, a view at a time; others all at once.

    Each step is given twice: for arrays, and for tensors on the device.
    """
    if device.type == "cpu":
        return [(here, here) for here in (slice(row, row + 1) for row in due)]
    return [(due, sent(due, device))]


def _changes_colour(params_BP: np.ndarray) -> np.ndarray:
    factors = ["brightness", "contrast", "saturation"]
    changed = (params_BP[:, [_COLUMN[name] for name in factors]] != 1).any(axis=1)
    offsets = [_COLUMN["hue"], _COLUMN["grayscale"]]
    return np.asarray(changed | (params_BP[:, offsets] != 0).any(axis=1))


def _recolour(pixels_B3HW: Tensor, params_BP: np.ndarray) -> Tensor:
    """Apply each view's affine map of colour; rounded to whole levels and clipped once."""
    device = pixels_B3HW.device
    matrix_B33, pivot_B = _colour_maps(params_BP.astype(np.float64))
    # The greatest power of two at which no sum leaves float32's whole numbers.
    reach_B = 255 * (np.abs(matrix_B33).sum(2).max(1) + np.abs(pivot_B)) + 0.5
    scale_B = np.exp2(np.floor(np.log2(_EXACT / reach_B)))
    fixed_B33 = np.rint(matrix_B33 * scale_B[:, None, None]).astype(np.float32)
    m = sent(fixed_B33, device)[..., None, None]
    offset_B = sent(scale_B, device) * 0.5  # a half, for rounding
    if pivot_B.any():
        offset_B += sent(pivot_B * scale_B, device) * _mean_luma(pixels_B3HW)
    mixed = m[:, :, 0] * pixels_B3HW[:, :1] + offset_B.round().float()[:, None, None, None]
    mixed.addcmul_(m[:, :, 1], pixels_B3HW[:, 1:2])
    mixed.addcmul_(m[:, :, 2], pixels_B3HW[:, 2:])
    inverse = sent((1 / scale_B).astype(np.float32), device)
    return mixed.mul_(inverse[:, None, None, None]).floor_().clamp_(0, 255)


def _colour_maps(params_BP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 [B,3,3] and [B]: new colour = first @ colour + second * the view's mean luma.

    Contrast pivots on the mean luma, which hue and saturation leave as it is.
    """
    brightness, contrast, saturation, hue, grayscale = (
        params_BP[:, _COLUMN[name]]
        for name in ("brightness", "contrast", "saturation", "hue", "grayscale")
    )
    angle = -2 * np.pi * hue  # from red over yellow to green, as HSV counts
    chroma = np.where(grayscale == 0, saturation, 0.0)
    yiq = np.zeros((len(params_BP), 3, 3))
    yiq[:, 0, 0] = 1
    yiq[:, 1, 1] = yiq[:, 2, 2] = chroma * np.cos(angle)
    yiq[:, 2, 1] = chroma * np.sin(angle)
    yiq[:, 1, 2] = -yiq[:, 2, 1]
    gain = (brightness * contrast)[:, None, None]
    return gain * (_FROM_YIQ @ yiq @ _TO_YIQ), brightness * (1 - contrast)


def _mean_luma(pixels_B3HW: Tensor) -> Tensor:
    """Return float64 [B]; sums of whole levels are exact, so that their order plays no part."""
    sums_B3 = pixels_B3HW.sum(3).sum(2, dtype=torch.float64)
    weights = sent(np.array(_LUMA_PER_MILLE, np.float64), pixels_B3HW.device)
    return (sums_B3 * weights).sum(1) / (1000 * pixels_B3HW.shape[2] * pixels_B3HW.shape[3])


def _blur(pixels_B3HW: Tensor, sigma_B: np.ndarray) -> Tensor:
    """Gaussian blur, one axis after the other, borders mirrored."""
    taps_BK = _taps(sigma_B * pixels_B3HW.shape[-1])
    weights = sent(taps_BK, pixels_B3HW.device)
    rows = _convolve(pixels_B3HW, weights, dim=3, drop_bits=_TAP_BITS - _BETWEEN_BITS)
    return _convolve(rows, weights, dim=2, drop_bits=_TAP_BITS + _BETWEEN_BITS)


def _taps(sigma_px_B: np.ndarray) -> np.ndarray:
    """Return float32 [B,K] whole Gaussian weights, each row cut at 3 sigma, summing to 2**12.

    Rows are padded with zeros to the widest: a view's weights do not depend on its batch.
    """
    total = 1 << _TAP_BITS
    radius = np.ceil(3 * sigma_px_B).astype(np.int64)
    offsets = np.arange(-radius.max(), radius.max() + 1)
    spread = np.where(sigma_px_B > 0, sigma_px_B, 1)[:, None]
    weights = np.exp(-0.5 * (offsets / spread) ** 2)
    weights[np.abs(offsets) > radius[:, None]] = 0
    fixed = np.rint(weights / weights.sum(1, keepdims=True) * total)
    fixed[:, radius.max()] += total - fixed.sum(1)
    return np.asarray(fixed, np.float32)


def _convolve(pixels: Tensor, taps_BK: Tensor, *, dim: int, drop_bits: int) -> Tensor:
    """Weighted sum of shifted copies along `dim`, divided by 2**drop_bits and rounded."""
    length, radius = pixels.shape[dim], taps_BK.shape[1] // 2
    padded = _mirrored(pixels, radius, dim)
    taps = taps_BK[:, :, None, None, None]
    total = padded.narrow(dim, radius, length) * taps[:, radius]
    for place in range(radius):  # weights are symmetric
        pair = padded.narrow(dim, place, length) + padded.narrow(dim, 2 * radius - place, length)
        total.addcmul_(pair, taps[:, place])
    return total.add_(1 << (drop_bits - 1)).mul_(2.0**-drop_bits).floor_()


def _mirrored(pixels: Tensor, radius: int, dim: int) -> Tensor:
    """Pad by `radius` along `dim`, mirrored at the border pixel without repeating it."""
    length = pixels.shape[dim]
    if radius < length:
        sides = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        return F.pad(pixels, sides, mode="reflect")
    period = max(1, 2 * (length - 1))
    mirror = torch.arange(-radius, length + radius, device=pixels.device) % period
    nearest = torch.minimum(mirror, period - mirror).clamp(max=length - 1)
    return pixels.index_select(dim, nearest)
