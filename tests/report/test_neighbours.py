"""Maps are the same on every run, of the same rows for teacher and student."""

import re

from pipeline.report.neighbours import maps
from pipeline.report.seen import Seen


def test_maps_are_seeded_and_show_every_row_once(seen: list[Seen]) -> None:
    charts = maps(seen)
    assert [chart.title for chart in charts][:2] == ["Teacher", "Student whole"]
    assert len(charts) == 3
    for chart, again in zip(charts, maps(seen), strict=True):
        assert chart.drawing == again.drawing
        assert len(re.findall(r"<text", chart.drawing)) == len(seen[0].ground.labels_N)
        assert [row[:3] for row in chart.rows] == [
            ("0", "red square", "4"),
            ("1", "green square", "4"),
            ("2", "blue square", "4"),
        ]
    assert charts[0].drawing != charts[1].drawing
