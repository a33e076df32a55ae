"""Encodes images by hand and by Pillow, whole, odd and hostile."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int = 57, height: int = 43, seed: int = 0) -> np.ndarray:
    """Return uint8 [H,W,3] with smooth parts, edges and noise, from whole numbers only."""
    y, x, c = np.ogrid[:height, :width, :3]
    values = x * (3 + c) + y * 5 + x * y // 7 + 60 * ((x // 9 + y // 7) % 2) + 31 * (seed + c)
    return (values % 256).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode: str, colour: Any, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new(mode, size, colour)


def chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def png(
    width: int, height: int, bits: int, colour: int, line: bytes, *chunks: bytes, rows: int = -1
) -> bytes:
    """Write a PNG by hand: every line of pixels is `line`."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress((b"\0" + line) * (height if rows < 0 else rows))
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bombs() -> list[bytes]:
    """Return small files that claim to be large images."""
    animation = saved(
        flat("RGB", "red"),
        "WEBP",
        save_all=True,
        append_images=[flat("RGB", "blue")],
        lossless=True,
    )
    place = animation.index(b"VP8X") + 12
    sides = (8999).to_bytes(3, "little") * 2
    return [
        png(60_000, 60_000, 8, 2, b"", rows=1),
        png(10_000, 10_000, 8, 2, b"", rows=1),
        png(9_000, 9_000, 8, 0, bytes(9_000)),
        saved(Image.new("L", (9_000, 9_000)), "JPEG", quality=10),
        animation[:place] + sides + animation[place + 6 :],
    ]
