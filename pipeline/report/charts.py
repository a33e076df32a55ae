"""Draws numbers over epochs as lines, and one share as a bar beside marks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pipeline.report.svg import DASHES, NONE, Chart, drawing, mark, percent, short, tag, ticks

_WIDTH, _HEIGHT = 330, 205
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 10, 36


@dataclass(frozen=True)
class Series:
    """One line: its name, its place among the colours, and points (x, y) in order of x."""

    name: str
    place: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class _Frame:
    """Where numbers lie in a drawing."""

    xs: Sequence[float]
    ys: Sequence[float]

    def x(self, value: float) -> float:
        low, high = self.xs[0], self.xs[-1]
        return _LEFT + (value - low) / ((high - low) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ys[0], self.ys[-1]
        share = (value - low) / ((high - low) or 1)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str,
    level: tuple[str, float] | None = None,
    whole: bool = True,
) -> Chart:
    """Draw lines that share axes; level: a named horizontal line. whole: x counts something."""
    values = [y for one in series for _, y in one.points] + ([level[1]] if level else [])
    places = sorted({x for one in series for x, _ in one.points})
    xs = [places[0], places[-1]] if whole else ticks(places[0], places[-1])
    frame = _Frame(xs if xs[-1] > xs[0] else [xs[0] - 0.5, xs[0] + 0.5], ticks(*_range(values)))
    described = "; ".join(
        f"{one.name} from {short(one.points[0][1])} to {short(one.points[-1][1])}" for one in series
    )
    picture = drawing(
        _WIDTH,
        _HEIGHT,
        title,
        f"{title} by {x_name}: {described}.",
        _grid(frame, _some(places), x_name),
        *(_line(one, frame) for one in series),
        *([_level(level, frame)] if level else []),
    )
    by_x = [{x: y for x, y in one.points} for one in series]
    rows = [
        (short(x), *(short(points[x]) if x in points else NONE for points in by_x)) for x in places
    ]
    columns = (x_name, *(one.name for one in series))
    return Chart(title, described, picture, columns, tuple(rows))


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _some(places: Sequence[float], most: int = 7) -> list[float]:
    """Return at most so many of the places, evenly, with the first and the last."""
    if len(places) <= most:
        return list(places)
    chosen = np.linspace(0, len(places) - 1, most).round().astype(int)
    return [places[i] for i in dict.fromkeys(chosen.tolist())]


def _grid(frame: _Frame, places: Sequence[float], x_name: str) -> Markup:
    floor = _HEIGHT - _BOTTOM
    lines = [
        tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=frame.y(y), y2=frame.y(y), class_="grid")
        for y in frame.ys
    ]
    names = [
        tag("text", short(round(y, 12)), x=_LEFT - 8, y=frame.y(y) + 4, class_="tick end")
        for y in frame.ys
    ]
    below = [
        tag("text", short(x), x=frame.x(x), y=floor + 17, class_="tick middle") for x in places
    ]
    axis = tag("text", x_name, x=_WIDTH - _RIGHT, y=floor + 33, class_="axis end")
    return tag("g", *lines, *names, *below, axis, aria_hidden="true")


def _line(one: Series, frame: _Frame) -> Markup:
    spots = [(frame.x(x), frame.y(y)) for x, y in one.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    dash = DASHES[one.place % len(DASHES)] or None
    parts = [tag("path", d=path, class_=f"line s{one.place % 6}", stroke_dasharray=dash)]
    shown = spots if len(spots) <= 12 else [spots[-1]]
    parts += [mark(one.place, x, y, 3) for x, y in shown]
    return tag("g", *parts)


def _level(level: tuple[str, float], frame: _Frame) -> Markup:
    name, value = level
    y = frame.y(value)
    place = y - 6 if y > _TOP + 14 else y + 15  # above the line, if there is room
    return tag(
        "g",
        tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="level"),
        tag(
            "text",
            f"{name} {short(value)}",
            x=_LEFT + 6,
            y=place,
            class_="axis",
        ),
    )


def swatch(place: int) -> Markup:
    """Return the line and mark of a series, for a legend."""
    dash = DASHES[place % len(DASHES)] or None
    line = tag("path", d="M1 7H33", class_=f"line s{place % 6}", stroke_dasharray=dash)
    return tag(
        "svg", line, mark(place, 17, 7, 3.5), viewBox="0 0 34 14", class_="swatch",
        aria_hidden="true",
    )  # fmt: skip


def gauge(title: str, student: float, teacher: float | None, chance: float | None) -> Markup:
    """Draw one share as a bar, with marks where the teacher and chance stand."""
    width, words = 400, f"student {percent(student)} %"
    parts = [
        tag("rect", x=0, y=14, width=width, height=12, rx=6, class_="track"),
        tag("rect", x=0, y=14, width=max(6.0, student * width), height=12, rx=6, class_="fill"),
    ]
    for name, value in (("teacher", teacher), ("chance", chance)):
        if value is None:
            continue
        x = min(width - 1.0, max(1.0, value * width))
        words += f", {name} {percent(value)} %"
        high = name == "teacher"
        parts.append(tag("line", x1=x, x2=x, y1=8, y2=32, class_=f"needle {name}"))
        anchor = "end" if value > 0.85 else "start" if value < 0.15 else "middle"
        parts.append(
            tag(
                "text",
                f"{name} {percent(value)}",
                x=x,
                y=5 if high else 45,
                class_=f"axis {anchor}",
            )
        )
    return drawing(width, 50, title, words + ".", *parts, kind="gauge")
