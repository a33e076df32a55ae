"""Verifies a cache: names every unit, array and view that is not as it was published."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import runtime
from pipeline.audit.arrays import StoredGroup
from pipeline.audit.captions import check_captions
from pipeline.audit.findings import Damaged, Findings, Problem, told
from pipeline.audit.units import Attributes, Expected, check_agreement, check_unit
from pipeline.cache import layout
from pipeline.cache.reader import read_manifest
from pipeline.errors import CacheError

_MOST_LINES = 50
Manifests = dict[int, dict[str, Any]]


@dataclass
class Verdict:
    """What verifying found. generation, sealed: of the newest manifest, if it can be read."""

    cache: str
    full: bool
    generation: int | None = None
    sealed: bool = False
    units: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def as_mapping(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        return asdict(self)

    def text(self) -> str:
        """List the problems, or say that there are none."""
        depth = "every chunk read" if self.full else "chunks not read: --full does"
        found = f"{len(self.problems)} problems" if self.problems else "nothing wrong"
        lines = [f"cache {self.cache}: {self.units} units ({depth}), {found}"]
        lines += [f"  {problem.text()}" for problem in self.problems[:_MOST_LINES]]
        if len(self.problems) > _MOST_LINES:
            lines.append(f"  and {len(self.problems) - _MOST_LINES} more: --json lists them all")
        lines += [f"  (not of this cache, ignored: {place})" for place in self.foreign]
        return "\n".join(lines)


def verify_cache(cache: Path, *, full: bool = False) -> Verdict:
    """Check a cache, sealed or not, against its own digests; nothing is changed.

    full: read every chunk of every array; otherwise large arrays are only looked for. Raises
    CacheError if there is no cache; all else that is wrong is in the verdict.
    """
    began = time.monotonic()
    if not (cache / "manifest").is_dir():
        read_manifest(cache)  # says how to make one
    findings = Findings()
    manifests = _read_manifests(cache, findings)
    verdict = Verdict(str(cache), full, problems=findings.problems)
    if manifests:
        newest = max(manifests)
        verdict.generation = newest
        verdict.sealed = (layout.index_path(cache, newest) / "seal.json").exists()
        units = {unit.name: unit for m in manifests.values() for unit in layout.planned_units(m)}
        verdict.units = len(units)
        expected = Expected(
            layout.fingerprint(manifests[newest]),
            manifests[newest]["teacher"]["dim"],
            _sealed_rows(cache, newest),
        )
        attributes = _check_units(cache, units.values(), expected, findings, full=full)
        for generation, manifest in manifests.items():
            if generation == newest or layout.index_path(cache, generation).exists():
                _check_seal(cache, manifest, attributes, findings)
        _check_anchors(cache, manifests[newest], findings)
        _check_captions(cache, manifests[newest], units, attributes, findings)
        verdict.foreign = _foreign(cache, units)
    verdict.seconds = time.monotonic() - began
    return verdict


def _read_manifests(cache: Path, findings: Findings) -> Manifests:
    """Return every generation that can be used; none if the newest cannot."""
    found = sorted((cache / "manifest").glob("[0-9]*.json"))
    numbers = [int(file.stem) for file in found if file.stem.isdigit()]
    manifests: Manifests = {}
    for generation in range(max(numbers, default=0) + 1):
        with findings.at(f"manifest/{generation:06d}.json"):
            if generation not in numbers:
                raise Damaged("is missing: put it back from a copy")
            try:
                manifest = read_manifest(cache, generation)
            except CacheError as error:
                raise Damaged(str(error)) from None
            _check_manifest(manifest, generation)
            manifests[generation] = manifest
    return manifests if max(numbers, default=0) in manifests else {}


def _check_manifest(manifest: Mapping[str, Any], generation: int) -> None:
    """Raise Damaged unless all that is read of a manifest here is there, and of its type."""
    try:
        units = layout.planned_units(manifest)
        layout.fingerprint(manifest)
        whole = manifest["generation"] == generation and isinstance(manifest["teacher"]["dim"], int)
        for unit in units:
            whole = whole and Path(unit.name).name == unit.name and 0 <= unit.first <= unit.last
    except Exception as error:  # JSON of any shape
        raise Damaged(f"lacks what it should say ({error!r}); put it back from a copy") from None
    if not whole:
        raise Damaged("does not say what it should; put it back from a copy")


def _sealed_rows(cache: Path, generation: int) -> dict[tuple[str, str], int]:
    """Return how many samples each shard has by the seal; what is wrong with it is told later."""
    try:
        splits = _read_json(layout.index_path(cache, generation) / "seal.json")["splits"]
        return {
            (split, str(shard["name"])): int(shard["rows"])
            for split, content in splits.items()
            for shard in content["shards"]
        }
    except Exception:  # absent, no JSON, or JSON of any shape
        return {}


def _check_units(
    cache: Path,
    units: Iterable[layout.UnitId],
    expected: Expected,
    findings: Findings,
    *,
    full: bool,
) -> dict[str, Attributes]:
    """Check every unit and the group around them; return the attributes of those that have any."""
    known: list[tuple[layout.UnitId, Attributes]] = []
    todo = list(units)
    with runtime.progress("verifying", len(todo), "units") as advance:
        for unit in todo:
            found = check_unit(cache, unit, expected, findings, full=full)
            if found is not None:
                known.append((unit, found))
            advance(1)
    check_agreement(known, findings)
    if (cache / "units").exists():
        _check_parent(cache, "units", findings)
    return {unit.name: attributes for unit, attributes in known}


def _check_parent(cache: Path, place: str, findings: Findings) -> None:
    """Check the group that makes a folder of groups readable by bare zarr."""
    with findings.at(f"{place}/zarr.json"):
        metadata = _read_json(cache / place / "zarr.json")
        if metadata["node_type"] != "group" or metadata["zarr_format"] != 3:
            raise Damaged("does not describe a Zarr v3 group")


def _check_seal(
    cache: Path,
    manifest: Mapping[str, Any],
    attributes: Mapping[str, Attributes],
    findings: Findings,
) -> None:
    """Hold manifest, units and index of one generation against its seal."""
    generation = manifest["generation"]
    place = f"index/{generation:06d}"
    if not (cache / place).exists():
        findings.add(
            place, "is missing: the cache is not sealed (unfinished, or something is lost)"
        )
        return
    with findings.at(f"{place}/seal.json"):
        seal = _read_json(cache / place / "seal.json")
        digests, columns, splits = dict(seal["units"]), dict(seal["columns"]), dict(seal["splits"])
        if seal["generation"] != generation:
            raise Damaged(f"is of generation {seal['generation']}")
        if seal["manifest"] != layout.manifest_digest(cache, generation):
            findings.add(f"manifest/{generation:06d}.json", "is not the manifest that was sealed")
        planned = layout.planned_units(manifest)
        if digests.keys() != {unit.name for unit in planned}:
            findings.add(f"{place}/seal.json", "is of other units than the manifest plans")
        for unit in planned:
            name = unit.name
            found = layout.unit_digest(attributes[name]) if name in attributes else None
            if found and found != digests.get(name, found):
                findings.add(f"units/{name}", "is not the unit that was sealed")
        if splits.keys() != manifest["splits"].keys():
            raise Damaged("is of other splits than the manifest's")
        for split, content in splits.items():
            _check_split(split, content, planned, attributes)
        for split in splits:
            for name, dtype in layout.INDEX_COLUMNS.items():
                with findings.at(f"{place}/{split}.{name}.npy"):
                    wanted = columns[f"{split}.{name}"]
                    _check_column(
                        cache / place / f"{split}.{name}.npy", dtype, splits[split], wanted
                    )


def _check_split(
    split: str,
    sealed: Mapping[str, Any],
    planned: Iterable[layout.UnitId],
    attributes: Mapping[str, Attributes],
) -> None:
    """Raise Damaged unless the seal's sums over a split are those of its units."""
    rows = [shard["rows"] for shard in sealed["shards"]]
    firsts = [shard["first"] for shard in sealed["shards"]]
    if sealed["rows"] != sum(rows) or firsts != list(accumulate([0, *rows]))[:-1]:
        raise Damaged(f"its rows of split {split} do not add up")
    entries = {shard["name"]: shard for shard in sealed["shards"]}
    for unit in planned:
        if unit.split != split or unit.name not in attributes:
            continue
        entry, shard = entries[unit.shard], attributes[unit.name]["shard"]
        if (entry["size_bytes"], entry["sha256"]) != (shard["bytes"], shard["sha256"]):
            raise Damaged(f"{unit.name} read another content of its shard than is sealed")


def _check_column(file: Path, dtype: str, split: Mapping[str, Any], digest: str) -> None:
    column = np.load(file, mmap_mode="r")
    if column.shape != (split["rows"],) or column.dtype != dtype:
        raise Damaged(f"has {column.dtype} {[*column.shape]}, expected {dtype} [{split['rows']}]")
    if layout.array_digest(column) != digest:
        raise Damaged("is not as it was sealed")


def _check_anchors(cache: Path, manifest: Mapping[str, Any], findings: Findings) -> None:
    """Check every prompt set that is there, and look for those that the recipe uses."""
    folders = [path for path in _folders(cache / "anchors") if path.is_dir()]
    for folder in folders:
        _check_prompt_set(folder, manifest, findings)
    if folders:
        _check_parent(cache, "anchors", findings)
    with findings.at("anchors"):
        prompts = manifest["made_with"]["recipe"].get("prompts") or {}
        uses = ("anchors", "zeroshot") if layout.reads_text(manifest) else ()
        for name in dict.fromkeys(prompts[use] for use in uses if prompts.get(use)):
            if not any(folder.name.endswith(f"-{name}") for folder in folders):
                findings.add(f"anchors/*-{name}", "is missing: the recipe names this prompt set")


def _check_prompt_set(folder: Path, manifest: Mapping[str, Any], findings: Findings) -> None:
    place = f"anchors/{folder.name}"
    with findings.at(place):
        try:
            attributes = _read_json(folder / "zarr.json")["attributes"]
            digests, templates = dict(attributes["digests"]), list(attributes["templates"])
            name, teacher = attributes["name"], attributes["teacher"]
        except Exception as error:  # garbage is no JSON, or JSON of any shape
            raise Damaged(f"its zarr.json is damaged ({told(error)})") from None
        if name != folder.name:
            raise Damaged(f"holds the prompt set {name}")
        if teacher != layout.teacher_digest(manifest["teacher"]):
            findings.add(place, "was embedded by another teacher")
        lengths = {"A": None, "T": len(templates), "D": manifest["teacher"]["dim"]}
        stored = StoredGroup(folder, layout.ANCHOR_ARRAYS, lengths, digests)
        for array in layout.ANCHOR_ARRAYS:
            with findings.at(place, array):
                stored.read(array)


def _check_captions(
    cache: Path,
    manifest: Mapping[str, Any],
    units: Mapping[str, layout.UnitId],
    attributes: Mapping[str, Attributes],
    findings: Findings,
) -> None:
    """Check every set of captions that is there, against the units of its shards."""
    folders = [path for path in _folders(cache / "captions") if path.is_dir()]
    shards: dict[tuple[str, str], Attributes | None] = {}
    for name, unit in units.items() if folders else ():
        place = unit.split, unit.shard
        shards[place] = shards.get(place) or attributes.get(name)
    for folder in folders:
        check_captions(folder, manifest, shards, findings)
    if folders:
        _check_parent(cache, "captions", findings)


def _foreign(cache: Path, units: Mapping[str, layout.UnitId]) -> list[str]:
    """Return what lies in the cache and is none of its own: left alone, and no problem."""
    inside = [f"units/{folder.name}" for folder in _folders(cache / "units", units)]
    return sorted(p.name for p in cache.iterdir() if p.name not in layout.PLACES) + inside


def _folders(parent: Path, known: Iterable[str] = ()) -> list[Path]:
    """Return what lies in a folder of groups, but for its own metadata and what is known."""
    names = {"zarr.json", *known}
    return sorted(p for p in parent.glob("*") if p.name not in names)


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
