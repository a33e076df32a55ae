"""The conservation law: what must hold of every cache after every fault, finished or not."""

import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from pipeline.cache import layout
from pipeline.cache.captions import read_captions
from pipeline.cache.reader import TargetCache, read_anchors, read_manifest
from pipeline.errors import CacheError


@dataclass
class Law:
    """What a cache was found to hold; two caches of equal `arrays` hold the same numbers."""

    published: set[str] = field(default_factory=set)  # units
    missing: set[str] = field(default_factory=set)  # units planned, not published
    sealed: bool = False
    seen: dict[str, int] = field(default_factory=dict)  # samples by "split-shard"
    skipped: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, dict[int, str]] = field(default_factory=dict)  # ordinal -> reason, by unit
    arrays: dict[str, dict[str, Any]] = field(default_factory=dict)  # unit -> digests, decoded

    @property
    def whole(self) -> bool:
        """Nothing planned is missing, and the seal says so."""
        return self.sealed and not self.missing


def check_law(
    cache: Path, *, exit_code: int | None = None, tars: Iterable[Path] | None = None
) -> Law:
    """Assert the law of a cache that may be new, partial, unsealed or sealed; say what it holds.

    Per unit: every array re-reads by its digest, rows == seen == embedded + skipped, each skip is
    an invalid row and each invalid row a skip, a valid target is finite and normalised, an invalid
    one NaN. Per shard: all units agree on keys, digests, samples and the shard's sha256. If there
    is a seal: the sums over units, its columns and every view equal what the units hold, and no
    planned unit is missing; if not, the cache does not open.

    exit_code: of the command that was the last to write; 0 demands a cache with nothing lost.
    tars: whole shards, named SPLIT-SHARD.tar, whose samples the published units must all have (as
    counted by the standard library). Leave it out for damaged ones. What publishes nothing at all
    (no manifest) has no unit, no anchors, no captions and no seal.

        law = check_law(cache, exit_code=done.returncode)
        assert law.missing == {"train-000000.mild.v0-1"}
        ...  # mend, run again
        assert check_law(cache, exit_code=0).arrays == check_law(clean).arrays
    """
    law = Law()
    if not any((cache / "manifest").glob("[0-9]*.json")):
        assert not _groups(cache / "units")
        assert not _groups(cache / "anchors") | _groups(cache / "captions")
        assert not (cache / "index").exists()
    else:
        manifest = read_manifest(cache)
        units = {unit.name: unit for unit in layout.planned_units(manifest)}
        law.published = _groups(cache / "units")
        assert law.published <= set(units), "a unit that no manifest plans"
        law.missing = set(units) - law.published
        held = {name: _check_unit(cache, units[name], law) for name in sorted(law.published)}
        _check_shards(units, held, law)
        for name in _groups(cache / "anchors"):
            read_anchors(cache, name)
        for name in _groups(cache / "captions"):
            _check_captions(cache, name)
        law.sealed = layout.index_path(cache, manifest["generation"]).exists()
        _check_seal(cache, manifest, held, law)
    if exit_code == 0:
        assert law.whole, f"exit code 0, but lost: {law.missing or 'the seal'}"
    for path in tars or ():
        assert law.seen.get(path.stem, count_samples(path)) == count_samples(path), path
    return law


def count_samples(path: Path) -> int:
    """Count the keys of a whole tar with the standard library alone."""
    with tarfile.open(path, errors="surrogateescape") as tar:
        names = [info.name.rpartition("/") for info in tar if info.isfile()]
    stems = [(folder, base.split(".")[0] or base) for folder, _, base in names]
    return len(set(stems))


def _groups(folder: Path) -> set[str]:
    """Name what is published in a folder; what is hidden or a file is no group."""
    if not folder.exists():
        return set()
    return {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}


def _check_unit(cache: Path, unit: layout.UnitId, law: Law) -> dict[str, Any]:
    """Re-read one unit whole; return its arrays with its attributes."""
    folder = cache / "units" / unit.name
    fingerprints = {
        layout.fingerprint(read_manifest(cache, int(path.stem)))
        for path in (cache / "manifest").glob("[0-9]*.json")
    }
    group = zarr.open_group(LocalStore(folder, read_only=True), mode="r")
    attributes = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    arrays = {name: np.asarray(group[name][...]) for name in layout.UNIT_ARRAYS}  # type: ignore[index]
    law.arrays[unit.name] = dict(layout.content_digests(arrays))
    assert law.arrays[unit.name] == attributes["digests"], f"{unit.name}: digests"
    assert attributes["unit"] == unit.name
    assert attributes["fingerprint"] in fingerprints, f"{unit.name}: made from something else"
    _check_rows(unit, arrays, attributes)
    law.reasons[unit.name] = {skip["ordinal"]: skip["reason"] for skip in attributes["skips"]}
    return {**arrays, "attributes": attributes}


def _check_rows(
    unit: layout.UnitId, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> None:
    counts, skips = attributes["counts"], attributes["skips"]
    rows = len(arrays["keys"])
    assert {len(array) for array in arrays.values()} == {rows}, f"{unit.name}: rows"
    assert arrays["targets"].shape[1] == arrays["params"].shape[1] == unit.num_views
    assert counts["seen"] == counts["embedded"] + counts["skipped"] == rows, f"{unit.name}: counts"
    assert arrays["samples"][:, 0].tolist() == list(range(rows)), f"{unit.name}: ordinals"
    valid_NV, targets_NVD = arrays["valid"], arrays["targets"].astype(np.float32)
    assert counts["skipped"] == len(skips) == len({skip["ordinal"] for skip in skips})
    assert {s["ordinal"] for s in skips} == set(np.flatnonzero(~valid_NV.all(axis=1)).tolist())
    for skip in skips:
        assert skip["key"] == arrays["keys"][skip["ordinal"]]
        assert skip["reason"], skip
        assert skip["detail"], skip
    norms = np.linalg.norm(targets_NVD[valid_NV], axis=-1)
    assert np.allclose(norms, 1, atol=2e-3), f"{unit.name}: a valid target that is no vector"
    assert np.isnan(targets_NVD[~valid_NV]).all(), f"{unit.name}: an invalid target with numbers"


def _check_captions(cache: Path, name: str) -> None:
    """Hold captions against what they say of themselves."""
    captions = read_captions(cache, name)
    assert len(captions.texts) == len(captions.embeddings_KD) == captions.counts["captions"]
    assert len(np.unique(captions.samples_K2, axis=0)) == captions.counts["captioned"]
    norms_K = np.linalg.norm(captions.embeddings_KD, axis=1)
    assert np.allclose(norms_K, 1, atol=1e-5), f"{name}: a caption that is no vector"


def _check_shards(
    units: Mapping[str, layout.UnitId], held: Mapping[str, dict[str, Any]], law: Law
) -> None:
    """Hold all view ranges of a shard against the first one."""
    firsts: dict[str, str] = {}
    for name in held:
        shard = f"{units[name].split}-{units[name].shard}"
        first = held[firsts.setdefault(shard, name)]
        for array in ("keys", "digests", "samples"):
            assert np.array_equal(held[name][array], first[array]), f"{name}: {array}"
        attributes = held[name]["attributes"]
        assert attributes["shard"] == first["attributes"]["shard"], f"{name}: shard"
        assert attributes["counts"]["seen"] == first["attributes"]["counts"]["seen"]
        law.seen[shard] = attributes["counts"]["seen"]
        law.skipped[shard] = max(law.skipped.get(shard, 0), attributes["counts"]["skipped"])


def _check_seal(
    cache: Path, manifest: Mapping[str, Any], held: Mapping[str, dict[str, Any]], law: Law
) -> None:
    for split, content in manifest["splits"].items():
        if not law.sealed:
            with pytest.raises(CacheError):
                TargetCache.open(cache, split)
            continue
        assert not law.missing, f"sealed, but {law.missing} are missing"
        for schedule in content["views"]:
            opened = TargetCache.open(cache, split, schedule)
            _check_opened(opened, held, law)


def _check_opened(opened: TargetCache, held: Mapping[str, dict[str, Any]], law: Law) -> None:
    """Hold an opened split against its units: sums, columns, and all targets view by view."""
    split, first = opened.split, 0
    for shard in opened.shards:
        assert (shard.first, shard.rows) == (first, law.seen[f"{split}-{shard.name}"])
        first += shard.rows
        names = [n for n in held if n.startswith(f"{split}-{shard.name}.")]
        valid = np.all([held[name]["valid"].all(axis=1) for name in names], axis=0)
        rows = slice(shard.first, first)
        assert np.array_equal(opened.column("valid")[rows], valid)
        assert np.array_equal(opened.column("digest")[rows], held[names[0]]["digests"])
        for place, name in enumerate(layout.SAMPLE_COLUMNS):
            assert np.array_equal(opened.column(name)[rows], held[names[0]]["samples"][:, place])
        assert {held[name]["attributes"]["shard"]["sha256"] for name in names} == {shard.sha256}
    assert len(opened) == first == len(opened.column("valid"))
    for view in range(opened.num_views):
        assert sum(len(values) for _, values in opened.iter_units(view)) == first
