"""Compares two caches: what they were made from, field by field, and what they hold, by digest."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit.findings import Damaged, Findings, Problem
from pipeline.audit.units import Attributes, open_unit, read_attributes
from pipeline.cache import layout
from pipeline.cache.reader import read_manifest
from pipeline.options import differences
from pipeline.teacher import LOCAL_DIR


@dataclass
class UnitDifference:
    """Where one unit differs: arrays, views of arrays, attributes.

    views: numbers by array. max_abs, min_cosine: of targets valid in both, over the views that
    differ and have one shape; None if there are none.
    """

    unit: str
    arrays: list[str] = field(default_factory=list)
    views: dict[str, list[int]] = field(default_factory=dict)
    attributes: list[tuple[str, Any, Any]] = field(default_factory=list)
    max_abs: float | None = None
    min_cosine: float | None = None

    def text(self) -> str:
        """Return the difference as one line."""
        parts = [name for name in self.arrays if name not in self.views]
        parts += [f"{name} views {_ranges(views)}" for name, views in self.views.items()]
        parts += [f"{name} {old!r} | {new!r}" for name, old, new in self.attributes]
        if self.max_abs is not None and self.min_cosine is not None:
            parts.append(
                f"targets apart by {self.max_abs:.2e}, cosine 1 - {1 - self.min_cosine:.1e}"
            )
        return f"units/{self.unit}: {', '.join(parts)}"


@dataclass
class CacheDiff:
    """What differs between two caches. fields: (field, in a, in b) of the manifests.

    only_a, only_b: units, anchors and captions that one of them has published. anchors, captions:
    by set, the arrays or attributes that differ. problems: damage met on the way, in either.
    """

    a: str
    b: str
    fields: list[tuple[str, Any, Any]]
    only_a: list[str]
    only_b: list[str]
    units: list[UnitDifference]
    anchors: dict[str, list[str]]
    captions: dict[str, list[str]]
    problems: list[Problem]

    @property
    def equal(self) -> bool:
        """Whether nothing differs that decides or holds a number."""
        texts = (self.anchors, self.captions)
        found = (self.fields, self.only_a, self.only_b, self.units, *texts, self.problems)
        return not any(found)

    def as_mapping(self) -> dict[str, Any]:
        """Return the differences as plain values."""
        return {"equal": self.equal, **asdict(self)}

    def text(self) -> str:
        """List the differences, `a | b`."""
        if self.equal:
            return f"{self.a} and {self.b} hold the same"
        lines = [f"a = {self.a}, b = {self.b}"]
        lines += [f"  {name}: {old!r} | {new!r}" for name, old, new in self.fields]
        lines += [f"  only in a: {place}" for place in self.only_a]
        lines += [f"  only in b: {place}" for place in self.only_b]
        lines += [f"  {unit.text()}" for unit in self.units]
        lines += [f"  anchors/{name}: {', '.join(what)}" for name, what in self.anchors.items()]
        lines += [f"  captions/{name}: {', '.join(what)}" for name, what in self.captions.items()]
        lines += [f"  damaged: {problem.text()}" for problem in self.problems]
        return "\n".join(lines)


def diff_caches(a: Path, b: Path) -> CacheDiff:
    """Compare two caches, finished or not; raises CacheError if a manifest cannot be read.

    Where a teacher's folder or the shards lie, when shards were written and what a cache was made
    with beside what decides its bytes is not compared.
    """
    manifests = read_manifest(a), read_manifest(b)
    units_a, units_b = (_published(*pair) for pair in zip((a, b), manifests, strict=True))
    sets_a, sets_b = _texts(a), _texts(b)
    findings = Findings()
    units = []
    for unit in (unit for unit in units_a if unit in units_b):
        found = _compare(unit, units_a[unit], units_b[unit])
        if "targets" in found.views:
            dims = [manifest["teacher"]["dim"] for manifest in manifests]
            sides = [(a, units_a[unit], dims[0]), (b, units_b[unit], dims[1])]
            _measure(found, unit, sides, findings)
        if found.arrays or found.attributes:
            units.append(found)
    return CacheDiff(
        str(a),
        str(b),
        fields=_fields(*manifests),
        only_a=_only(units_a, units_b) + sorted(sets_a.keys() - sets_b),
        only_b=_only(units_b, units_a) + sorted(sets_b.keys() - sets_a),
        units=units,
        anchors=_apart("anchors", sets_a, sets_b),
        captions=_apart("captions", sets_a, sets_b),
        problems=findings.problems,
    )


def _fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return differences(_comparable(a), _comparable(b))


def _comparable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a cache's bytes: no paths, no times; shards by name."""
    fields = {name: manifest[name] for name in layout.FINGERPRINTED}
    if fields["teacher"]["model"].startswith(LOCAL_DIR):
        fields["teacher"] = {**fields["teacher"], "model": LOCAL_DIR}
    fields["splits"] = {
        split: {
            "shards": {shard["name"]: {"bytes": shard["bytes"]} for shard in content["shards"]},
            "views": content["views"],
        }
        for split, content in manifest["splits"].items()
    }
    return fields


def _published(cache: Path, manifest: Mapping[str, Any]) -> dict[layout.UnitId, Attributes]:
    wanted = layout.fingerprint(manifest)
    found: dict[layout.UnitId, Attributes] = {}
    for unit in layout.planned_units(manifest):
        with contextlib.suppress(Damaged):  # or missing
            found[unit] = read_attributes(cache, unit, wanted)
    return found


def _only(one: Mapping[layout.UnitId, Any], other: Mapping[layout.UnitId, Any]) -> list[str]:
    return [f"units/{unit.name}" for unit in one if unit not in other]


def _texts(cache: Path) -> dict[str, Any]:
    """Return the attributes of all anchors and captions by place; what cannot be read is None."""
    names = {"anchors": layout.anchor_names(cache), "captions": layout.caption_names(cache)}
    found: dict[str, Any] = {}
    for place in (f"{parent}/{name}" for parent, sets in names.items() for name in sets):
        try:
            text = (cache / place / "zarr.json").read_text(encoding="utf-8")
            found[place] = json.loads(text)["attributes"]
        except (OSError, ValueError, KeyError, TypeError):
            found[place] = None
    return found


def _apart(parent: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return, by name, which attributes differ of the sets of texts that both caches have."""
    return {
        place.removeprefix(f"{parent}/"): [field for field, _, _ in differences(a[place], b[place])]
        for place in sorted(a.keys() & b.keys())
        if place.startswith(f"{parent}/") and a[place] != b[place]
    }


def _compare(unit: layout.UnitId, a: Attributes, b: Attributes) -> UnitDifference:
    """Compare two units by their digests and attributes."""
    found = UnitDifference(unit.name)
    for name, array in layout.UNIT_ARRAYS.items():
        one, other = a["digests"][name], b["digests"][name]
        if one == other:
            continue
        found.arrays.append(name)
        if array.chunked_by_view:
            pairs = enumerate(zip(one, other, strict=True), start=unit.first)
            found.views[name] = [view for view, pair in pairs if pair[0] != pair[1]]
    plain = ("shard", "counts", "skips")
    found.attributes = differences({n: a.get(n) for n in plain}, {n: b.get(n) for n in plain})
    return found


def _measure(
    found: UnitDifference,
    unit: layout.UnitId,
    sides: Sequence[tuple[Path, Attributes, int]],
    findings: Findings,
) -> None:
    """Measure how far apart the differing views of the targets are, where shapes agree."""
    with findings.at(f"units/{unit.name}", "targets"):
        stored = [open_unit(cache, unit, has, dim) for cache, has, dim in sides]
        valid_a, valid_b = (side.read("valid") for side in stored)
        if valid_a.shape != valid_b.shape or sides[0][2] != sides[1][2]:
            return
        for view in (number - unit.first for number in found.views["targets"]):
            rows = valid_a[:, view] & valid_b[:, view]
            if not rows.any():
                continue
            a, b = (side.read_view("targets", view)[rows].astype(np.float64) for side in stored)
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            apart, cosine = np.abs(a - b).max(), ((a * b).sum(axis=1) / lengths).min()
            found.max_abs = max(float(apart), found.max_abs or 0.0)
            before = 1.0 if found.min_cosine is None else found.min_cosine
            found.min_cosine = min(float(cosine), before)


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers in short: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
