"""Tells what a cache is: what made it, how much of it is there, what it weighs, what it skipped."""

import contextlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit.captions import read_caption_attributes
from pipeline.audit.findings import Damaged, Findings, Problem
from pipeline.audit.units import Attributes, open_unit, read_attributes
from pipeline.cache import layout
from pipeline.cache.reader import Anchors, read_anchors, read_manifest
from pipeline.contracts import Features
from pipeline.errors import CacheError, ProbeError
from pipeline.labels import foreign, own_set
from pipeline.options import flatten
from pipeline.probes import zeroshot
from pipeline.probes.contract import Subject
from pipeline.schedule import EVAL

Published = dict[tuple[str, str], list[tuple[layout.UnitId, Attributes]]]  # by split, shard


@dataclass
class SplitInfo:
    """What is published of one split. samples, skipped, reasons: of the shards read so far."""

    shards: int
    samples: int = 0
    skipped: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    schedules: dict[str, dict[str, int]] = field(default_factory=dict)  # views, published, planned


@dataclass
class AnchorsInfo:
    """One prompt set. error: why it cannot be read, if so.

    foreign: why labels are not places among its classes, and it has no zero-shot score, if so.
    """

    classes: int = 0
    templates: list[str] = field(default_factory=list)
    error: str | None = None
    foreign: str | None = None


@dataclass
class CaptionsInfo:
    """One set of captions, by its attributes. error: why they cannot be read, if so."""

    split: str = ""
    captions: int = 0
    samples: int = 0  # that have a caption
    error: str | None = None


@dataclass
class CacheInfo:
    """What a cache is. bytes: of the files of published units, targets alone and all.

    zeroshot: the teacher's top-1 by split and prompt set, on the split's valid labelled rows.
    """

    cache: str
    generation: int
    sealed: bool
    made_from: dict[str, Any]
    splits: dict[str, SplitInfo]
    views: int  # published targets, all splits and schedules
    bytes: dict[str, int]
    anchors: dict[str, AnchorsInfo]
    captions: dict[str, CaptionsInfo]
    zeroshot: dict[str, dict[str, float]]
    problems: list[Problem]  # met while reading for zeroshot; `cache verify` finds all

    def as_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def text(self) -> str:
        """Lay the report out for a terminal."""
        state = "sealed" if self.sealed else "not sealed"
        lines = [f"cache {self.cache}: generation {self.generation}, {state}"]
        for name, value in self.made_from.items():
            fields = ", ".join(f"{key} {item}" for key, item in flatten(value).items())
            lines.append(f"  {name}: {fields}")
        for split, part in self.splits.items():
            reasons = "".join(f", {reason} {count}" for reason, count in part.reasons.items())
            lines.append(
                f"  {split}: {part.shards} shards, {part.samples} samples, {part.skipped} skipped"
                f"{reasons}"
            )
            lines += [
                f"    {name}: {has['views']} views, {has['published']} of {has['planned']} units"
                for name, has in part.schedules.items()
            ]
        sizes = ", ".join(
            f"{name} {size:,} ({size / max(1, self.views):,.0f} per view)"
            for name, size in self.bytes.items()
        )
        lines.append(f"  bytes of {self.views:,} views: {sizes}")
        for name, item in self.anchors.items():
            what = item.error or f"{item.classes} classes, {len(item.templates)} templates"
            lines.append(f"  anchors {name}: {what}")
            if item.foreign:
                lines.append(f"    not scored: {item.foreign}")
        for name, found in self.captions.items():
            what = f"{found.captions} captions of {found.samples} samples of {found.split}"
            lines.append(f"  captions {name}: {found.error or what}")
        for split, scores in self.zeroshot.items():
            tops = ", ".join(f"{name} {top1:.4f}" for name, top1 in scores.items())
            lines.append(f"  teacher's zero-shot top-1 on {split}: {tops}")
        lines += [f"  left out of zero-shot: {problem.text()}" for problem in self.problems]
        return "\n".join(lines)


def cache_info(cache: Path) -> CacheInfo:
    """Describe a cache, finished or not, from its manifest and its published units.

    Raises CacheError if there is no readable manifest. A unit whose attributes are damaged counts
    as not published; arrays are read for the zero-shot scores alone.
    """
    manifest = read_manifest(cache)
    published = _published(cache, manifest)
    units = [(unit, attributes) for shard in published.values() for unit, attributes in shard]
    anchors = {name: _read_anchors(cache, name) for name in layout.anchor_names(cache)}
    own = own_set(cache, manifest)
    described = {name: _anchors_info(item, own) for name, item in anchors.items()}
    named = {name: item for name, item in anchors.items() if described[name].foreign is None}
    findings = Findings()
    generation = manifest["generation"]
    return CacheInfo(
        cache=str(cache),
        generation=generation,
        sealed=(layout.index_path(cache, generation) / "seal.json").exists(),
        made_from=_made_from(manifest),
        splits=_splits(manifest, published),
        views=sum(attributes["counts"]["seen"] * unit.num_views for unit, attributes in units),
        bytes={
            "targets": sum(_size(cache / "units" / unit.name / "targets") for unit, _ in units),
            "all": sum(_size(cache / "units" / unit.name) for unit, _ in units),
        },
        anchors=described,
        captions={name: _captions_info(cache, name) for name in layout.caption_names(cache)},
        zeroshot=_zeroshot(cache, manifest, published, named, findings),
        problems=findings.problems,
    )


def _published(cache: Path, manifest: Mapping[str, Any]) -> Published:
    """Return every planned shard with the units that are published of it."""
    wanted = layout.fingerprint(manifest)
    published: Published = {}
    for unit in layout.planned_units(manifest):
        units = published.setdefault((unit.split, unit.shard), [])
        with contextlib.suppress(Damaged):  # or missing
            units.append((unit, read_attributes(cache, unit, wanted)))
    return published


def _made_from(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a cache's bytes, but for the layers of its teacher."""
    names = ("model", "pretrained", "precision", "feature_point", "dim", "logit_scale")
    teacher = {
        name: manifest["teacher"][name]
        for name in (*names, "preprocess")
        if manifest["teacher"].get(name) is not None
    }
    teacher["weights_sha256"] = manifest["teacher"]["weights_sha256"]
    return {**{name: manifest[name] for name in layout.FINGERPRINTED}, "teacher": teacher}


def _splits(manifest: Mapping[str, Any], published: Published) -> dict[str, SplitInfo]:
    """Count shards, samples, skips and units; a sample skipped in any unit counts as skipped."""
    splits = {
        split: SplitInfo(
            shards=len(content["shards"]),
            schedules={
                name: {
                    "views": max(last for _, last in ranges) + 1,
                    "published": 0,
                    "planned": len(ranges) * len(content["shards"]),
                }
                for name, ranges in content["views"].items()
            },
        )
        for split, content in manifest["splits"].items()
    }
    for (split, _), units in published.items():
        info, reasons = splits[split], dict[int, str]()
        for unit, attributes in units:
            info.schedules[unit.schedule]["published"] += 1
            reasons |= {skip["ordinal"]: skip["reason"] for skip in attributes["skips"]}
        info.samples += units[0][1]["counts"]["seen"] if units else 0
        info.skipped += len(reasons)
        info.reasons = dict(Counter(info.reasons) + Counter(reasons.values()))
    return splits


def _zeroshot(
    cache: Path,
    manifest: Mapping[str, Any],
    published: Published,
    anchors: Mapping[str, Anchors | CacheError],
    findings: Findings,
) -> dict[str, dict[str, float]]:
    """Score the teacher on the splits beside train (or on train alone), by prompt set."""
    splits = [split for split in manifest["splits"] if split != "train"] or ["train"]
    scores: dict[str, dict[str, float]] = {}
    for split in splits:
        features = _features(cache, manifest, split, published, findings)
        for name, item in anchors.items():
            # Without labels, or for a set of several anchors a class, there is nothing to tell.
            with contextlib.suppress(ProbeError):
                if isinstance(item, Anchors):
                    subject = Subject(test=features, anchors=item)
                    found = zeroshot.run(subject, zeroshot.ZeroshotOptions())
                    scores.setdefault(split, {})[name] = found.scores["top1"]
    return scores


def _features(
    cache: Path,
    manifest: Mapping[str, Any],
    split: str,
    published: Published,
    findings: Findings,
) -> Features:
    """Return the eval targets of a split's valid rows, normalised anew, as the reader gives them.

    A row is valid that is so in every published unit. A damaged unit is left out, and a finding.
    """
    dim = manifest["teacher"]["dim"]
    parts, labels = [np.empty((0, dim), np.float32)], [np.empty(0, np.int64)]
    for (its_split, _), units in published.items():
        if its_split != split or not any(unit.schedule == EVAL for unit, _ in units):
            continue
        evaluation = next((unit, has) for unit, has in units if unit.schedule == EVAL)
        with findings.at(f"units/{evaluation[0].name}"):
            opened = [open_unit(cache, unit, has, dim) for unit, has in units]
            valid_n = np.all([stored.read("valid").all(axis=1) for stored in opened], axis=0)
            stored = open_unit(cache, *evaluation, dim)
            targets_BD = stored.read_view("targets", 0)[valid_n].astype(np.float32)
            targets_BD /= np.linalg.norm(targets_BD, axis=1, keepdims=True)
            labels.append(stored.read("samples")[valid_n, layout.SAMPLE_COLUMNS.index("label")])
            parts.append(targets_BD)
    embedding_ND = np.concatenate(parts)
    rows_N = np.arange(len(embedding_ND))  # among the valid rows of whole units
    return Features(embedding_ND, embedding_ND, np.concatenate(labels), rows_N)


def _read_anchors(cache: Path, name: str) -> Anchors | CacheError:
    try:
        return read_anchors(cache, name)
    except CacheError as error:
        return error


def _anchors_info(item: Anchors | CacheError, own: Anchors | None) -> AnchorsInfo:
    if isinstance(item, CacheError):
        return AnchorsInfo(error=str(item))
    return AnchorsInfo(
        classes=len(set(item.class_names)),
        templates=list(item.templates),
        foreign=foreign(item, own),
    )


def _captions_info(cache: Path, name: str) -> CaptionsInfo:
    try:
        attributes = read_caption_attributes(cache / "captions" / name)
    except Damaged as error:
        return CaptionsInfo(error=str(error))
    counts = attributes["counts"]
    return CaptionsInfo(attributes["split"], counts["captions"], counts["captioned"])


def _size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    files = (Path(top) / name for top, _, names in os.walk(folder) for name in names)
    return sum(file.stat().st_size for file in files)
