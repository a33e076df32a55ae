"""Reads what runs left on disk: recipes, origins, epochs, scores."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.rundir import WEIGHTS, RunDir

_FULL_NAMES = {"rn18": "resnet18", "rn50": "resnet50"}
LOCAL = "local-dir:"


@dataclass(frozen=True)
class RunFacts:
    """One run as its folder tells it. name: how the page calls it, no two alike.

    epochs: the lines of metrics.jsonl. scores, details: by encoder and probe, as probe.json and
    probe-details.json hold them, or None. problems: what could not be read, in words.
    """

    path: Path
    name: str
    recipe: Mapping[str, Any]
    origin: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...] = ()
    scores: Mapping[str, Any] | None = None
    details: Mapping[str, Any] | None = None
    problems: tuple[str, ...] = field(default=())

    @property
    def is_finished(self) -> bool:
        """Whether training ended."""
        return RunDir(self.path).is_finished()

    @property
    def model(self) -> str:
        """The student's architecture, by its timm name."""
        name = str(self.recipe["student"]["model"])
        return _FULL_NAMES.get(name, name)

    @property
    def teacher(self) -> str:
        """The teacher as a reader knows it: a folder by its last name alone."""
        model = str(self.recipe["teacher"]["model"])
        if model.startswith(LOCAL):
            return f"local teacher {Path(model.removeprefix(LOCAL)).name}"
        tag = self.recipe["teacher"].get("pretrained")
        if tag and tag.startswith(LOCAL):
            return f"{model} of {Path(tag.removeprefix(LOCAL)).name}"
        return f"{model} ({tag})" if tag else model

    @property
    def dataset(self) -> str:
        """The data that it is scored on: the name of its prompt file, else of its recipe."""
        prompts = self.recipe.get("prompts")
        return Path(str(prompts["file"])).stem if prompts else str(self.recipe["name"])

    @property
    def anchors(self) -> str | None:
        """The cached prompt set that it was trained with, if its teacher reads text."""
        name = self.origin["prompt_sets"].get("anchors")
        return None if name is None else str(name)

    @property
    def zeroshot(self) -> str | None:
        """The cached prompt set that it is scored by, if its teacher reads text."""
        name = self.origin["prompt_sets"].get("zeroshot")
        return None if name is None else str(name)

    @property
    def cache_path(self) -> Path:
        """Where the run's cache lay when it was trained."""
        return Path(str(self.origin["cache_path"]))

    @property
    def group(self) -> tuple[str, str, str]:
        """What runs must share for their scores to be compared: teacher, cache, zero-shot set."""
        teacher = str(self.origin["teacher"]["weights_sha256"])
        return teacher, str(self.cache_path), self.zeroshot or ""

    def score(self, encoder: str, probe: str, name: str) -> float | None:
        """Return one score, or None where the probe was not run."""
        value = ((self.scores or {}).get(encoder, {}).get(probe) or {}).get(name)
        return None if value is None else float(value)

    def weight(self, loss: str) -> float:
        """Return a loss's weight, 0 where the recipe has none."""
        return float(self.recipe["losses"].get(loss, {}).get("weight", 0))


def collect(paths: Sequence[Path]) -> list[RunFacts]:
    """Read runs in the order given; raises RunError for a folder that holds none, or given twice.

    Scores and epochs may be missing; files of them that are damaged are named in `problems`.
    """
    if not paths:
        raise RunError("no run was given: name at least one run folder")
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise RunError("a run folder was given twice: give each once")
    names = _names(resolved)
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def grouped(runs: Sequence[RunFacts]) -> list[list[RunFacts]]:
    """Return the runs that may be compared together, in the order of their first."""
    groups: dict[tuple[str, str, str], list[RunFacts]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return list(groups.values())


def parameters(run: RunFacts) -> int | None:
    """Return how many numbers a finished student's weights hold, by their header, or None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(run.path / WEIGHTS["student"], framework="numpy") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return sum(int(math.prod(shape)) for shape in shapes if shape)  # a counter has none


def _read(path: Path, name: str) -> RunFacts:
    run, problems = RunDir(path), list[str]()
    recipe, origin = run.read_recipe(), run.read_origin()
    return RunFacts(
        path=path,
        name=name,
        recipe=recipe,
        origin=origin,
        epochs=tuple(_read_lines(path / "metrics.jsonl", problems)),
        scores=_read_json(path / "probe.json", problems),
        details=_read_json(path / "probe-details.json", problems),
        problems=tuple(problems),
    )


def _read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({error}): run `beamclip probe` again")
        return None


def _read_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, TypeError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({error}): its curves are left out")
        return []


def _names(paths: Sequence[Path]) -> list[str]:
    """Return what a sweep calls each run, if one does and no two are alike.

    Else each folder's name, with as many of its parents as tell it from the others.
    """
    called = [name for path in paths if (name := _called(path))]
    if len(set(called)) == len(paths):
        return called
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _called(path: Path) -> str | None:
    """Return what a sweep's record beside a run calls it, None without one that can be read."""
    try:
        record = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        return str(record["name"])
    except (OSError, TypeError, ValueError, KeyError):
        return None
