"""Lines lie where their numbers say, and the table behind a chart holds the same numbers."""

import re
from xml.etree import ElementTree

from pipeline.report.charts import Series, gauge, line_chart
from pipeline.report.svg import NONE


def path_of(drawing: str) -> list[tuple[float, float]]:
    (path,) = re.findall(r'<path d="M([^"]*)" class="line', drawing)
    return [(float(x), float(y)) for x, y in (pair.split() for pair in path.split("L"))]


def test_a_line_is_even_in_x_and_falls_as_its_values_rise() -> None:
    chart = line_chart("t", [Series("a", 0, ((1, 0.0), (2, 5.0), (3, 10.0)))], x_name="epoch")
    (x1, y1), (x2, y2), (x3, y3) = path_of(chart.drawing)
    assert x2 - x1 == x3 - x2 > 0
    assert abs((y1 - y2) - (y2 - y3)) < 0.2
    assert y1 > y2 > y3


def test_the_table_has_every_number_and_a_dash_where_a_run_ended_sooner() -> None:
    series = [Series("a", 0, ((1, 0.5), (2, 0.25))), Series("<b>", 1, ((1, 3.0),))]
    chart = line_chart("t", series, x_name="epoch")
    assert chart.columns == ("epoch", "a", "<b>")
    assert chart.rows == (("1", "0.5", "3"), ("2", "0.25", NONE))
    assert "<b>" not in chart.drawing
    ElementTree.fromstring(chart.drawing)


def test_one_point_alone_has_a_mark() -> None:
    chart = line_chart("t", [Series("a", 0, ((1, 7.0),))], x_name="epoch")
    assert chart.drawing.count("<circle") == 1


def test_series_differ_in_more_than_colour() -> None:
    series = [Series(str(place), place, ((1, 1.0), (2, 2.0))) for place in range(6)]
    drawing = str(line_chart("t", series, x_name="epoch").drawing)
    dashes = re.findall(r'class="line s\d"( stroke-dasharray="[^"]*")?', drawing)
    assert len(set(dashes)) == 6


def test_a_gauge_says_student_teacher_and_chance() -> None:
    root = ElementTree.fromstring(gauge("Zero-shot", 0.5, 0.75, None))
    assert root.get("aria-label") == "Zero-shot. student 50.0 %, teacher 75.0 %."
    widths = [float(rect.get("width") or 0) for rect in root.iter("rect")]
    assert widths[1] / widths[0] == 0.5
