"""Builds SVG elements as text in which everything that came from outside is escaped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"  # where there is no value
# Colour is never the only sign: each series has a dash and a mark of its own beside it.
DASHES = ("", "6 3", "2 3", "9 3 2 3", "1 4", "12 4")
MARKS = ("circle", "square", "triangle", "diamond", "cross", "ring")


@dataclass(frozen=True)
class Chart:
    """A drawing with the words and the numbers behind it.

    columns, rows: the same numbers as a table, for readers who do not see the drawing.
    """

    title: str
    description: str
    drawing: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """Return one element; in attribute names `_` stands for `-`, and a last `_` for nothing."""
    words = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{words}>{join(inside)}</{name}>")


def join(parts: Sequence[object]) -> Markup:
    """Return elements one after the other; plain text among them is escaped."""
    return Markup("").join(escape(part) for part in parts)


def drawing(
    width: int, height: int, title: str, description: str, *parts: object, kind: str = "chart"
) -> Markup:
    """Return a whole drawing, named and described for screen readers."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{title}. {description}",
        class_=kind,
    )


def mark(place: int, x: float, y: float, size: float = 3.5) -> Markup:
    """Return the mark of series number `place`."""
    kind, s = MARKS[place % len(MARKS)], size
    style = f"mark s{place % 6}"
    if kind in ("circle", "ring"):
        return tag("circle", cx=x, cy=y, r=s, class_=style + (" hollow" if kind == "ring" else ""))
    paths = {
        "square": f"M{x - s:.1f} {y - s:.1f}h{2 * s}v{2 * s}h{-2 * s}z",
        "triangle": f"M{x:.1f} {y - s * 1.2:.1f}l{s * 1.2} {2 * s}h{-2.4 * s}z",
        "diamond": f"M{x:.1f} {y - s * 1.4:.1f}l{s * 1.4} {s * 1.4}l{-s * 1.4} {s * 1.4}"
        f"l{-s * 1.4} {-s * 1.4}z",
        "cross": f"M{x - s:.1f} {y - s:.1f}l{2 * s} {2 * s}m0 {-2 * s}l{-2 * s} {2 * s}",
    }
    return tag("path", d=paths[kind], class_=style + (" stroke" if kind == "cross" else ""))


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from `low` or below to `high` or above, at most `most` + 2."""
    if not high > low:
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def short(value: float) -> str:
    """Return a number as an axis or a table shows it: whole, or with four digits that count."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e6):
        text = f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    else:
        text = f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"
    return text.replace("-", MINUS)


def percent(share: float | None) -> str:
    """Return a share as per cent with one digit behind the point, or a dash for None."""
    return NONE if share is None else f"{share * 100:.1f}"


def _plain(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
