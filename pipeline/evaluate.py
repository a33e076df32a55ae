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
from pipeline.own_texts import OwnTexts
from pipeline.probes import PROBES, ProbeOptions
from pipeline.probes.contract import WHAT, Need, Result, Subject
from pipeline.rows import match_shards
from pipeline.rundir import WEIGHTS, RunDir
from pipeline.schedule import EVAL
from pipeline.shards import Shard
from pipeline.students import AnyStudent, load_weights

_log = logging.getLogger(__name__)
Split = TypeVar("Split")
Results = dict[str, dict[str, Result]]  # by encoder, then probe
Scores = dict[str, dict[str, dict[str, float]]]
Tell = Callable[[str], None]
_SEES_ALONE = "a text tower, and the cache's teacher sees images and reads no text"


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
    zeroshot: str | None
    captions: str | None = None


def evaluate_run(
    run: RunDir,
    student: AnyStudent,
    data: CachedData,
    spec: ProbeOptions,
    *,
    asked: bool,
    input_px: int,
    device: torch.device,
    store: FeatureStore,
    texts: OwnTexts | None = None,
    workers: int = 0,
    tell: Tell = _log.info,
) -> Scores:
    """Run the probes for the teacher (from the cache) and the student (EMA and raw weights).

    asked: whether the probes were asked for by name, so that none is left out for what it lacks.
    texts: how a student reads texts by itself; its prompts and captions are then in its own space,
    and the teacher's row has the probes that the cache serves. Returns {encoder: {probe: {score:
    value}}} with encoders teacher, student, student_raw and chance, and writes it to the run's
    probe.json, and the details to probe-details.json.
    """
    splits = {split: _open_eval(data, split) for split in ("train", "test")}
    test = splits["test"]
    warn_of_shared_images(*(_of_valid(cache, "digest") for cache in splits.values()))
    cached, lacking = _in_cache(test, data, looked_at(spec))
    own, why = (cached, lacking) if texts is None else _own(test, data, texts, looked_at(spec))
    spec = runnable(spec, {"train", *own}, why, asked=asked)
    if "train" not in needs_of(spec):
        del splits["train"]
    elif (val := _val(data)) is not None:
        splits["val"] = val
    if data.named:
        for cache in splits.values():
            match_shards(cache, data.shards())
    tell(described(str(data.path), {name: _of_valid(c, "label") for name, c in splits.items()}))
    results: Results = {}
    if possible := tuple(n for n in spec.run if _lacking(n, {"train", *cached}) is None):
        for_teacher = replace(spec, run=possible)
        results["teacher"] = probed(splits, teacher_features, for_teacher, cached)
    for name in WEIGHTS:
        load_weights(student, run.load_weights(name), where=run.path / WEIGHTS[name])
        student.to(device).eval()
        features = CachedSplits(student, data.shards, input_px, device, store, workers)
        results[name] = probed(splits, features, spec, _in_space_of(student, own, texts))
    scores = as_scores(results, _of_valid(test, "label"))
    run.write_scores(scores)
    run.write_details(as_details(results))
    return scores


def _in_cache(
    test: TargetCache, data: CachedData, wanted: Collection[Need]
) -> tuple[dict[Need, Any], dict[str, str]]:
    """Return what a cache has for the probes beside features, and why it lacks the rest."""
    found: dict[Need, Any] = {"teacher": teacher_features(test)}
    if not layout.reads_text(test.manifest):
        return found, dict.fromkeys(("anchors", "captions"), _SEES_ALONE)
    why: dict[str, str] = {}
    if "captions" in wanted:
        captions, why["captions"] = captions_of(test, data.captions)
        if captions is not None:
            found["captions"] = captions
    if "anchors" in wanted and data.zeroshot is not None:
        found["anchors"] = test.anchors(data.zeroshot)
    return found, why


def _own(
    test: TargetCache, data: CachedData, texts: OwnTexts, wanted: Collection[Need]
) -> tuple[dict[Need, Any], dict[str, str]]:
    """Return the texts that a student is to read, and why there are no others."""
    found: dict[Need, Any] = {}
    why = {"teacher": "an embedding in the teacher's space: the student's is its own"}
    if texts.prompts is None:
        why["anchors"] = f"{WHAT['anchors']}: the recipe names none"
    else:
        found["anchors"] = texts.prompts
    if "captions" in wanted:
        captions, why["captions"] = captions_of(test, data.captions)
        if captions is not None:
            found["captions"] = captions
    return found, why


def _in_space_of(
    student: Any, given: Mapping[Need, Any], texts: OwnTexts | None
) -> dict[Need, Any]:
    """Return what goes with a student's features, in the space of its embedding."""
    if texts is None:
        return dict(given)
    found: dict[Need, Any] = {}
    if "anchors" in given:
        found["anchors"] = texts.anchors(student)
    if "captions" in given:
        found["captions"] = texts.captions(student, given["captions"])
    return found


def _lacking(name: str, there: Collection[Need]) -> Need | None:
    """Return the first thing that a probe cannot do without and is not there."""
    probe = PROBES[name]
    if lacking := sorted(probe.needs - set(there)):
        return lacking[0]
    if probe.one_of and not probe.one_of & set(there):
        return max(probe.one_of)  # captions, of anchors and captions
    return None


class CachedSplits:
    """A student's features of splits of a cache: from the store, else from the shards.

    shards: finds them, if they are needed.
    """

    def __init__(
        self,
        student: AnyStudent,
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
    context: Mapping[Any, Any],
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
    others = (PROBES[name].takes | PROBES[name].one_of for name in spec.run)
    return needs_of(spec).union(*others)


def runnable(
    spec: ProbeOptions, there: Collection[Need], why: Mapping[str, str], *, asked: bool
) -> ProbeOptions:
    """Leave out the probes that need what is not there, unless they were asked for by name.

    there: what there is. why: for others, why it is not there. Raises ProbeError for a probe that
    was asked for, or if none is left.
    """
    kept, reasons = [], []
    for name in spec.run:
        if (lacking := _lacking(name, there)) is None:
            kept.append(name)
        else:
            reasons.append(f"the {name} probe needs {why.get(lacking) or WHAT[lacking]}")
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
