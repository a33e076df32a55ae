"""Lays scores, and what images say of anchors, out as tables for a terminal."""

from collections.abc import Mapping

from pipeline.anchor_report import AnchorsReport, ClassReport

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


def anchors_table(report: AnchorsReport, *, most: int = 20) -> str:
    """Say which labels are ambiguous, worst first, with at most `most` lines of each kind."""
    lines = [
        f"{report.name}: {len(report.classes)} anchors, {report.images} images of "
        f"{report.split}, {'labelled' if report.labels else 'no labels'}"
    ]
    if report.top1 is not None:
        before = "" if report.top1_before is None else f", {report.top1_before:.4f} before"
        lines.append(f"teacher zero-shot {report.top1:.4f}{before}")
    if report.against is not None:
        lines.append(f"before: {report.against}; {report.moved:.2%} of the images changed class")
    width = max(5, *(len(item.name) for item in report.classes[:most]))
    lines += ["", _titles(report, width)]
    lines += [_class_line(item, width) for item in report.classes[:most]]
    if len(report.classes) > most:
        lines.append(f"... and {len(report.classes) - most} more (--json has all)")
    if report.near_duplicates:
        lines += ["", "near-duplicates (the teacher is torn between them):"]
        lines += [
            f"  {one!r} and {other!r}: {share:.0%} of their images"
            for one, other, share in report.near_duplicates[:most]
        ]
    return "\n".join([*lines, "", *_advice(report, most)])


def _titles(report: AnchorsReport, width: int) -> str:
    names = ["ambiguity", "images", "expected", "certainty"]
    names += ["recall", "precision"] if report.labels else []
    names += ["before"] if report.against else []
    return "class".ljust(width) + "".join(name.rjust(11) for name in names) + "   rival"


def _class_line(item: ClassReport, width: int) -> str:
    cells = [f"{item.ambiguity:.3f}", f"{item.images}", f"{item.expected:.1f}"]
    cells += [f"{item.certainty:.3f}"]
    if item.recall is not None and item.precision is not None:
        cells += [f"{item.recall:.3f}", f"{item.precision:.3f}"]
    if item.before is not None:
        cells += [f"{item.before.ambiguity:.3f}"]
    numbers = "".join(cell.rjust(11) for cell in cells)
    return f"{item.name.ljust(width)}{numbers}   {item.rival} ({item.rival_cosine:.3f})"


def _advice(report: AnchorsReport, most: int) -> list[str]:
    """Name the ambiguous labels, and what may help each."""
    found = report.ambiguous()
    if not found:
        return ["no label looks ambiguous"]
    lines = [f"{len(found)} of {len(report.classes)} labels look ambiguous, worst first:"]
    return lines + [f"  {item.name!r}: {_suggestion(item, report)}" for item in found[:most]]


def _suggestion(item: ClassReport, report: AnchorsReport) -> str:
    if item.before is not None and item.before.ambiguity < item.ambiguity - 0.05:
        return f"was better in {report.against}: its context misleads, write another"
    what = "write more of its context" if report.has_context else "add context (a cpa set)"
    return f"{what}, or a synonym, that tells it from {item.rival!r}"
