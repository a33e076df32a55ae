"""Finds the cached anchors of a prompt set; describes them, and holds them against their texts.

Shape letters: A classes, T templates, D teacher dimension, B a block of classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import layout
from pipeline.cache.reader import Anchors, TargetCache, read_anchors, read_manifest
from pipeline.errors import CacheMismatchError, DataError
from pipeline.labels import own_set, warn_if_foreign
from pipeline.options import ABSENT, differences
from pipeline.prompt_file import PromptFile
from pipeline.prompts import PromptSet, prompt_set
from pipeline.schedule import EVAL

_BLOCK = 1024


@dataclass(frozen=True)
class ClosePair:
    """Two classes whose anchors lie close to each other."""

    one: str
    other: str
    cosine: float


@dataclass(frozen=True)
class AnchorsSummary:
    """What a cache holds for a prompt set: tokens counts the shortest and the longest text."""

    name: str
    classes: int
    templates: tuple[str, ...]
    tokens: tuple[int, int]
    class_names: tuple[str, ...]
    examples: tuple[str, ...]  # the first class's texts
    cuts: tuple[str, ...]  # texts of which a part was embedded: what was, and what of how much
    closest: tuple[ClosePair, ...]  # closest first

    def as_mapping(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return asdict(self)

    def line(self) -> str:
        """Say in one line what the set is."""
        return (
            f"{self.name}: {self.classes} classes, {len(self.templates)} templates, "
            f"{self.tokens[0]} to {self.tokens[1]} tokens"
        )

    def text(self) -> str:
        """Say all of it, a line each."""
        return "\n".join(
            [
                self.line(),
                f"  classes: {', '.join(self.class_names)}",
                *(f"  template: {template}" for template in self.templates),
                *(f"  example: {text}" for text in self.examples),
                *(f"  cut: {text}" for text in self.cuts),
                *(
                    f"  close: {p.one!r} and {p.other!r}, cosine {p.cosine:.4f}"
                    for p in self.closest
                ),
            ]
        )


def cached_anchors(cache: Path, manifest: Mapping[str, Any], prompts: PromptSet) -> Anchors:
    """Return the anchors that a cache, sealed or not, holds for a prompt set.

    Raises CacheError if it has none of that name, CacheMismatchError listing every class name and
    text that is not as it was embedded (classes reordered, labels or context edited), or if another
    teacher than the manifest's had embedded them.
    """
    anchors = named_anchors(cache, manifest, prompts.name)
    old = {"class_names": anchors.class_names, "texts": anchors.texts}
    new = {"class_names": prompts.class_names, "texts": prompts.texts}
    if changed := differences(old, new):
        raise CacheMismatchError(
            f"{cache} has anchors {prompts.name!r} from other prompts; put the prompt file back, "
            "or give the edited set another name:",
            changed,
        )
    return anchors


def named_anchors(cache: Path, manifest: Mapping[str, Any], name: str) -> Anchors:
    """Return a prompt set by its whole name; raises CacheError, or CacheMismatchError if another
    teacher than the manifest's had embedded it.
    """
    anchors = read_anchors(cache, name)
    teacher = layout.teacher_digest(manifest["teacher"])
    if anchors.teacher_digest != teacher:
        raise CacheMismatchError(
            f"{cache} has anchors {name!r} of another teacher; take them away with `beamclip "
            "anchors remove` and add them again:",
            [("teacher", anchors.teacher_digest, teacher)],
        )
    return anchors


def list_anchors(cache: Path) -> list[AnchorsSummary]:
    """Describe every prompt set of a cache, by name; raises CacheError."""
    read_manifest(cache)
    return [show_anchors(cache, name) for name in layout.anchor_names(cache)]


def show_anchors(cache: Path, name: str, *, pairs: int = 3) -> AnchorsSummary:
    """Describe one prompt set, with the `pairs` of classes that it tells apart worst."""
    read_manifest(cache)
    anchors = read_anchors(cache, name)
    names, tokens_AT = anchors.class_names, anchors.token_counts_AT
    return AnchorsSummary(
        name=name,
        classes=len(names),
        templates=anchors.templates,
        tokens=(int(tokens_AT.min()), int(tokens_AT.max())),
        class_names=names,
        examples=anchors.texts[0],
        cuts=tuple(_cut_line(anchors, cut) for cut in anchors.cuts),
        closest=tuple(
            ClosePair(names[one], names[other], cosine)
            for one, other, cosine in closest_pairs(anchors.embeddings_AD, pairs)
        ),
    )


def _cut_line(anchors: Anchors, cut: Mapping[str, int]) -> str:
    text = anchors.texts[cut["anchor"]][cut["template"]]
    kept = int(anchors.token_counts_AT[cut["anchor"], cut["template"]])
    return f"{text[: cut['kept']]!r} ({kept} of {cut['tokens']} tokens)"


def closest_pairs(embeddings_AD: np.ndarray, count: int) -> list[tuple[int, int, float]]:
    """Return (i, j, cosine) of the closest pairs of normalised rows, i < j, closest first."""
    found: list[tuple[int, int, float]] = []
    for begin in range(0, len(embeddings_AD), _BLOCK):
        cosine_BA = embeddings_AD[begin : begin + _BLOCK] @ embeddings_AD.T
        places_B = np.arange(begin, begin + len(cosine_BA))
        cosine_BA[places_B[:, None] >= np.arange(len(embeddings_AD))] = -np.inf
        best = np.argpartition(cosine_BA, -min(count, cosine_BA.size), axis=None)[-count:]
        rows, columns = np.unravel_index(best, cosine_BA.shape)
        found += [
            (begin + int(i), int(j), float(cosine_BA[i, j]))
            for i, j in zip(rows, columns, strict=True)
            if np.isfinite(cosine_BA[i, j])
        ]
    return sorted(found, key=lambda pair: -pair[2])[:count]


def check_anchors(
    cache: Path, prompts: PromptFile, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Hold the sets of a prompt file against what a cache holds; return what was checked.

    names: of the file's sets, by default all. Labels are checked where the cache is sealed. Raises
    CacheMismatchError listing every set that is not there, every class and text that is not as it
    was embedded, and every split whose labels the classes do not name.
    """
    manifest = read_manifest(cache)
    sets = [prompt_set(prompts, name) for name in names or prompts.prompt_sets]
    known = layout.anchor_names(cache)
    changed: list[tuple[str, object, object]] = []
    for item in sets:
        if item.name not in known:
            changed.append((item.name, ABSENT, f"{len(item.class_names)} classes"))
            continue
        try:
            cached_anchors(cache, manifest, item)
        except CacheMismatchError as error:
            changed += [(f"{item.name}.{field}", a, b) for field, a, b in error.differences]
    sealed = layout.is_sealed(cache, manifest["generation"])
    for split in manifest["splits"] if sealed else []:
        highest = highest_label(TargetCache.open(cache, split, EVAL))
        if highest >= len(prompts.classes):
            named = f"labels 0 to {len(prompts.classes) - 1}"
            changed.append((f"labels of {split}", f"label {highest}", named))
    if changed:
        raise CacheMismatchError(
            f"{cache} does not agree with the prompts for {prompts.dataset}; put the file back as "
            "it was, or give an edited set another name and run `beamclip anchors add`:",
            changed,
        )
    return {"checked": [item.name for item in sets], "labels_checked": sealed}


def check_labels(cache: TargetCache, anchors: Anchors) -> None:
    """Raise DataError unless every class number of the shards has an anchor of its own.

    Classes of other names than the cache's own may mean the same, and are warned of.
    """
    if not anchors.labelled:
        raise DataError(
            f"prompt set {anchors.name} does not hold one anchor for each label, in order (it is a "
            "sample of the classes, or keeps templates apart): name another set for zero-shot"
        )
    highest = highest_label(cache)
    if highest >= len(anchors.class_names):
        raise DataError(
            f"the shards have a label {highest}, prompt set {anchors.name} names "
            f"{len(anchors.class_names)} classes (0 to {len(anchors.class_names) - 1}): give the "
            "prompts of this dataset"
        )
    warn_if_foreign(anchors, own_set(cache.path, cache.manifest))


def highest_label(cache: TargetCache) -> int:
    """Return the highest class number of a split, -1 if it has none."""
    labels_N = cache.column("label")
    return int(labels_N.max()) if len(labels_N) else -1
