"""Makes small pictures of test images, as data: addresses that a page carries in itself.

Shape letters: N rows, S side in pixels.
"""

import base64
import io
from collections.abc import Iterable

import numpy as np
from PIL import Image
from torch import device as torch_device

from pipeline.batches import eval_batches
from pipeline.report.seen import Ground

_LEAST, _MOST = 48, 112  # sides in pixels
_CPU = torch_device("cpu")


def thumbnails(ground: Ground, rows: Iterable[int], *, workers: int = 0) -> dict[int, str]:
    """Return {row of the split: data: address of its eval view}."""
    rows_N = np.unique(np.fromiter(rows, np.int64))
    if not len(rows_N):
        return {}
    side = min(_MOST, max(_LEAST, 2 * int(ground.cache.manifest["teacher"]["preprocess"]["size"])))
    found: dict[int, str] = {}
    for batch in eval_batches(
        ground.cache, ground.shards, input_px=side, workers=workers, rows_N=rows_N
    ):
        views_N3SS = batch.views(_CPU).numpy()
        for row, view in zip(batch.rows_B.tolist(), views_N3SS, strict=True):
            found[int(row)] = address(view.transpose(1, 2, 0))
    return found


def address(pixels_SS3: np.ndarray) -> str:
    """Return uint8 RGB pixels as the data: address of a small WebP picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_SS3)).save(buffer, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
