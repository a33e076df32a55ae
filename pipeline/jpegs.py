"""Shortens JPEGs: a copy that says it has fewer rows, so that a decoder stops there.

ITU-T T.81, annex B. Only what is laid out as nearly all are: clean segments, then one sequential
Huffman scan of all components.
"""

import struct

_SEGMENT = struct.Struct(">BBH")  # 0xFF, kind, length from here on
_FRAME = struct.Struct(">BHHB")  # bits, height, width, number of components
_HEIGHT = struct.Struct(">H")
_FRAMES = frozenset({0xC0, 0xC1})  # baseline and extended sequential, both Huffman
_SCAN = 0xDA
# Huffman and quantisation tables, restart interval, applications' own, comments
_PASSED_OVER = frozenset({0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE})


def shortened(encoded: bytes, rows: int, eighths: int) -> tuple[bytearray, int] | None:
    """Return a copy of fewer rows, and how many; None if it would leave out nothing.

    Its first `rows`, counted at `eighths`/8 of the size, are those of the whole. The code of those
    left out stays where it is: to a decoder, bytes too many before the end, of which libjpeg warns.
    Returns None for every JPEG that is laid out in another way.
    """
    frame = _frame(encoded)
    if frame is None:
        return None
    bits, height, _, components = _FRAME.unpack_from(encoded, frame)
    tall = max(encoded[frame + 7 + 3 * number] & 15 for number in range(components))  # in blocks
    if bits != 8 or tall > 2:
        return None
    # Where chroma has half the rows, a row is mixed from the chroma above and below it.
    needed = rows + tall - 1
    fewer = -(-needed // (tall * eighths)) * tall * 8
    if fewer >= height:
        return None
    copy = bytearray(encoded)
    _HEIGHT.pack_into(copy, frame + 1, fewer)
    return copy, fewer


def _frame(encoded: bytes) -> int | None:
    """Return where bits, height, width and components are told."""
    place, frame = 2, None
    try:
        while True:
            start, kind, length = _SEGMENT.unpack_from(encoded, place)
            if start != 0xFF:
                return None
            if kind in _FRAMES and frame is None:
                frame = place + 4
            elif kind == _SCAN:
                whole = frame is not None and encoded[place + 4] == encoded[frame + 5]
                return frame if whole else None
            elif kind not in _PASSED_OVER:
                return None
            place += 2 + length
    except (struct.error, IndexError):
        return None
