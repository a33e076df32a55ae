"""Scores a finished run: frozen student and cached teacher under the same probes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.batches import eval_batches
from pipeline.cache.reader import TargetCache
from pipeline.contracts import Features
from pipeline.errors import CacheError
from pipeline.features import student_features, teacher_features
from pipeline.probes import PROBES, ProbeOptions
from pipeline.probes.contract import Result, Subject
from pipeline.rundir import WEIGHTS, RunDir
from pipeline.schedule import EVAL
from pipeline.shards import Shard
from pipeline.students import Student, load_weights

_log = logging.getLogger(__name__)
Scores = dict[str, dict[str, dict[str, float]]]


def evaluate_run(
    run: RunDir,
    student: Student,
    cache_path: Path,
    shards: Sequence[Shard],
    spec: ProbeOptions,
    *,
    generation: int,
    zeroshot_set: str,
    input_px: int,
    device: torch.device,
    workers: int = 0,
) -> Scores:
    """Run the probes for the teacher (from the cache) and the student (EMA and raw weights).

    generation: the manifest that the run was trained by. Returns {encoder: {probe: {score:
    value}}} with encoders teacher, student, student_raw and chance, and writes it to the run's
    probe.json.
    """
    splits = {split: _open_eval(cache_path, split, generation) for split in ("train", "test")}
    _warn_of_shared_images(splits["train"], splits["test"])
    needed = frozenset().union(*(PROBES[name].needs for name in spec.run))
    if "train" not in needed:
        del splits["train"]
    context: dict[str, Any] = {"teacher": teacher_features(splits["test"])}
    if "anchors" in needed:
        context["anchors"] = splits["test"].anchors(zeroshot_set)
    results = {"teacher": _probe(splits, teacher_features, context, spec)}

    def features(cache: TargetCache) -> Features:
        batches = eval_batches(cache, shards, input_px=input_px, workers=workers)
        return student_features(student, batches, device)

    for name in WEIGHTS:
        load_weights(student, run.load_weights(name), where=run.path / WEIGHTS[name])
        student.to(device)
        results[name] = _probe(splits, features, context, spec)
    scores = {
        encoder: {name: found.scores for name, found in probes.items()}
        for encoder, probes in results.items()
    }
    scores["chance"] = _chance(splits["test"], spec)
    run.write_scores(scores)
    return scores


def _open_eval(path: Path, split: str, generation: int) -> TargetCache:
    cache = TargetCache.open(path, split, EVAL, generation=generation)
    if len(cache) == 0:
        raise CacheError(f"{path}: split {split} is empty; the probes need train and test")
    return cache


def _probe(
    splits: Mapping[str, TargetCache],
    features: Callable[[TargetCache], Features],
    context: Mapping[str, Any],
    spec: ProbeOptions,
) -> dict[str, Result]:
    """Run the probes over one encoder's features of each split."""
    parts: dict[str, Any] = {split: features(cache) for split, cache in splits.items()}
    subject = Subject(**parts, **context)
    return {name: PROBES[name].run(subject, getattr(spec, name)) for name in spec.run}


def _warn_of_shared_images(train: TargetCache, test: TargetCache) -> None:
    """Warn of test images that are also, byte for byte, train images."""
    train_N, test_N = (c.column("digest")[np.flatnonzero(c.column("valid"))] for c in (train, test))
    if shared := int(np.isin(test_N, train_N).sum()):
        _log.warning(
            "%d of %d test images are train images too: the scores flatter", shared, len(test_N)
        )


def _chance(test: TargetCache, spec: ProbeOptions) -> dict[str, dict[str, float]]:
    """Return what always naming the commonest test class would score."""
    labels_N = test.column("label")[np.flatnonzero(test.column("valid"))]
    known = labels_N[labels_N >= 0]
    share = float(np.bincount(known).max() / len(known))
    return {name: {PROBES[name].headline: share} for name in spec.run if PROBES[name].by_chance}
