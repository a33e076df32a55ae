"""Tells from cached targets and anchors alone which labels are ambiguous, and what context changed.

Shape letters: N rows, B a block of rows, A anchors, C classes, b a block of classes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ambiguity import Attraction, ClassAnchors, attraction
from pipeline.anchors import named_anchors
from pipeline.cache.reader import Anchors, TargetCache
from pipeline.errors import DataError
from pipeline.labels import foreign, own_set
from pipeline.schedule import EVAL
from pipeline.templates import fields_of

_BLOCK = 4096  # images
_AMBIGUOUS = 0.5
_CONTEXT = {"coarse", "description"}


@dataclass(frozen=True)
class ClassReport:
    """One class as the images see it; what nothing can be said of is None.

    images: those nearest to one of its anchors. labelled: those that carry its label. expected: its
    share of the labels, of all images, or an even share. ambiguity: None if others have labels and
    it has none. recall, precision: of the teacher's zero-shot, over the labelled images. rival: the
    class that takes most of its images, else the one that is closest. before: the same of the set
    compared with.
    """

    name: str
    images: int
    labelled: int
    expected: float
    certainty: float
    ambiguity: float | None
    recall: float | None
    precision: float | None
    rival: str
    rival_cosine: float
    before: "ClassReport | None" = None


@dataclass(frozen=True)
class NearDuplicate:
    """Two classes that the teacher hardly tells apart.

    share: of their images, those for which it is torn between them; None if neither has an image.
    cosine: the largest of their anchors.
    """

    one: str
    other: str
    share: float | None
    cosine: float


@dataclass(frozen=True)
class AnchorsReport:
    """What images say of a prompt set; classes are worst first, those without a word on them last.

    labelled: how many of the images have a label. unlabelled_because: why labels were not used, if
    the split has any. moved: the share of images whose nearest class is another than in `against`.
    top1: the teacher's zero-shot, with labels.
    """

    name: str
    split: str
    images: int
    labelled: int
    classes: tuple[ClassReport, ...]
    near_duplicates: tuple[NearDuplicate, ...]
    top1: float | None
    unlabelled_because: str | None = None
    against: str | None = None
    top1_before: float | None = None
    moved: float | None = None
    has_context: bool = False

    def ambiguous(self) -> list[ClassReport]:
        """Return the classes to be done something about, worst first."""
        return [item for item in self.classes if (item.ambiguity or 0) > _AMBIGUOUS]

    def without_images(self) -> list[ClassReport]:
        """Return the classes of which no image is labelled, where others are."""
        return [item for item in self.classes if item.ambiguity is None]

    def as_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        found = asdict(self)
        found["ambiguous"] = [item.name for item in self.ambiguous()]
        return found


def report_anchors(
    cache: Path, name: str, *, against: str | None = None, split: str = "train"
) -> AnchorsReport:
    """Measure a prompt set of a sealed cache by the eval targets of a split.

    against: another set of the same classes, the state before. No image is read and no teacher
    loaded. Labels count if the classes are those of the cache's own zero-shot set. Raises
    CacheError, CacheMismatchError, or DataError if the sets do not compare.
    """
    opened = TargetCache.open(cache, split, EVAL)
    anchors = named_anchors(cache, opened.manifest, name)
    classes = _classes_of(anchors)
    labels_N = np.array(opened.column("label"), np.int64)
    why = foreign(anchors, own_set(cache, opened.manifest)) if (labels_N >= 0).any() else None
    if why is not None:
        labels_N[:] = -1
    found = _measured(opened, classes, labels_N)
    report = AnchorsReport(
        name=name,
        split=split,
        images=len(found.nearest_N),
        labelled=int(found.labelled_C.sum()),
        classes=_worst_first(_reports(classes, found)),
        near_duplicates=_near_duplicates(classes, found),
        top1=_top1(found),
        unlabelled_because=why,
        has_context=any(_CONTEXT.intersection(fields_of(t)) for t in anchors.templates),
    )
    if against is None:
        return report
    other = _classes_of(named_anchors(cache, opened.manifest, against))
    if other.names != classes.names:
        raise DataError(
            f"prompt sets {name} and {against} do not have the same classes in one order "
            f"({len(classes.names)} and {len(other.names)}): they do not compare"
        )
    earlier = _measured(opened, other, labels_N)
    pairs = zip(_reports(classes, found), _reports(other, earlier), strict=True)
    return replace(
        report,
        classes=_worst_first([replace(item, before=before) for item, before in pairs]),
        against=against,
        top1_before=_top1(earlier),
        moved=float((found.nearest_N != earlier.nearest_N).mean()),
    )


def _classes_of(anchors: Anchors) -> ClassAnchors:
    classes = ClassAnchors.of(anchors.embeddings_AD, anchors.class_names)
    if len(classes.names) < 2:
        raise DataError(f"prompt set {anchors.name} has one class: nothing it could be taken for")
    return classes


def _measured(cache: TargetCache, classes: ClassAnchors, labels_N: np.ndarray) -> Attraction:
    found = attraction(_blocks(cache, labels_N), classes, cache.logit_scale)
    if not len(found.nearest_N):
        raise DataError(f"{cache.path}: split {cache.split} has no valid image to measure by")
    return found


def _blocks(cache: TargetCache, labels_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (targets [B,D], labels [B]) of the valid rows."""
    rows_N = np.flatnonzero(cache.column("valid"))
    for begin in range(0, len(rows_N), _BLOCK):
        rows_B = rows_N[begin : begin + _BLOCK]
        yield cache.targets(rows_B, 0), labels_N[rows_B]


def _reports(classes: ClassAnchors, found: Attraction) -> list[ClassReport]:
    rivals_C, cosines_C = _rivals(classes, found)
    expected_C, ambiguity_C = found.expected_C(), found.ambiguity_C()
    return [
        ClassReport(
            name=name,
            images=int(found.attracted_C[i]),
            labelled=int(found.labelled_C[i]),
            expected=float(expected_C[i]),
            certainty=float(found.certainty_C[i]),
            ambiguity=None if math.isnan(ambiguity_C[i]) else float(ambiguity_C[i]),
            recall=_share(found.right_C[i], found.labelled_C[i]),
            precision=_share(found.right_C[i], found.known_C[i]),
            rival=classes.names[rivals_C[i]],
            rival_cosine=float(cosines_C[i]),
        )
        for i, name in enumerate(classes.names)
    ]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _rivals(classes: ClassAnchors, found: Attraction) -> tuple[np.ndarray, np.ndarray]:
    """Return for each class what takes most of its images, else its closest; and cosines."""
    most: dict[int, tuple[int, int]] = {}
    for (label, other), images in sorted(found.mistaken.items()):
        if images > most.get(label, (0, 0))[0]:
            most[label] = images, other
    rivals, cosines = [], []
    for begin, cosine_bC in classes.between():
        places_b = np.arange(len(cosine_bC))
        cosine_bC[places_b, begin + places_b] = -np.inf
        rivals_b = cosine_bC.argmax(axis=1)
        for place in places_b:
            rivals_b[place] = most.get(begin + int(place), (0, rivals_b[place]))[1]
        rivals.append(rivals_b)
        cosines.append(cosine_bC[places_b, rivals_b])
    return np.concatenate(rivals), np.concatenate(cosines)


def _near_duplicates(classes: ClassAnchors, found: Attraction) -> tuple[NearDuplicate, ...]:
    """Return pairs with (nearly) one anchor, then those most images are torn between."""
    same, torn = classes.same(), found.torn()
    pairs = []
    for one, other in dict.fromkeys([*same, *torn]):
        images = int(found.attracted_C[one] + found.attracted_C[other])
        share = _share(found.undecided[one, other], images)
        cosine = classes.cosine(one, other)
        pairs.append(NearDuplicate(classes.names[one], classes.names[other], share, cosine))
    rest = sorted(pairs[len(same) :], key=lambda pair: -(pair.share or 0))
    return (*pairs[: len(same)], *rest)


def _worst_first(classes: Sequence[ClassReport]) -> tuple[ClassReport, ...]:
    return tuple(sorted(classes, key=lambda i: 1 if i.ambiguity is None else -i.ambiguity))


def _top1(found: Attraction) -> float | None:
    return _share(int(found.right_C.sum()), int(found.labelled_C.sum()))
