"""The table shows each encoder's scores under the right titles."""

from pipeline.probes import PROBES
from pipeline.tables import score_table

SCORES = {
    "teacher": {
        "linear": {"accuracy": 0.98765, "embedding_accuracy": 0.5, "C": 30.0},
        "zeroshot": {"top1": 1.0, "mean_per_class": 0.9},
    },
    "student": {
        "linear": {"accuracy": 0.25, "embedding_accuracy": 0.125},
        "zeroshot": {"top1": 0.75},
    },
    "student_raw": {"linear": {"accuracy": 0.5}, "zeroshot": {"top1": 0.0}},
    "chance": {"linear": {"accuracy": 0.1}, "zeroshot": {"top1": 0.1}},
}


def cells(table: str) -> list[list[str]]:
    return [line.replace(", ", ",").split() for line in table.splitlines()]


def test_every_score_stands_under_its_title() -> None:
    assert cells(score_table(SCORES)) == [
        ["zero-shot", "linear", "linear,embedding"],
        ["teacher", "1.0000", "0.9877", "0.5000"],
        ["student", "0.7500", "0.2500", "0.1250"],
        ["student,raw", "0.0000", "0.5000", "-"],
        ["chance", "0.1000", "0.1000", "-"],
    ]


def test_columns_line_up() -> None:
    head, *rows = score_table(SCORES).splitlines()
    ends = [head.index(title) + len(title) for title in ("zero-shot", "linear, embedding")]
    for row in rows:
        assert len(row) == len(head)
        assert [row[end - 1] != " " for end in ends] == [True, True]


def test_rows_keep_their_order_however_the_scores_come() -> None:
    assert score_table(dict(reversed(SCORES.items()))) == score_table(SCORES)


def test_a_probe_that_was_not_run_has_no_column() -> None:
    only = {name: {"zeroshot": probes["zeroshot"]} for name, probes in SCORES.items()}
    assert cells(score_table(only))[0] == ["zero-shot"]


def test_an_encoder_that_was_not_scored_has_no_row() -> None:
    rows = cells(score_table({"student": SCORES["student"]}))
    assert [row[0] for row in rows[1:]] == ["student"]


def test_a_score_that_no_encoder_has_has_no_column() -> None:
    """Retrieval has captions, class prompts, or both."""
    classes = {"teacher": {"retrieval": {"class_p5": 0.5}}}
    assert cells(score_table(classes)) == [["class", "P@5"], ["teacher", "0.5000"]]
    captions = {"image_to_text_r1": 0.25, "text_to_image_r1": 0.125}
    scores = {"teacher": {"retrieval": captions}, "chance": {}}
    assert cells(score_table(scores)) == [
        ["image-text", "R@1", "text-image", "R@1"],
        ["teacher", "0.2500", "0.1250"],
        ["chance", "-", "-"],
    ]


def test_neighbours_and_agreement_stand_under_their_titles() -> None:
    scores = {"student": {"knn": {"accuracy": 0.75}, "agreement": {"agreement": 0.5}}}
    assert cells(score_table(scores)) == [["k-NN", "agreement"], ["student", "0.7500", "0.5000"]]


def test_every_probes_headline_has_a_column() -> None:
    scores = {"student": {name: {probe.headline: 0.5} for name, probe in PROBES.items()}}
    assert cells(score_table(scores))[1].count("0.5000") == len(PROBES)
