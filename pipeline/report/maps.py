"""Draws what is told class by class: pairs of dots, a confusion matrix, a map of embeddings.

Shape letters: N points, C classes.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from pipeline.report.svg import MINUS, Chart, drawing, join, percent, tag

_CELL = 30  # side of one count in a confusion matrix


def pair_chart(
    title: str,
    rows: Sequence[tuple[str, float, float]],
    *,
    before: str,
    after: str,
    first: str = "class",
) -> Chart:
    """Draw for each name its share before (ring) and after (dot), with a line between."""
    left, right, step = 118, 40, 23
    height, width = 30 + step * len(rows), 440
    wide = width - left - right

    def row(place: int, name: str, one: float, other: float) -> Markup:
        y = 24 + step * place
        x1, x2 = left + one * wide, left + other * wide
        tone = "up" if other > one else "down" if other < one else "same"
        return tag(
            "g",
            tag("text", _cut(name, 17), x=left - 10, y=y + 4, class_="tick end name"),
            tag("line", x1=left, x2=left + wide, y1=y, y2=y, class_="grid"),
            tag("line", x1=x1, x2=x2, y1=y, y2=y, class_=f"link {tone}"),
            tag("circle", cx=x1, cy=y, r=4, class_="ring"),
            tag("circle", cx=x2, cy=y, r=4.5, class_=f"dot {tone}"),
            tag("text", _signed((other - one) * 100, 0), x=width - 4, y=y + 4, class_="tick end"),
        )

    scale = [
        tag("text", f"{share * 100:.0f} %", x=left + share * wide, y=10, class_="tick middle")
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    described = f"{title}: a ring is {before}, a dot is {after}; the table has the numbers."
    parts = [row(place, *item) for place, item in enumerate(rows)]
    picture = drawing(width, height, title, described, *scale, *parts, kind="chart wide")
    table = tuple(
        (name, percent(one), percent(other), _signed((other - one) * 100, 1))
        for name, one, other in rows
    )
    return Chart(title, described, picture, (first, f"{before} %", f"{after} %", "change"), table)


def heat_map(title: str, names: Sequence[str], counts_CC: np.ndarray) -> Chart:
    """Draw a confusion matrix: rows are true classes, shades are shares of a row."""
    longest = max(len(_cut(name)) for name in names)
    left, top = 16 + 7 * longest, 22 + 5 * longest
    side = _CELL * len(names)
    shares_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)

    def across(place: int, name: str) -> Markup:
        x, y = left + place * _CELL + _CELL / 2 + 4, top - 8
        return tag("text", _cut(name), transform=f"translate({x} {y}) rotate(-50)", class_="tick")

    rows = [
        tag("text", _cut(name), x=left - 8, y=top + i * _CELL + _CELL / 2 + 4, class_="tick end")
        for i, name in enumerate(names)
    ]
    cells = [
        _cell(left + j * _CELL, top + i * _CELL, int(counts_CC[i, j]), float(share), hit=i == j)
        for (i, j), share in np.ndenumerate(shares_CC)
    ]
    described = (
        "Rows are true classes, columns what the student says; "
        f"{int(np.trace(counts_CC))} of {int(counts_CC.sum())} images lie on the diagonal."
    )
    picture = drawing(
        left + side + 60,
        top + side + 8,
        title,
        described,
        *rows,
        *(across(i, name) for i, name in enumerate(names)),
        *cells,
        kind="chart square",
    )
    table = tuple((name, *(str(int(n)) for n in counts_CC[i])) for i, name in enumerate(names))
    return Chart(title, described, picture, ("true / said", *names), table)


def _cell(x: int, y: int, count: int, share: float, *, hit: bool) -> Markup:
    """Draw one count of a confusion matrix, shaded by its share of the row."""
    box = tag(
        "rect",
        x=x + 1,
        y=y + 1,
        width=_CELL - 2,
        height=_CELL - 2,
        rx=3,
        class_=f"cell {'hit' if hit else 'miss'}",
        fill_opacity=round(0.06 + 0.94 * share, 3) if count else 0.03,
    )
    if not count:
        return box
    dark = " dark" if share > 0.5 else ""
    middle = {"x": x + _CELL / 2, "y": y + _CELL / 2 + 4}
    return join([box, tag("text", str(count), **middle, class_=f"count middle{dark}")])


def scatter(
    title: str,
    points_N2: np.ndarray,
    labels_N: np.ndarray,
    names: Sequence[str],
    table: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]],
) -> Chart:
    """Draw points of classes: a glyph and a colour of its own for each, a dot beyond 36 classes."""
    side, pad = 400, 14
    low, high = points_N2.min(axis=0), points_N2.max(axis=0)
    places_N2 = pad + (points_N2 - low) / np.maximum(high - low, 1e-9) * (side - 2 * pad)

    def group(label: int) -> Markup:
        sign, spots = glyph(label), places_N2[labels_N == label]
        draw = [
            tag("circle", cx=round(x, 1), cy=round(y, 1), r=2)
            if not sign
            else tag("text", sign, x=round(x, 1), y=round(y + 3, 1))
            for x, y in spots.tolist()
        ]
        return tag("g", *draw, class_=f"cloud c{max(label, 0) % 10}")

    described = (
        f"{len(points_N2)} images of {len(names)} classes; images that lie close have similar "
        "embeddings. Axes have no unit."
    )
    groups = [group(int(label)) for label in np.unique(labels_N)]
    picture = drawing(side, side, title, described, *groups, kind="chart square")
    return Chart(title, described, picture, *table)


def glyph(label: int) -> str:
    """Return the sign of a class among at most 36: 0 to 9, then letters; nothing beyond."""
    signs = "0123456789abcdefghijklmnopqrstuvwxyz"
    return signs[label] if 0 <= label < len(signs) else ""


def _signed(change: float, digits: int) -> str:
    """Return a change with its sign; one that rounds to nothing has none."""
    text = f"{change:+.{digits}f}".replace("-", MINUS)
    return text[1:] if not any(sign in "123456789" for sign in text) else text


def _cut(name: str, most: int = 15) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
