"""Lays scores out as the source document's Tables 2 to 7, quoted rows marked beside our own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report.collect import RunFacts, parameters
from pipeline.report.svg import NONE, percent
from pipeline.yamlfile import read_yaml

_QUOTED = Path(__file__).with_name("quoted.yaml")
_IMAGENET = "imagenet-1k"
_TITLES = {  # of datasets, as the document writes them
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "stl10": "STL10",
    "flowers102": "Flowers102",
    "pets37": "Pets37",
    _IMAGENET: "ImageNet-1K",
}
_SHORT = {"resnet18": "RN18", "resnet50": "RN50"}


@dataclass(frozen=True)
class Row:
    """One line: the words that describe it, a text for each column, and whether it is ours."""

    words: tuple[str, ...]
    cells: tuple[str, ...]
    ours: bool


@dataclass(frozen=True)
class Table:
    """One table of the document with our rows. under: what its columns count, if anything."""

    number: int
    title: str
    by: tuple[str, ...]
    columns: tuple[str, ...]
    under: str | None
    rows: tuple[Row, ...]
    source: str

    @property
    def has_ours(self) -> bool:
        """Whether a row is of a run."""
        return any(row.ours for row in self.rows)


Found = tuple[tuple[str, ...], dict[str, float]]  # words, share by column


def document_tables(runs: Sequence[RunFacts], *, every: bool = False) -> list[Table]:
    """Return the document's tables that have a row of ours; every: those without one, too.

    Our rows are shares of the test images as probe.json holds them, shown in per cent.
    """
    quoted = read_yaml(_QUOTED, where="the quoted rows")
    scored = [run for run in runs if run.scores is not None]
    tables = [
        _table(number, quoted["tables"][number], ours(scored), str(quoted["source"]))
        for number, ours in _OURS.items()
    ]
    return [table for table in tables if every or table.has_ours]


def _table(number: int, fields: Mapping[str, Any], ours: Sequence[Found], source: str) -> Table:
    """Put our rows under the quoted ones, with the columns that they bring before."""
    brought = {name for _, found in ours for name in found} - set(fields["columns"])
    columns = [*sorted(brought), *fields["columns"]]  # ours first: the others may need scrolling
    if fields.get("under"):
        columns.sort(key=int)
    rows = [
        Row(tuple(words), tuple(found.get(name, "") for name in columns), ours=False)
        for words, found in fields["rows"]
    ]
    rows += [
        Row(
            words,
            tuple("" if name not in found else percent(found[name]) for name in columns),
            True,
        )
        for words, found in ours
    ]
    return Table(
        number,
        str(fields["title"]),
        tuple(fields["by"]),
        tuple(columns),
        fields.get("under"),
        tuple(rows),
        source,
    )


def _by_epochs(model: str) -> Callable[[Sequence[RunFacts]], list[Found]]:
    """Return what finds our rows of Tables 2 and 3: linear accuracy on ImageNet, by epochs."""

    def ours(runs: Sequence[RunFacts]) -> list[Found]:
        found: list[Found] = []
        for run in runs:
            accuracy = run.score("student", "linear", "accuracy")
            if run.dataset == _IMAGENET and run.model == model and accuracy is not None:
                words = (run.name, run.teacher, _short(run), _batch(run))
                found.append((words, {_epochs(run): accuracy}))
        return found

    return ours


def _pretrained(runs: Sequence[RunFacts]) -> list[Found]:
    """Table 4: students that began from weights, or ResNet-50 from none, on ImageNet."""
    found: list[Found] = []
    for run in runs:
        accuracy = run.score("student", "linear", "accuracy")
        if run.dataset == _IMAGENET and run.model == "resnet50" and accuracy is not None:
            words = (run.name, run.teacher, _short(run), _init(run), _batch(run), _epochs(run))
            found.append((words, {"Linear probe": accuracy}))
    return found


def _imagenet_zeroshot(runs: Sequence[RunFacts]) -> list[Found]:
    found: list[Found] = []
    for run in runs:
        top1 = run.score("student", "zeroshot", "top1")
        if run.dataset == _IMAGENET and top1 is not None:
            prompts = run.anchors or NONE
            what = (run.name, _short(run), str(run.recipe["name"]), run.teacher)
            words = (*what, prompts, _batch(run), _epochs(run))
            found.append((words, {"ImageNet zero-shot": top1}))
    return found


def _datasets(runs: Sequence[RunFacts]) -> list[Found]:
    """Table 6: each teacher once, then the students, by zero-shot accuracy on their dataset."""

    def words(run: RunFacts, kind: str) -> tuple[str, ...]:
        if kind == "teacher":
            return "Teacher, zero-shot", "T", run.teacher, NONE
        count = parameters(run)
        return run.name, "S", _short(run), NONE if count is None else f"{count / 1e6:.1f}M"

    return _zeroshot(runs, words)


def _ablation(runs: Sequence[RunFacts]) -> list[Found]:
    """Table 7: which parts each student was trained with."""

    def words(run: RunFacts, kind: str) -> tuple[str, ...]:
        if kind == "teacher":
            return "Teacher, zero-shot", "T", run.teacher, NONE, NONE, NONE, NONE
        parts = _similarity(run), _matching(run), _context(run), _init(run)
        return run.name, "S", _short(run), *parts

    return _zeroshot(runs, words)


def _zeroshot(
    runs: Sequence[RunFacts], words: Callable[[RunFacts, str], tuple[str, ...]]
) -> list[Found]:
    """Return a row for each teacher and each student that has a zero-shot score."""
    teachers: dict[tuple[str, ...], dict[str, float]] = {}
    students: list[Found] = []
    for run in runs:
        column = _TITLES.get(run.dataset, run.dataset)
        teacher, student = (run.score(name, "zeroshot", "top1") for name in ("teacher", "student"))
        if teacher is not None:
            teachers.setdefault(words(run, "teacher"), {})[column] = teacher
        if student is not None:
            students.append((words(run, "student"), {column: student}))
    return [*teachers.items(), *students]


def _short(run: RunFacts) -> str:
    return _SHORT.get(run.model, run.model)


def _batch(run: RunFacts) -> str:
    return f"{run.recipe['training']['batch_size']:,}"


def _epochs(run: RunFacts) -> str:
    return str(run.recipe["training"]["epochs"])


def _init(run: RunFacts) -> str:
    init = str(run.recipe["student"].get("init", "scratch"))
    return NONE if init == "scratch" else Path(init).name


def _similarity(run: RunFacts) -> str:
    return "Cosine" if run.weight("ism") else NONE


def _matching(run: RunFacts) -> str:
    parts = [name for loss, name in (("csm_ce", "CE"), ("entmin", "EntMin")) if run.weight(loss)]
    others = sorted(
        name for name in run.recipe["losses"]
        if name not in ("ism", "csm_ce", "entmin") and run.weight(name)
    )  # fmt: skip
    return "+".join([*parts, *others]) or NONE


def _context(run: RunFacts) -> str:
    return "✓" if "cpa" in (run.anchors or "").partition("-")[2] else NONE


_OURS: Mapping[int, Callable[[Sequence[RunFacts]], list[Found]]] = {
    2: _by_epochs("resnet50"),
    3: _by_epochs("resnet18"),
    4: _pretrained,
    5: _imagenet_zeroshot,
    6: _datasets,
    7: _ablation,
}
