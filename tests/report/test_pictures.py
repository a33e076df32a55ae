"""Pictures are small, whole, and of the rows asked for."""

import base64
import io

import numpy as np
from PIL import Image

from pipeline.report.pictures import address, thumbnails
from pipeline.report.seen import Seen


def opened(text: str) -> np.ndarray:
    kind, _, content = text.partition(",")
    assert kind == "data:image/webp;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def test_an_address_holds_the_pixels() -> None:
    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[:, 24:] = (250, 10, 10)
    found = opened(address(pixels)).astype(int)
    assert found.shape == pixels.shape
    assert np.abs(found - pixels)[:, [5, 43]].max() < 20


def test_each_row_has_the_picture_of_its_class(seen: list[Seen]) -> None:
    ground = seen[0].ground
    found = thumbnails(ground, [7, 2, 7])
    assert sorted(found) == [2, 7]
    for row, text in found.items():
        brightest = opened(text).mean(axis=(0, 1)).argmax()  # squares are of their class's colour
        assert brightest == ground.labels_N[row]


def test_no_rows_are_no_pictures(seen: list[Seen]) -> None:
    assert thumbnails(seen[0].ground, []) == {}
