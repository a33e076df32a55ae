"""Scores frozen encoders under the same probes: a run's student and its cached teacher, or any."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.batches import eval_batches
from pipeline.cache import layout
from pipeline.cache.arrays import attributes_of
from pipeline.cache.captions import Captions
from pipeline.cache.reader import TargetCache
from pipeline.contracts import Features
from pipeline.errors import CacheError, ProbeError
from pipeline.feature_store import FeatureStore
from pipeline.features import student_features, student_identity, teacher_features
from pipeline.probes import PROBES, ProbeOptions
from pipeline.probes.contract import WHAT, Need, Result, Subject
from pipeline.rows import match_shards
from pipeline.rundir import WEIGHTS, RunDir
from pipeline.schedule import EVAL
from pipeline.shards import Shard
from pipeline.students import Student, load_weights

_log = logging.getLogger(__name__)
Split = TypeVar("Split")
Results = dict[str, dict[str, Result]]  # by encoder, then probe
Scores = dict[str, dict[str, dict[str, float]]]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class CachedData:
    """What a run is scored on: the eval views of a cache, and the shards that it was made from.

    generation: the manifest that the run was trained by. shards: finds them; asked only for
    features that the store does not hold, or if they were named. splits: those that it will find.
    zeroshot, captions: whole names of sets of the cache; captions None takes the only set of the
    test split.
    """

    path: Path
    generation: int
    shards: Callable[[], Sequence[Shard]]
    splits: Collection[str]
    named: bool
    zeroshot: str
    captions: str | None = None


def evaluate_run(
    run: RunDir,
    student: Student,
    data: CachedData,
    spec: ProbeOptions,
    *,
    asked: bool,
    input_px: int,
    device: torch.device,
    store: FeatureStore,
    workers: int = 0,
    tell: Tell = _log.info,
) -> Scores:
    """Run the probes for the teacher (from the cache) and the student (EMA and raw weights).

    asked: whether the probes were asked for by name, so that none is left out for what it lacks.
    Returns {encoder: {probe: {score: value}}} with encoders teacher, student, student_raw and
    chance, and writes it to the run's probe.json, and the details to probe-details.json.
    """
    splits = {split: _open_eval(data, split) for split in ("train", "test")}
    test = splits["test"]
    warn_of_shared_images(*(_of_valid(cache, "digest") for cache in splits.values()))
    context: dict[str, Any] = {"teacher": teacher_features(test)}
    captions, why = None, ""
    if "captions" in looked_at(spec):
        captions, why = captions_of(test, data.captions)
    spec = runnable(spec, {"train", "teacher", "anchors"}, {"captions": why}, asked=asked)
    if "anchors" in needs_of(spec):
        context["anchors"] = test.anchors(data.zeroshot)
    if captions is not None:
        context["captions"] = captions
    if "train" not in needs_of(spec):
        del splits["train"]
    elif (val := _val(data)) is not None:
        splits["val"] = val
    if data.named:
        for cache in splits.values():
            match_shards(cache, data.shards())
    tell(described(str(data.path), {name: _of_valid(c, "label") for name, c in splits.items()}))
    results: Results = {"teacher": probed(splits, teacher_features, spec, context)}
    for name in WEIGHTS:
        load_weights(student, run.load_weights(name), where=run.path / WEIGHTS[name])
        features = CachedSplits(student.to(device), data.shards, input_px, device, store, workers)
        results[name] = probed(splits, features, spec, context)
    scores = as_scores(results, _of_valid(test, "label"))
    run.write_scores(scores)
    run.write_details(as_details(results))
    return scores


class CachedSplits:
    """A student's features of splits of a cache: from the store, else from the shards.

    shards: finds them, if they are needed.
    """

    def __init__(
        self,
        student: Student,
        shards: Callable[[], Sequence[Shard]],
        input_px: int,
        device: torch.device,
        store: FeatureStore,
        workers: int = 0,
    ) -> None:
        self._student, self._shards, self._input_px = student, shards, input_px
        self._device, self._store, self._workers = device, store, workers
        self._identity = student_identity(student)

    def __call__(self, cache: TargetCache) -> Features:
        """Return the features of the split that is open, of its valid rows in order."""
        key = {
            "encoder": self._identity,
            "input_px": self._input_px,
            "schedule": cache.manifest["schedules"][EVAL],
            "decode": cache.manifest["decode"],
            "split": cache.split,
            "shards": [shard.sha256 for shard in cache.shards],
            "units": cache.digest,
            "valid": layout.array_digest(cache.column("valid")),
            "device": self._device.type,
        }
        return self._store.get(key, lambda: self._compute(cache))

    def _compute(self, cache: TargetCache) -> Features:
        batches = eval_batches(
            cache, self._shards(), input_px=self._input_px, workers=self._workers
        )
        return student_features(self._student, batches, self._device)


def probed(
    splits: Mapping[str, Split],
    features: Callable[[Split], Features],
    spec: ProbeOptions,
    context: Mapping[str, Any],
) -> dict[str, Result]:
    """Run the probes over one encoder's features of each split; context: the rest of a Subject."""
    parts: dict[str, Any] = {split: features(rows) for split, rows in splits.items()}
    subject = Subject(**parts, **context)
    return {name: PROBES[name].run(subject, getattr(spec, name)) for name in spec.run}


def needs_of(spec: ProbeOptions) -> frozenset[Need]:
    """Return all that the probes to run cannot do without."""
    return frozenset[Need]().union(*(PROBES[name].needs for name in spec.run))


def looked_at(spec: ProbeOptions) -> frozenset[Need]:
    """Return all that the probes to run need, or look at if it is there."""
    return needs_of(spec).union(*(PROBES[name].takes for name in spec.run))


def runnable(
    spec: ProbeOptions, there: Collection[str], why: Mapping[str, str], *, asked: bool
) -> ProbeOptions:
    """Leave out the probes that need what is not there, unless they were asked for by name.

    there: of the needs, those that are always met. why: for others, why it is not there, "" if it
    is. Raises ProbeError for a probe that was asked for, or if none is left.
    """
    kept, reasons = [], []
    for name in spec.run:
        lacking = [n for n in sorted(PROBES[name].needs) if n not in there and why.get(n, WHAT[n])]
        if lacking:
            reasons.append(f"the {name} probe needs {why.get(lacking[0], WHAT[lacking[0]])}")
        else:
            kept.append(name)
    if reasons and (asked or not kept):
        raise ProbeError("\n".join(reasons))
    for reason in reasons:
        _log.warning("left out: %s", reason)
    return replace(spec, run=tuple(kept))


def as_scores(results: Results, test_labels_N: np.ndarray) -> Scores:
    """Return {encoder: {probe: {score: value}}} with `chance` as the last encoder.

    test_labels_N: of the rows that were scored. Chance is what always naming their commonest class
    would score.
    """
    scores: Scores = {
        encoder: {name: found.scores for name, found in probes.items()}
        for encoder, probes in results.items()
    }
    known_N = test_labels_N[test_labels_N >= 0]
    if len(known_N):
        share = float(np.bincount(known_N).max() / len(known_N))
        ran = dict.fromkeys(name for probes in results.values() for name in probes)
        by_chance = [name for name in ran if PROBES[name].by_chance]
        scores["chance"] = {name: {PROBES[name].headline: share} for name in by_chance}
    return scores


def as_details(results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {encoder: {probe: details}}."""
    return {
        encoder: {name: found.details for name, found in probes.items()}
        for encoder, probes in results.items()
    }


def warn_of_shared_images(train_N: np.ndarray, test_N: np.ndarray) -> None:
    """Warn of test images that are also, byte for byte, train images; by their digests."""
    if shared := int(np.isin(test_N, train_N).sum()):
        _log.warning(
            "%d of %d test images are train images too: the scores flatter", shared, len(test_N)
        )


def described(name: str, labels: Mapping[str, np.ndarray]) -> str:
    """Say in one line what is scored. labels: of the rows of each split, -1 where unknown."""
    rows = [f"{len(labels_N)} {split}" for split, labels_N in labels.items()]
    classes = len(np.unique(labels["test"][labels["test"] >= 0]))
    return f"{name}: {', '.join(rows)} samples; {classes} classes in test"


def _open_eval(data: CachedData, split: str) -> TargetCache:
    cache = TargetCache.open(data.path, split, EVAL, generation=data.generation)
    if len(cache) == 0:
        raise CacheError(f"{data.path}: split {split} is empty; the probes need train and test")
    return cache


def _val(data: CachedData) -> TargetCache | None:
    """Return the val split, if the cache has labelled rows of it and the shards are at hand."""
    first = TargetCache.open(data.path, "test", EVAL, generation=data.generation)
    if "val" not in first.manifest["splits"] or "val" not in data.splits:
        return None
    cache = TargetCache.open(data.path, "val", EVAL, generation=data.generation)
    return cache if (_of_valid(cache, "label") >= 0).any() else None


def _of_valid(cache: TargetCache, column: str) -> np.ndarray:
    return np.asarray(cache.column(column)[np.flatnonzero(cache.column("valid"))])


def captions_of(test: TargetCache, name: str | None) -> tuple[Captions | None, str]:
    """Return the captions of the test rows, or why there are none; raises CacheError if named."""
    if name is not None:
        return test.captions(name), ""
    found = [
        known
        for known in layout.caption_names(test.path)
        if attributes_of(test.path / "captions" / known).get("split") == test.split
    ]
    if len(found) == 1:
        return test.captions(found[0]), ""
    several = f"one set of captions of the test samples, not {', '.join(found)}: --captions NAME"
    return None, several if found else WHAT["captions"]
