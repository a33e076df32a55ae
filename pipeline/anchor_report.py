"""Tells from cached targets and anchors alone which labels are ambiguous, and what context changed.

Shape letters: N rows, B a block of rows, A anchors, D teacher dimension.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ambiguity import Attraction, attraction
from pipeline.anchors import named_anchors
from pipeline.cache.reader import Anchors, TargetCache
from pipeline.errors import DataError
from pipeline.schedule import EVAL
from pipeline.templates import fields_of

_BLOCK = 4096
_AMBIGUOUS = 0.5
_CONTEXT = {"coarse", "description"}


@dataclass(frozen=True)
class ClassReport:
    """One class (or anchor) as the images see it.

    images: those nearest to its anchor. expected: those that carry its label, or an even share.
    recall, precision: of the teacher's zero-shot; None without labels. rival: the anchor that takes
    most of its images, else the one that is closest. before: the same of the set compared with.
    """

    name: str
    images: int
    expected: float
    certainty: float
    ambiguity: float
    recall: float | None
    precision: float | None
    rival: str
    rival_cosine: float
    before: "ClassReport | None" = None


@dataclass(frozen=True)
class AnchorsReport:
    """What images say of a prompt set; classes are worst first.

    near_duplicates: (one, other, the share of their images for which the teacher cannot tell).
    moved: the share of images whose nearest class is another than in `against`. top1: the teacher's
    zero-shot, with labels.
    """

    name: str
    split: str
    images: int
    labels: bool
    classes: tuple[ClassReport, ...]
    near_duplicates: tuple[tuple[str, str, float], ...]
    top1: float | None
    against: str | None = None
    top1_before: float | None = None
    moved: float | None = None
    has_context: bool = False

    def ambiguous(self) -> list[ClassReport]:
        """Return the classes to be done something about, worst first."""
        return [item for item in self.classes if item.ambiguity > _AMBIGUOUS]

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
    loaded. Raises CacheError, CacheMismatchError, or DataError if the sets do not compare.
    """
    opened = TargetCache.open(cache, split, EVAL)
    anchors = named_anchors(cache, opened.manifest, name)
    found = _measured(opened, anchors)
    report = AnchorsReport(
        name=name,
        split=split,
        images=len(found.nearest_N),
        labels=bool(found.labelled_A.any()),
        classes=_worst_first(_classes(anchors, found)),
        near_duplicates=tuple(
            (anchors.class_names[one], anchors.class_names[other], share)
            for one, other, share in found.near_duplicates()
        ),
        top1=_top1(found),
        has_context=any(_CONTEXT.intersection(fields_of(t)) for t in anchors.templates),
    )
    return report if against is None else _compared(report, opened, anchors, found, against)


def _measured(cache: TargetCache, anchors: Anchors) -> Attraction:
    if len(anchors.class_names) < 2:
        raise DataError(f"prompt set {anchors.name} has one anchor: nothing it could be taken for")
    found = attraction(_blocks(cache, anchors), anchors.embeddings_AD, cache.logit_scale)
    if not len(found.nearest_N):
        raise DataError(f"{cache.path}: split {cache.split} has no valid image to measure by")
    return found


def _compared(
    report: AnchorsReport, cache: TargetCache, anchors: Anchors, found: Attraction, against: str
) -> AnchorsReport:
    """Put another set of the same classes beside a report."""
    other = named_anchors(cache.path, cache.manifest, against)
    if other.class_names != anchors.class_names:
        raise DataError(
            f"prompt sets {report.name} and {against} do not have the same anchors in one order "
            f"({len(anchors.class_names)} and {len(other.class_names)}): they do not compare"
        )
    earlier = _measured(cache, other)
    pairs = zip(_classes(anchors, found), _classes(other, earlier), strict=True)
    return replace(
        report,
        classes=_worst_first([replace(item, before=before) for item, before in pairs]),
        against=against,
        top1_before=_top1(earlier),
        moved=float((found.nearest_N != earlier.nearest_N).mean()),
    )


def _blocks(cache: TargetCache, anchors: Anchors) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (targets [B,D], labels [B]) of the valid rows; labels if anchors stand for them."""
    rows_N = np.flatnonzero(cache.column("valid"))
    labels_N = cache.column("label")
    for begin in range(0, len(rows_N), _BLOCK):
        rows_B = rows_N[begin : begin + _BLOCK]
        labels_B = labels_N[rows_B] if anchors.labelled else np.full(len(rows_B), -1)
        yield cache.targets(rows_B, 0), np.asarray(labels_B, np.int64)


def _classes(anchors: Anchors, found: Attraction) -> list[ClassReport]:
    rivals_A, cosines_A = _rivals(anchors.embeddings_AD, found)
    labels = bool(found.labelled_A.any())
    recall_A = found.right_A / np.maximum(found.labelled_A, 1)
    precision_A = found.right_A / np.maximum(found.attracted_A, 1)
    expected_A, ambiguity_A = found.expected_A(), found.ambiguity_A()
    return [
        ClassReport(
            name=name,
            images=int(found.attracted_A[i]),
            expected=float(expected_A[i]),
            certainty=float(found.certainty_A[i]),
            ambiguity=float(ambiguity_A[i]),
            recall=float(recall_A[i]) if labels else None,
            precision=float(precision_A[i]) if labels else None,
            rival=anchors.class_names[rivals_A[i]],
            rival_cosine=float(cosines_A[i]),
        )
        for i, name in enumerate(anchors.class_names)
    ]


def _rivals(embeddings_AD: np.ndarray, found: Attraction) -> tuple[np.ndarray, np.ndarray]:
    """Return for each anchor what takes most of its images, else its closest; and cosines."""
    rivals_A = np.concatenate(
        [
            _closest(embeddings_AD, begin, begin + _BLOCK)
            for begin in range(0, len(embeddings_AD), _BLOCK)
        ]
    )
    most: dict[int, int] = {}
    for (label, anchor), images in sorted(found.mistaken.items()):
        if images > most.get(label, 0):
            most[label], rivals_A[label] = images, anchor
    return rivals_A, np.einsum("ad,ad->a", embeddings_AD, embeddings_AD[rivals_A])


def _closest(embeddings_AD: np.ndarray, begin: int, end: int) -> np.ndarray:
    cosine_BA = embeddings_AD[begin:end] @ embeddings_AD.T
    places_B = np.arange(len(cosine_BA))
    cosine_BA[places_B, begin + places_B] = -np.inf
    return np.asarray(cosine_BA.argmax(axis=1))


def _worst_first(classes: Sequence[ClassReport]) -> tuple[ClassReport, ...]:
    return tuple(sorted(classes, key=lambda item: -item.ambiguity))


def _top1(found: Attraction) -> float | None:
    known = int(found.labelled_A.sum())
    return int(found.right_A.sum()) / known if known else None
