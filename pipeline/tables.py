"""Lays scores out as a table for a terminal."""

from collections.abc import Mapping

_ROWS = {
    "teacher": "teacher",
    "student": "student",
    "student_raw": "student, raw",
    "chance": "chance",
}
_COLUMNS = {
    ("zeroshot", "top1"): "zero-shot",
    ("linear", "accuracy"): "linear",
    ("linear", "embedding_accuracy"): "linear, embedding",
}


def score_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return one line per encoder and one column per headline score, shares of the test rows."""
    columns = [c for c in _COLUMNS if any(c[0] in probes for probes in scores.values())]
    titles = [_COLUMNS[column] for column in columns]
    lines = [" " * 14 + "".join(title.rjust(len(title) + 3) for title in titles)]
    for row in (name for name in _ROWS if name in scores):
        cells = [scores[row].get(probe, {}).get(score) for probe, score in columns]
        texts = ["-" if cell is None else f"{cell:.4f}" for cell in cells]
        line = "".join(t.rjust(len(title) + 3) for t, title in zip(texts, titles, strict=True))
        lines.append(_ROWS[row].ljust(14) + line)
    return "\n".join(lines)
