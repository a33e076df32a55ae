"""Tables 2 to 7 hold the document's numbers, and ours where our runs belong."""

import dataclasses
from typing import Any

import pytest

from pipeline.report.collect import RunFacts
from pipeline.report.tables import Table, document_tables


def imagenet(run: RunFacts, model: str, epochs: int) -> RunFacts:
    recipe: dict[str, Any] = {
        **run.recipe,
        "prompts": {**run.recipe["prompts"], "file": "imagenet-1k"},
        "student": {**run.recipe["student"], "model": model},
        "training": {**run.recipe["training"], "epochs": epochs, "batch_size": 512},
    }
    scores = {
        "teacher": {"zeroshot": {"top1": 0.686}},
        "student": {"zeroshot": {"top1": 0.6617}, "linear": {"accuracy": 0.748}},
    }
    return dataclasses.replace(run, recipe=recipe, scores=scores)


def ours(table: Table) -> list[dict[str, str]]:
    names = (*table.by, *table.columns)
    return [
        dict(zip(names, (*row.words, *row.cells), strict=True)) for row in table.rows if row.ours
    ]


def test_without_our_rows_a_table_is_shown_only_when_asked_for(facts: list[RunFacts]) -> None:
    assert [table.number for table in document_tables(facts)] == [6, 7]
    assert [t.number for t in document_tables(facts, every=True)] == [2, 3, 4, 5, 6, 7]
    unscored = [dataclasses.replace(run, scores=None) for run in facts]
    assert document_tables(unscored) == []


@pytest.mark.parametrize(
    ("number", "row", "column", "value"),
    [
        (2, 5, "800", "75.0"),
        (3, 0, "200", "69.8"),
        (4, 2, "Linear probe", "75.8"),
        (5, 6, "ImageNet zero-shot", "57.5"),
        (6, 3, "CIFAR10", "92.10"),
        (7, 7, "Flowers102", "75.86"),
        (7, 7, "CIFAR10", ""),
    ],
)
def test_quoted_numbers_are_as_printed(
    facts: list[RunFacts], number: int, row: int, column: str, value: str
) -> None:
    table = next(t for t in document_tables(facts, every=True) if t.number == number)
    assert not table.rows[row].ours
    assert table.rows[row].cells[table.columns.index(column)] == value
    assert "BeamCLIP" in table.source


def test_our_runs_stand_under_their_epochs_and_datasets(facts: list[RunFacts]) -> None:
    runs = [imagenet(facts[0], "rn50", 200), imagenet(facts[1], "rn18", 50)]
    tables = {table.number: table for table in document_tables(runs)}
    assert sorted(tables) == [2, 3, 4, 5, 6, 7]
    (row,) = ours(tables[2])
    assert (row["Student"], row["Batch"], row["200"], row["400"]) == ("RN50", "512", "74.8", "")
    assert tables[3].columns == ("50", "100", "200", "400")
    assert ours(tables[3])[0]["50"] == "74.8"
    assert [item["ImageNet zero-shot"] for item in ours(tables[5])] == ["66.2", "66.2"]
    teacher, *students = ours(tables[6])
    assert (teacher["Type"], teacher["ImageNet-1K"]) == ("T", "68.6")
    assert [item["Image encoder"] for item in students] == ["RN50", "RN18"]


def test_the_ablation_says_what_each_student_was_trained_with(facts: list[RunFacts]) -> None:
    table = next(t for t in document_tables(facts) if t.number == 7)
    assert table.columns[0] == "shapes-prompts"  # our dataset, which the document has not
    _, whole, ism = ours(table)
    assert (whole["ISM"], whole["CSM"]) == ("Cosine", "CE+EntMin")
    assert (ism["ISM"], ism["CSM"]) == ("Cosine", "\N{EN DASH}")
    assert facts[0].scores is not None
    top1 = facts[0].scores["student"]["zeroshot"]["top1"]
    assert whole["shapes-prompts"] == f"{top1 * 100:.1f}"
