"""Reads GLUE's files strictly: by columns, without quotes, every line that is left out counted.

Shape letters: N examples.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from pipeline.glue.tasks import TASKS, TRAIN, Task

SOURCE = "https://gluebenchmark.com/tasks"
_IDS = ("#1 ID", "#2 ID")
_MOST = 5.0  # the greatest score of STS-B
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Labelled texts. seconds: the other text of each pair, none where there are no pairs.

    labels_N: classes as int64, or numbers as float32. broken: lines that were left out. sha256: of
    the file they are from.
    """

    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    labels_N: np.ndarray
    broken: int
    sha256: str

    def __len__(self) -> int:
        return len(self.firsts)


@dataclass(frozen=True)
class TaskData:
    """The examples of a task: to train on, and to score on (by the names of `Task.dev`)."""

    train: Examples
    dev: dict[str, Examples]


def check_files(folder: Path, names: Sequence[str]) -> None:
    """Raise DataError, naming every file that these tasks lack below a folder."""
    missing = [text for name in names for text in _missing(folder, TASKS[name])]
    if missing:
        asked = ", ".join(names)
        raise DataError(
            f"GLUE in {folder} lacks {len(missing)} files of what was asked ({asked}): "
            f"{', '.join(missing)}. Expected is the layout of GLUE's own download, which "
            f"data/README.md describes; the data come from {SOURCE}. Or ask for fewer by --tasks"
        )


def read_task(folder: Path, name: str) -> TaskData:
    """Read a task's files below a folder; raises DataError for one that is not as it should be.

    A line is left out, and counted, if it is not UTF-8, has not as many columns as the first line,
    or has a label that is none of the task's.
    """
    task = TASKS[name]
    place = folder / task.folder
    if task.raw is not None and _stands_in(place, task):
        return _split(_read(place / task.raw[0], task), task, place / task.raw[1])
    dev = {part: _read(place / file, task).examples(task) for part, file in task.dev.items()}
    return TaskData(_read(place / TRAIN, task).examples(task), dev)


# --- which files ---------------------------------------------------------------------------------


def _missing(folder: Path, task: Task) -> list[str]:
    place = folder / task.folder
    if _stands_in(place, task):
        return []
    hint = f" (or {' and '.join(task.raw)} for both)" if task.raw else ""
    files = (TRAIN, *task.dev.values())
    return [f"{task.folder}/{file}{hint}" for file in files if not (place / file).is_file()]


def _stands_in(place: Path, task: Task) -> bool:
    """Tell whether the raw files are read: they are there, and one of train and dev is not."""
    if task.raw is None or not all((place / file).is_file() for file in task.raw):
        return False
    return not all((place / file).is_file() for file in (TRAIN, *task.dev.values()))


def _split(found: "_Found", task: Task, path: Path) -> TaskData:
    """Part raw examples by the ids of dev, a pair in each line of a file."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    ids = {tuple(line.split()) for line in text.splitlines()}
    of_dev = [tuple(row[name] for name in _IDS) in ids for row in found.rows]
    train = [row for row, chosen in zip(found.rows, of_dev, strict=True) if not chosen]
    dev = [row for row, chosen in zip(found.rows, of_dev, strict=True) if chosen]
    if not dev:
        raise DataError(f"{path} names none of the pairs of ids in {found.path}")
    return TaskData(
        replace(found, rows=train).examples(task),
        {"": replace(found, rows=dev, broken=[]).examples(task)},  # counted in train
    )


# --- lines ---------------------------------------------------------------------------------------


class _Broken(Exception):
    """A line that cannot be read; says why."""


@dataclass(frozen=True)
class _Found:
    """A file's rows by their columns, and what was wrong with each line that is none."""

    path: Path
    rows: list[dict[str, str]]
    broken: list[str]
    sha256: str

    def examples(self, task: Task) -> Examples:
        if not self.rows:
            first = f", first {self.broken[0]}" if self.broken else ""
            raise DataError(
                f"{self.path} has no example, and {len(self.broken)} broken lines{first}"
            )
        firsts, seconds = task.texts[0], task.texts[1:]
        return Examples(
            tuple(row[firsts] for row in self.rows),
            tuple(row[name] for row in self.rows for name in seconds),
            np.array(
                [_label(row[task.label], task) for row in self.rows],
                np.int64 if task.labels else np.float32,
            ),
            len(self.broken),
            self.sha256,
        )


def _read(path: Path, task: Task) -> _Found:
    """Read the columns of a file that the task needs."""
    lines = _Lines(path, task)
    rows: list[dict[str, str]] = []
    broken: list[str] = []
    for number, line in lines:
        try:
            rows.append(lines.row(line))
        except _Broken as why:
            broken.append(f"line {number} ({why})")
    if broken:
        _log.warning("%s: left out %d broken lines, first %s", path, len(broken), broken[0])
    return _Found(path, rows, broken, lines.digest.hexdigest())


class _Lines:
    """The lines of a file after its header, which names the columns."""

    def __init__(self, path: Path, task: Task) -> None:
        self.digest, self._path, self._task = sha256(), path, task
        self._header: Sequence[str] = task.header

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number, line); raises DataError if the header lacks a column that is needed."""
        with open(self._path, "rb") as file:  # lines end in \n alone: texts hold other breaks
            for number, line in enumerate(file, 1):
                self.digest.update(line)
                if number == 1 and not self._task.header:
                    self._header = self._read_header(line)
                else:
                    yield number, line

    def row(self, line: bytes) -> dict[str, str]:
        """Return the columns of a line that the task needs; raises _Broken.

        Quotes are text: the files are not quoted as CSV is.
        """
        try:
            cells = line.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            raise _Broken("not UTF-8") from None
        if len(cells) != len(self._header):
            raise _Broken(f"{len(cells)} columns, not {len(self._header)}")
        row = dict(zip(self._header, cells, strict=True))
        _label(row[self._task.label], self._task)
        ids = _IDS if self._task.raw else ()
        return {name: row[name] for name in (*self._task.texts, self._task.label, *ids)}

    def _read_header(self, line: bytes) -> list[str]:
        header = line.decode("utf-8-sig", errors="replace").rstrip("\r\n").split("\t")
        needed = [*self._task.texts, self._task.label, *(_IDS if self._task.raw else ())]
        if lacking := [name for name in needed if name not in header]:
            raise DataError(
                f"{self._path}: the first line lacks {', '.join(map(repr, lacking))}; expected the "
                f"columns {', '.join(needed)} among tab-separated ones, found {header[:12]}"
            )
        return header


def _label(text: str, task: Task) -> float:
    """Return the class, or the number, that a label stands for; raises _Broken."""
    if task.labels:
        if text not in task.labels:
            raise _Broken(f"label {text[:20]!r}, none of {', '.join(task.labels)}")
        return task.labels.index(text)
    try:
        number = float(text)
    except ValueError:
        raise _Broken(f"{text[:20]!r} is no number") from None
    if not 0 <= number <= _MOST:
        raise _Broken(f"{text[:20]!r} is not between 0 and {_MOST:g}")
    return number
