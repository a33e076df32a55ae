"""Finds what a run's student sees of its test images: features, predictions, prompt sets.

Shape letters: N test rows, C classes, D teacher dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline import runtime
from pipeline.cache import layout
from pipeline.cache.reader import Anchors, TargetCache
from pipeline.contracts import Features
from pipeline.errors import BeamclipError, ProbeError
from pipeline.evaluate import CachedSplits
from pipeline.feature_store import FeatureStore
from pipeline.features import teacher_features
from pipeline.labels import foreign, own_set
from pipeline.recipe import recipe_from
from pipeline.report.collect import RunFacts
from pipeline.rundir import RunDir
from pipeline.schedule import EVAL
from pipeline.shards import Shard, shards_at
from pipeline.stage_two import rebuild_student

SPLIT = "test"


@dataclass(frozen=True)
class Ground:
    """What the runs of a group share: the test split of their cache, its images, prompt sets.

    teacher: of the valid rows, in their order, as every student's features are.
    """

    cache: TargetCache
    shards: tuple[Shard, ...]
    teacher: Features
    zeroshot: Anchors
    labelled: tuple[Anchors, ...]  # sets whose class i is what label i means, zeroshot among them

    @property
    def labels_N(self) -> np.ndarray:
        """Class numbers of the test rows, -1 where unknown."""
        return self.teacher.labels_N

    @cached_property
    def every_set(self) -> tuple[Anchors, ...]:
        """Every prompt set of the cache that this teacher has embedded, zeroshot first."""
        own = layout.teacher_digest(self.cache.manifest["teacher"])
        names = sorted(
            layout.anchor_names(self.cache.path), key=lambda name: name != self.zeroshot.name
        )
        sets = [self.cache.anchors(name) for name in names]
        return tuple(item for item in sets if item.teacher_digest == own)


@dataclass(frozen=True)
class Seen:
    """One run's student over the test rows of its group's ground."""

    run: RunFacts
    ground: Ground
    features: Features

    @cached_property
    def cosine_NC(self) -> np.ndarray:
        """Cosines to the anchors of the zero-shot set, float32."""
        return np.asarray(self.features.embedding_ND @ self.ground.zeroshot.embeddings_AD.T)

    @cached_property
    def said_N(self) -> np.ndarray:
        """The class that the student says by the zero-shot set, int64."""
        return said(self.features, self.ground.zeroshot)


def said(features: Features, anchors: Anchors) -> np.ndarray:
    """Return the class number of the nearest anchor for each row, int64 [N]."""
    return np.asarray((features.embedding_ND @ anchors.embeddings_AD.T).argmax(axis=1))


def ground_of(run: RunFacts) -> Ground:
    """Open what a run was trained from; raises BeamclipError or OSError if it is not there.

    ProbeError if its cache has no anchors.
    """
    origin = run.origin
    cache = TargetCache.open(run.cache_path, SPLIT, EVAL, generation=origin["cache"]["generation"])
    if run.zeroshot is None:
        raise ProbeError("Its teacher reads no text: there are no anchors to look at images by.")
    zeroshot = cache.anchors(run.zeroshot)
    shards = shards_at([(split, place) for split, place in origin["shards"] if split == SPLIT])
    return Ground(
        cache, tuple(shards), teacher_features(cache), zeroshot, _labelled(cache, zeroshot)
    )


def features_of(run: RunFacts, ground: Ground, *, device: str, workers: int = 0) -> Features:
    """Return what a finished run's student (its EMA weights) makes of the test rows.

    As its probes kept it, else made anew. Raises BeamclipError.
    """
    where = runtime.pick_device(device)
    folder = RunDir(run.path)
    student = rebuild_student(folder, recipe_from(run.recipe, where=f"{run.path}/recipe.yaml"))
    splits = CachedSplits(
        student.to(where),
        lambda: ground.shards,
        int(run.origin["input_px"]),
        where,
        FeatureStore(folder.features_path),
        workers,
    )
    return splits(ground.cache)


def look(
    runs: Sequence[RunFacts], *, device: str, workers: int
) -> tuple[list[Seen], dict[str, str]]:
    """Return what the students of one group see, and why not, by name of run, where one cannot."""
    try:
        ground = ground_of(runs[0])
    except (BeamclipError, OSError) as error:
        return [], {run.name: str(error) for run in runs}
    found, reasons = list[Seen](), dict[str, str]()
    for run in runs:
        try:
            features = features_of(run, ground, device=device, workers=workers)
        except (BeamclipError, OSError) as error:
            reasons[run.name] = str(error)
        else:
            found.append(Seen(run, ground, features))
    return found, reasons


def train_labels(path: Path, generation: int) -> np.ndarray:
    """Return the known labels of a cache's valid train rows, int64 [N]; raises CacheError."""
    cache = TargetCache.open(path, "train", EVAL, generation=generation)
    labels_N = np.asarray(cache.column("label"))[np.asarray(cache.column("valid"))]
    return np.asarray(labels_N[labels_N >= 0])


def shared_images(path: Path, generation: int) -> int:
    """Return how many test images are, byte for byte, train images too; raises CacheError."""
    digests = []
    for split in ("train", SPLIT):
        cache = TargetCache.open(path, split, EVAL, generation=generation)
        digests.append(np.asarray(cache.column("digest"))[np.asarray(cache.column("valid"))])
    return int(np.isin(digests[1], digests[0]).sum())


def _labelled(cache: TargetCache, zeroshot: Anchors) -> tuple[Anchors, ...]:
    own = own_set(cache.path, cache.manifest) or zeroshot
    sets = [cache.anchors(name) for name in layout.anchor_names(cache.path)]
    others = [
        item
        for item in sets
        if item.name != zeroshot.name
        and item.labelled
        and item.teacher_digest == zeroshot.teacher_digest
        and foreign(item, own) is None
    ]
    return (zeroshot, *others)
