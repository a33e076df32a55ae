"""Lays scores, and what images say of anchors, out as tables for a terminal."""

from collections.abc import Mapping

from pipeline.anchor_report import AnchorsReport, ClassReport, NearDuplicate

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
    ("fewshot", "accuracy"): "few-shot",
    ("knn", "accuracy"): "k-NN",
    ("retrieval", "image_to_text_r1"): "image-text R@1",
    ("retrieval", "text_to_image_r1"): "text-image R@1",
    ("retrieval", "class_p5"): "class P@5",
    ("agreement", "agreement"): "agreement",
}


def score_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return one line per encoder and one column per headline score, shares of the test rows."""
    columns = [
        (probe, score)
        for probe, score in _COLUMNS
        if any(score in probes.get(probe, {}) for probes in scores.values())
    ]
    titles = [_COLUMNS[column].rjust(6) for column in columns]  # as wide as a score
    names = _ordered(scores)
    width = max(14, *(len(_ROWS.get(name, name)) for name in names)) if names else 14
    lines = [" " * width + "".join(title.rjust(len(title) + 3) for title in titles)]
    for row in names:
        cells = [scores[row].get(probe, {}).get(score) for probe, score in columns]
        texts = ["-" if cell is None else f"{cell:.4f}" for cell in cells]
        line = "".join(t.rjust(len(title) + 3) for t, title in zip(texts, titles, strict=True))
        lines.append(_ROWS.get(row, row).ljust(width) + line)
    return "\n".join(lines)


def _ordered(scores: Mapping[str, object]) -> list[str]:
    """Return the encoders in the order of their rows: those with a name of their own first."""
    return [*(name for name in scores if name not in _ROWS), *(n for n in _ROWS if n in scores)]


def anchors_table(report: AnchorsReport, *, most: int = 20) -> str:
    """Say which labels are ambiguous, worst first, with at most `most` lines of each kind."""
    lines = [
        f"{report.name}: {len(report.classes)} classes, {report.images} images of "
        f"{report.split}, {_labels(report)}"
    ]
    if report.top1 is not None:
        before = "" if report.top1_before is None else f", {report.top1_before:.4f} before"
        lines.append(f"teacher zero-shot {report.top1:.4f}{before}")
    if report.against is not None:
        lines.append(f"before: {report.against}; {report.moved:.2%} of the images changed class")
    width = max(5, *(len(item.name) for item in report.classes[:most]))
    lines += ["", _titles(report, width)]
    lines += [_class_line(item, report, width) for item in report.classes[:most]]
    if len(report.classes) > most:
        lines.append(f"... and {len(report.classes) - most} more (--json has all)")
    if absent := [repr(item.name) for item in report.without_images()]:
        more = ", ..." if len(absent) > most else ""
        lines.append(f"no images of {len(absent)} classes: {', '.join(absent[:most])}{more}")
    if report.near_duplicates:
        lines += ["", "near-duplicates (the teacher is torn between them):"]
        lines += [_pair_line(pair) for pair in report.near_duplicates[:most]]
    return "\n".join([*lines, "", *_advice(report, most)])


def _labels(report: AnchorsReport) -> str:
    """Say how many images have a label, or why those that they have do not count."""
    if report.unlabelled_because is not None:
        return f"labels left aside: {report.unlabelled_because}"
    if not report.labelled:
        return "no labels"
    return "labelled" if report.labelled == report.images else f"{report.labelled} labelled"


def _pair_line(pair: NearDuplicate) -> str:
    share = "none of the images" if pair.share is None else f"{pair.share:.0%} of their images"
    return f"  {pair.one!r} and {pair.other!r}: {share}, cosine {pair.cosine:.4f}"


def _titles(report: AnchorsReport, width: int) -> str:
    before = ["before"] if report.against else []
    names = ["ambiguity", *before, "images", "expected", "certainty"]
    if report.labelled:
        names += ["recall", *before, "precision", *before]
    return "class".ljust(width) + "".join(name.rjust(11) for name in names) + "   rival"


def _class_line(item: ClassReport, report: AnchorsReport, width: int) -> str:
    def beside(field: str) -> list[str]:
        states = [item] if item.before is None else [item, item.before]
        values = [getattr(state, field) for state in states]
        return ["-" if value is None else f"{value:.3f}" for value in values]

    cells = [*beside("ambiguity"), f"{item.images}", f"{item.expected:.1f}"]
    cells += [f"{item.certainty:.3f}"]
    if report.labelled:
        cells += [*beside("recall"), *beside("precision")]
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
    before = None if item.before is None else item.before.ambiguity
    if before is not None and before < (item.ambiguity or 0) - 0.05:
        return f"was better in {report.against}: its context misleads, write another"
    what = "write more of its context" if report.has_context else "add context (a cpa set)"
    return f"{what}, or a synonym, that tells it from {item.rival!r}"
