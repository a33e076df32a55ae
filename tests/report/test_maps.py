"""Matrices and maps show the counts and the points that they are given."""

import re
from xml.etree import ElementTree

import numpy as np

from pipeline.report.maps import glyph, heat_map, pair_chart, scatter


def test_a_heat_map_shows_every_count_and_tells_hits_from_misses() -> None:
    counts_CC = np.array([[8, 2], [0, 5]])
    chart = heat_map("Confusion", ["a<b", "c"], counts_CC)
    assert chart.rows == (("a<b", "8", "2"), ("c", "0", "5"))
    root = ElementTree.fromstring(chart.drawing)
    kinds = [rect.get("class") for rect in root.iter("rect")]
    assert kinds == ["cell hit", "cell miss", "cell miss", "cell hit"]
    opacities = [float(rect.get("fill-opacity") or 0) for rect in root.iter("rect")]
    assert opacities[3] == 1.0
    assert opacities[0] > opacities[1] > opacities[2]
    assert "13 of 15" in chart.description


def test_a_pair_of_dots_says_which_way_it_went() -> None:
    rows = [("up", 0.25, 0.75), ("down", 0.5, 0.25), ("same", 0.5, 0.5)]
    chart = pair_chart("t", rows, before="plain", after="cpa")
    assert chart.columns == ("class", "plain %", "cpa %", "change")
    assert [row[0] for row in chart.rows] == ["up", "down", "same"]
    assert re.findall(r'class="dot (\w+)"', chart.drawing) == ["up", "down", "same"]
    changes = [row[3].replace("\N{MINUS SIGN}", "-") for row in chart.rows]
    assert changes == ["+50.0", "-25.0", "0.0"]


def test_every_point_is_drawn_with_the_sign_of_its_class() -> None:
    points_N2 = np.random.default_rng(0).normal(size=(40, 2))
    labels_N = np.arange(40) % 4
    chart = scatter("t", points_N2, labels_N, ["a", "b", "c", "d"], (("x",), ()))
    root = ElementTree.fromstring(chart.drawing)
    signs = [text.text for text in root.iter("text")]
    assert sorted(filter(None, signs)) == sorted(glyph(label) for label in labels_N)


def test_beyond_36_classes_and_without_a_label_there_are_dots() -> None:
    assert (glyph(35), glyph(36), glyph(-1)) == ("z", "", "")
    labels_N = np.array([-1, 36])
    chart = scatter("t", np.eye(2), labels_N, ["x"] * 40, (("x",), ()))
    assert chart.drawing.count("<circle") == 2
