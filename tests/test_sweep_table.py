"""The table of a sweep shows every score under its title, and what the numbers are."""

import csv
from statistics import stdev
from typing import Any

import pytest

from pipeline.sweep_table import csv_table, markdown_table, summary, text_table

TEACHER = {"linear": {"accuracy": 0.9}, "zeroshot": {"top1": 0.8}}
CHANCE = {"linear": {"accuracy": 0.1}}


def scored(seed: int, linear: float, top1: float, teacher: Any = TEACHER) -> dict[str, Any]:
    student = {"linear": {"accuracy": linear, "C": 30.0}, "zeroshot": {"top1": top1}}
    raw = {"linear": {"accuracy": 0.0}, "zeroshot": {"top1": 0.0}}
    scores = {"teacher": teacher, "student": student, "student_raw": raw, "chance": CHANCE}
    return {"seed": seed, "state": "scored", "scores": scores}


def failed(seed: int) -> dict[str, Any]:
    return {"seed": seed, "state": "failed", "error": "the loss is nan\nand more"}


def result(**points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return results of points with the labels `row` and `views`, which a name holds."""
    return {
        "probes": ["linear", "zeroshot"],
        "points": [
            {
                "slug": name,
                "labels": dict(zip(("row", "views"), name.split("_"), strict=True)),
                "runs": runs,
                "scores": summary(runs),
            }
            for name, runs in points.items()
        ],
    }


SMALL = result(
    ISM_1=[scored(0, 0.5, 0.25), scored(1, 0.7, 0.25)],
    CSM_2=[scored(0, 0.875, 0.125), failed(1)],
    KD_2=[failed(0), {"seed": 1, "state": "to do"}],
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_a_line_per_point_then_teacher_and_chance_then_failures() -> None:
    spread = f"0.6000 ± {stdev([0.5, 0.7]):.4f}"
    lines = markdown_table(SMALL).splitlines()
    assert [cells(line) for line in lines if line.startswith("|")] == [
        ["row", "views", "linear accuracy", "zeroshot top1", "n"],
        ["---", "---", "---:", "---:", "---:"],
        ["ISM", "1", spread, "0.2500 ± 0.0000", "2"],
        ["CSM", "2", "0.8750", "0.1250", "1 (1 failed)"],
        ["KD", "2", "-", "-", "0 (1 failed)"],
        ["teacher", "", "0.9000", "0.8000", ""][:4],
        ["chance", "", "0.1000", "-", ""][:4],
    ]
    assert lines[-3:] == [
        "mean ± standard deviation (n - 1) over n seeds; of students the averaged (EMA) weights",
        "failed: CSM_2/seed-1: the loss is nan",
        "failed: KD_2/seed-0: the loss is nan",
    ]


def test_the_text_says_the_same_in_columns_that_line_up() -> None:
    def words(table: str) -> list[str]:
        return table.replace("|", " ").replace("---:", "").replace("---", "").split()

    text = text_table(SMALL)
    assert words(text) == words(markdown_table(SMALL))
    head, *lines = text.splitlines()
    for title, texts in (("linear accuracy", ["0.1414", "0.8750"]), ("top1", ["0.0000", "0.1250"])):
        end = head.index(title) + len(title)
        assert [line[:end].endswith(cell) for line, cell in zip(lines, texts, strict=False)] == [
            True,
            True,
        ]


def test_csv_keeps_every_digit_and_the_spread_apart() -> None:
    rows = list(csv.DictReader(csv_table(SMALL).splitlines()))
    assert [row["row"] for row in rows] == ["ISM", "CSM", "KD", "teacher", "chance"]
    assert float(rows[0]["linear accuracy mean"]) == pytest.approx(0.6)
    assert float(rows[0]["linear accuracy sd"]) == stdev([0.5, 0.7])
    assert (rows[1]["linear accuracy sd"], rows[1]["n"], rows[1]["failed"]) == ("", "1", "1")
    assert rows[2]["linear accuracy mean"] == rows[3]["n"] == ""


def test_teachers_that_differ_have_a_line_each_with_what_their_points_share() -> None:
    other = {**TEACHER, "zeroshot": {"top1": 0.7}}
    table = markdown_table(
        result(
            ISM_1=[scored(0, 0.5, 0.25)],
            ISM_2=[scored(0, 0.5, 0.25, other)],
            CSM_1=[scored(0, 0.5, 0.25)],
            CSM_2=[scored(0, 0.5, 0.25, other)],
        )
    )
    found = [cells(line)[:4] for line in table.splitlines() if line.startswith("| teacher")]
    assert found == [["teacher", "1", "0.9000", "0.8000"], ["teacher", "2", "0.9000", "0.7000"]]


def test_nothing_scored_yet_is_a_table_too() -> None:
    table = markdown_table(result(ISM_1=[{"seed": 0, "state": "to do"}]))
    assert cells(table.splitlines()[2]) == ["ISM", "1", "-", "-", "0"]
    assert "teacher" not in table


def test_a_label_with_a_bar_stays_one_cell() -> None:
    (line,) = [
        line
        for line in markdown_table(result(**{"a|b_1": [failed(0)]})).splitlines()
        if line.startswith("| a")
    ]
    assert line.startswith("| a\\|b | 1 |")


def test_of_one_run_there_is_no_spread() -> None:
    found = summary([scored(0, 0.5, 0.25), failed(1)])["student"]["linear"]["accuracy"]
    assert found == {"mean": 0.5, "sd": None, "min": 0.5, "max": 0.5, "n": 1}
