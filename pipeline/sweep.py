"""Works a sweep off: trains what is missing, scores it, keeps the results on disk.

OUT/<point>/seed-<n>/       a run, as train-student leaves it
OUT/<point>/seed-<n>.json   its name, its scores, and the probes and weights that they are of
OUT/sweep.json              the results of all, written anew after every run
"""

import contextlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline import __version__, durable, probing, runtime, stage_two
from pipeline.cache.reader import TargetCache
from pipeline.checkpoints import file_sha256
from pipeline.errors import ProbeError, RunError, StudentError
from pipeline.grid import Point, Sweep
from pipeline.options import to_mapping
from pipeline.ranks import ranks_of_environment
from pipeline.rundir import WEIGHTS, RunDir
from pipeline.shards import Shard
from pipeline.sweep_table import SPREAD, summary
from pipeline.trials import Trial, check_trials, sharing, trials_of

VERSION = 1  # of sweep.json
# What ends one run and says nothing of the others.
_ITS_OWN = (StudentError, ProbeError, RunError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Inputs:
    """What a sweep works with, which changes no number.

    caches: the teacher's, then those of further teachers. patterns: what names the shards to score
    with, by default those that the runs were trained from. notify: is told of every run that ends.
    """

    caches: Sequence[Path]
    shards: Sequence[Shard]
    patterns: Sequence[str] = ()
    device: str = "auto"
    workers: int | None = None
    notify: Callable[[str], None] = field(default=lambda _: None)


def plan_sweep(sweep: Sweep, points: Sequence[Point], inputs: Inputs, out: Path) -> dict[str, Any]:
    """Check a sweep as `run_sweep` does, train nothing, and return the results so far."""
    return _Work(sweep, points, inputs, out).results()


def run_sweep(sweep: Sweep, points: Sequence[Point], inputs: Inputs, out: Path) -> dict[str, Any]:
    """Train and score every point under every seed; return the results, as in OUT/sweep.json.

    What is finished is left as it is, what was interrupted goes on, what failed is tried again.
    Points that differ in the student alone are trained from one stream, each as if it were trained
    alone. A run that fails is recorded with its message, and the others go on. Raises RunError if
    another process works on the sweep, and what `check_trials` raises before anything is trained.
    """
    if ranks_of_environment().size > 1:
        raise RunError("a sweep trains in one process: start it without torchrun")
    with _alone(out):
        work = _Work(sweep, points, inputs, out)
        for group in sharing(work.trials):
            work.train(group)
            for trial in group:
                work.score(trial)
                work.write()
        return work.results()


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(durable.held(out / ".lock"))
        except BlockingIOError:
            raise RunError(f"another process works on the sweep in {out}: wait for it") from None
        yield


class _Work:
    """A sweep, and what is known of its runs."""

    def __init__(self, sweep: Sweep, points: Sequence[Point], inputs: Inputs, out: Path) -> None:
        self.sweep, self.points, self.inputs, self.out = sweep, points, inputs, out
        self.trials = trials_of(points, sweep.seeds, out)
        self.asked = sweep.probes or None  # by name: none of them may be left out
        self.probes = list(sweep.probes or points[0].recipe.probes.run)
        self.cache: TargetCache = check_trials(
            self.trials, inputs.caches, inputs.shards, runtime.pick_device(inputs.device)
        )
        self.records = {trial: _read_record(trial, self.probes) for trial in self.trials}
        self.failures: dict[Trial, str] = {}
        self.made_with = {
            "beamclip": __version__,
            "commit": runtime.git_commit(),
            "versions": runtime.versions(),
            "machine": platform.machine(),
        }

    def train(self, group: Sequence[Trial]) -> None:
        """Train what is unfinished of some trials from one stream; if that fails, one by one."""
        due = [trial for trial in group if not trial.run.is_finished()]
        error = self._attempt(due) if due else None
        if error is not None and len(due) == 1:
            self._fail(due[0], error)
        elif error is not None:
            for trial in due:
                self.train([trial])

    def _attempt(self, due: Sequence[Trial]) -> str | None:
        """Train; return what went wrong, without the traceback that would hold on to memory."""
        try:
            stage_two.train(
                due[0].recipe,
                self.inputs.caches,
                self.inputs.shards,
                {trial.run.path: trial.recipe for trial in due},
                resume=True,
                device=self.inputs.device,
                loading=stage_two.Loading(workers=self.inputs.workers),
                generation=self.cache.manifest["generation"],
            )
        except _ITS_OWN as error:
            return str(error)
        return None

    def score(self, trial: Trial) -> None:
        """Score a trained run, unless it is scored by the same probes."""
        if trial in self.failures or self.records[trial] is not None:
            return
        try:
            scores = probing.probe(
                trial.run.path,
                self.inputs.caches[0],
                self.inputs.patterns,
                probes=self.asked,
                workers=self.inputs.workers or 0,
                device=self.inputs.device,
            )
        except _ITS_OWN as error:
            self._fail(trial, str(error))
            return
        durable.fault_point("before-record")
        record = {
            "name": ", ".join([*trial.point.labels.values(), f"seed {trial.seed}"]),
            "probes": self.probes,
            "weights": _weights(trial.run),
            "scores": scores,
            "loss": trial.run.last_metrics()["loss"],
            "made_with": trial.run.read_origin()["made_with"],
        }
        durable.write_json(_record_path(trial.run), record)
        self.records[trial] = record
        self._tell(trial, "scored")

    def _fail(self, trial: Trial, error: str) -> None:
        self.failures[trial] = error
        self._tell(trial, f"failed: {error}")

    def _tell(self, trial: Trial, what: str) -> None:
        ended = len(self.failures) + sum(record is not None for record in self.records.values())
        self.inputs.notify(f"{ended}/{len(self.trials)} {trial.name}: {what}")

    def write(self) -> None:
        """Write sweep.json."""
        durable.write_json(self.out / "sweep.json", self.results())

    def results(self) -> dict[str, Any]:
        """Return every point with its runs, their scores, and means and spreads over seeds."""
        runs: dict[str, list[dict[str, Any]]] = {point.slug: [] for point in self.points}
        for trial in self.trials:
            runs[trial.point.slug].append(self._run(trial))
        return {
            "version": VERSION,
            "name": self.sweep.name,
            "sweep": to_mapping(self.sweep),
            "probes": self.probes,
            "spread": SPREAD,
            "cache": {
                "path": str(self.cache.path.resolve()),
                "generation": self.cache.manifest["generation"],
                "digest": self.cache.digest,
            },
            "made_with": self.made_with,
            "points": [
                {
                    "slug": point.slug,
                    "labels": dict(point.labels),
                    "settings": to_mapping(point.settings),
                    "recipe": point.recipe.resolved(),
                    "runs": runs[point.slug],
                    "scores": summary(runs[point.slug]),
                }
                for point in self.points
            ],
        }

    def _run(self, trial: Trial) -> dict[str, Any]:
        known = {"seed": trial.seed, "folder": trial.name}
        if trial in self.failures:
            return {**known, "state": "failed", "error": self.failures[trial]}
        record = self.records[trial]
        if record is not None:
            return {**known, "state": "scored", **record}
        if trial.run.is_finished():
            return {**known, "state": "trained"}
        return {**known, "state": "begun" if trial.run.is_begun() else "to do"}


def _record_path(run: RunDir) -> Path:
    return run.path.with_name(f"{run.path.name}.json")


def _read_record(trial: Trial, probes: Sequence[str]) -> dict[str, Any] | None:
    """Return what was recorded of a finished run, None unless of these probes and its weights."""
    try:
        record = dict(json.loads(_record_path(trial.run).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return None
    current = record.get("probes") == list(probes) and trial.run.is_finished()
    return record if current and record.get("weights") == _weights(trial.run) else None


def _weights(run: RunDir) -> str:
    return file_sha256(run.path / WEIGHTS["student"])
