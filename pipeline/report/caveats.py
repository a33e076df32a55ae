"""Says what a reader must know before trusting a run's scores."""

import shlex
from collections.abc import Sequence

import numpy as np

from pipeline.errors import BeamclipError
from pipeline.report.collect import RunFacts
from pipeline.report.seen import shared_images, train_labels

_UNEVEN = 3.0  # the commonest class to the rarest


def caveats(run: RunFacts) -> list[str]:
    """Return a sentence for each thing that makes one run's scores mean less, or be absent."""
    found, where = list(run.problems), shlex.quote(str(run.path))
    if not run.is_finished:
        found.append(
            f"{run.name} is not finished: go on with `beamclip train-student --resume --run "
            f"{where}`."
        )
    elif run.scores is None:
        found.append(f"{run.name} has no scores yet: run `beamclip probe --run {where}`.")
    return [*found, *_unconverged(run), *_no_better(run), *_online(run)]


def data_caveats(runs: Sequence[RunFacts]) -> list[str]:
    """Return what the cache of a group says against its scores: uneven classes, shared images."""
    run = runs[0]
    generation = run.origin["cache"]["generation"]
    try:
        labels_N = train_labels(run.cache_path, generation)
        shared = shared_images(run.cache_path, generation)
    except (BeamclipError, OSError) as error:
        return [
            f"The cache of these runs cannot be read, so images, classes and maps are left out, "
            f"and train and test were not compared: {error}"
        ]
    found = []
    if shared:
        found.append(
            f"{shared} test images are train images too, byte for byte: the scores flatter."
        )
    counts = np.bincount(labels_N)
    counts = counts[counts > 0]
    if len(counts) and counts.max() > _UNEVEN * counts.min():
        found.append(
            f"Train classes are uneven: {counts.max():,} images of the commonest, {counts.min():,} "
            "of the rarest. Read the mean over classes beside the accuracy."
        )
    return found


def _unconverged(run: RunFacts) -> list[str]:
    encoders = [
        encoder.replace("_", ", ")
        for encoder in (run.scores or {})
        if run.score(encoder, "linear", "converged") == 0
    ]
    if not encoders:
        return []
    steps = max(
        run.score(name, "linear", "iterations") or 0
        for name in ("teacher", "student", "student_raw")
    )
    return [
        f"The linear probe of {run.name} did not converge in {steps:.0f} steps "
        f"({'; '.join(encoders)}): its accuracy is of an unfinished fit."
    ]


def _no_better(run: RunFacts) -> list[str]:
    student, chance = (run.score(name, "zeroshot", "top1") for name in ("student", "chance"))
    if student is None or chance is None or student > chance:
        return []
    return [f"{run.name} is no better than chance at zero-shot: look at its curves."]


def _online(run: RunFacts) -> list[str]:
    if not run.origin["cache"].get("live_targets"):
        return []
    return [f"{run.name} was trained from a live teacher, not from the cache."]
