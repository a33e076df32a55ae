"""Elements escape what they are given; ticks are round and hold every value."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from pipeline.report.svg import MINUS, drawing, mark, percent, short, tag, ticks

FLOATS = st.floats(-1e9, 1e9, allow_nan=False)


def test_text_and_attributes_from_outside_are_escaped() -> None:
    found = tag("text", '<b>&"', class_='"><script>', font_size=3)
    assert ElementTree.fromstring(found).text == '<b>&"'
    assert ElementTree.fromstring(found).attrib == {"class": '"><script>', "font-size": "3"}
    assert str(tag("g", Markup("<a/>"))) == "<g><a/></g>"


def test_a_drawing_is_named_and_described() -> None:
    root = ElementTree.fromstring(drawing(10, 20, "Loss & more", "It falls.", mark(2, 1, 2)))
    assert (root.get("role"), root.get("viewBox")) == ("img", "0 0 10 20")
    assert root.get("aria-label") == "Loss & more. It falls."
    assert [child.tag for child in root][:2] == ["title", "desc"]


@given(FLOATS, FLOATS)
def test_ticks_hold_the_range_are_even_and_few(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high)
    slack = 1e-6 * max(1e-3, abs(low), abs(high))
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 8


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (-10, "-10"), (12345.6, "12,346"), (3.2e-7, "3.2e-7"), (5e7, "5e7")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text.replace("-", MINUS)


def test_a_share_is_per_cent_and_what_is_missing_a_dash() -> None:
    assert (percent(0.9724), percent(0.0), percent(None)) == ("97.2", "0.0", "\N{EN DASH}")


def test_six_series_have_six_marks() -> None:
    assert len({str(mark(place, 1, 1)).replace(f"s{place}", "") for place in range(6)}) == 6
