"""Mends a cache: makes anew what verifying finds damaged or missing, and touches nothing else."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.audit.captions import read_caption_attributes
from pipeline.audit.findings import Damaged, Problem
from pipeline.audit.live import live_teacher, recorded_options
from pipeline.audit.verify import Verdict, verify_cache
from pipeline.cache import layout, writer
from pipeline.cache.arrays import read_array
from pipeline.cache.reader import read_manifest
from pipeline.cache.seal import seal_cache
from pipeline.caption_sets import remade
from pipeline.caption_shards import collect_captions, held_shards
from pipeline.cluster import Place
from pipeline.embed import CacheOptions, build_cache
from pipeline.errors import CacheError, LossesError
from pipeline.prompt_file import load_prompts
from pipeline.prompts import PromptOptions, PromptSet, prompt_set
from pipeline.shards import Shard
from pipeline.texts import embed_prompt_set


@dataclass
class RepairReport:
    """What was wrong and what was made anew.

    changed: units that came out otherwise than they were sealed (in the last bits of vectors, on
    another kind of processor): runs that were trained from them can be scored, not resumed.
    """

    cache: str
    problems: list[Problem]
    units: list[str] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def as_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def text(self) -> str:
        """Say what was wrong and what was made anew."""
        if not self.problems:
            return f"cache {self.cache}: every chunk read, nothing wrong, nothing done"
        lines = [f"cache {self.cache}: {len(self.problems)} problems mended, sealed"]
        lines += [f"  {problem.text()}" for problem in self.problems]
        lines += [f"  made anew: units/{name}" for name in self.units]
        lines += [f"  made anew: anchors/{name}" for name in self.anchors]
        lines += [f"  made anew: captions/{name}" for name in self.captions]
        lines += [f"  differs from what was sealed: units/{name}" for name in self.changed]
        return "\n".join(lines)


def repair_cache(
    cache: Path,
    shards: Sequence[Shard],
    *,
    workers: int = 0,
    device: str = "auto",
    teacher: str | None = None,
    prompts: str | None = None,
) -> RepairReport:
    """Read every chunk, make damaged and missing units, prompt sets and captions anew, and seal.

    All is made by the recipe that the manifest keeps. shards: all that the cache was made from.
    teacher, prompts: where the model and the prompt file lie today, if they have moved. Raises
    CacheError if the manifest is damaged (nothing is touched then), CacheMismatchError if teacher,
    shards or libraries are not those of the cache, LossesError if something could not be mended.
    """
    read_manifest(cache)  # a folder that is no cache gets no lock file
    with writer.exclusive(cache):
        verdict = verify_cache(cache, full=True)
        report = RepairReport(str(cache), verdict.problems)
        if not verdict.problems:
            return report
        _check_manifest(cache, verdict)
        manifest = read_manifest(cache)
        spec = recorded_options(cache, manifest, teacher=teacher, prompts=prompts)
        sealed = _sealed_digests(cache, manifest)
        sets = _prompt_sets(cache)
        report.anchors = _mend_anchors(cache, manifest, spec, verdict.problems, device)
        planned = {unit.name for unit in layout.planned_units(manifest)}
        report.units = [name for name in _names(verdict.problems, "units") if name in planned]
        # The lock is the process's: stage one takes it again without a gap, and lets it go.
        build_cache(
            cache,
            shards,
            replace(spec, captions=False),  # it would read those that are damaged
            recipe=manifest["made_with"]["recipe"],
            place=Place(workers=workers, device=device),
            redo=report.units,
        )
    report.anchors += sorted(_prompt_sets(cache) - sets - {*report.anchors})
    with writer.exclusive(cache):
        writer.sweep(cache)
        _reseal_older(cache, manifest, verdict.problems, spec.max_skip_fraction)
        report.captions = _mend_captions(cache, manifest, shards, spec, verdict.problems, device)
    report.changed = [
        name
        for name, digest in _sealed_digests(cache, manifest).items()
        if sealed.get(name, digest) != digest
    ]
    _check_mended(cache)
    return report


def _check_manifest(cache: Path, verdict: Verdict) -> None:
    """Raise CacheError if units would be judged by a manifest that cannot be trusted."""
    generation = verdict.generation
    damaged = [
        problem
        for problem in verdict.problems
        if problem.place.startswith("manifest/")
        and (generation is None or problem.place.endswith(f"{generation:06d}.json"))
    ]
    if damaged:
        raise CacheError(
            f"{cache}: {damaged[0].text()}. All else is judged by the manifest, so nothing was "
            "touched: put it back from a copy. If it is right and the seal is wrong, remove index/ "
            "and repair again"
        )


def _names(problems: Iterable[Problem], parent: str) -> list[str]:
    """Return the names of the groups of units/, anchors/ or captions/ that have a problem."""
    places = (problem.place.partition("/") for problem in problems)
    found = (name for folder, _, name in places if folder == parent and name)
    return [name for name in dict.fromkeys(found) if name != "zarr.json"]


def _prompt_sets(cache: Path) -> set[str]:
    return {file.parent.name for file in (cache / "anchors").glob("*/zarr.json")}


def _sealed_digests(cache: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of units as the seal has them; none if it cannot be read."""
    file = layout.index_path(cache, manifest["generation"]) / "seal.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["units"])
    except Exception:  # absent, no JSON, or JSON of any shape
        return {}


def _mend_anchors(
    cache: Path,
    manifest: Mapping[str, Any],
    spec: CacheOptions,
    problems: Sequence[Problem],
    device: str,
) -> list[str]:
    """Embed damaged prompt sets anew, from their own texts or the prompt file's; name them.

    A set of which neither is to be had stays as it is.
    """
    for parent in ("units", "anchors", "captions"):
        if any(problem.place == f"{parent}/zarr.json" for problem in problems):
            writer.mend_parent_group(cache, parent)
    mended = []
    for name in _names(problems, "anchors"):
        folder = cache / "anchors" / name
        prompts = _stored_texts(folder) or _texts_of_file(name, spec.prompts)
        if prompts is None:
            continue
        teacher = live_teacher(cache, manifest, spec.teacher, device)
        if folder.exists():
            writer.drop_anchors(cache, name)
        embed_prompt_set(cache, teacher, manifest, prompts)
        mended.append(name)
    return mended


def _stored_texts(folder: Path) -> PromptSet | None:
    """Return the texts that a prompt set holds, if they match their digests."""
    try:
        attributes = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        class_names, texts = read_array(folder, "class_names"), read_array(folder, "texts").tolist()
        label_ends = [[0] * len(row) for row in texts]
        cut_off: list[list[str]] = [[] for _ in texts]
        for cut in attributes.get("cuts", ()):
            # The same cut comes out again: no less is kept, and what was cut off is one piece.
            label_ends[cut["anchor"]][cut["template"]] = cut["kept"]
            cut_off[cut["anchor"]].append(texts[cut["anchor"]][cut["template"]][cut["kept"] :])
        return PromptSet(
            name=folder.name,
            class_names=tuple(class_names.tolist()),
            templates=tuple(attributes["templates"]),
            texts=tuple(tuple(row) for row in texts),
            label_ends=tuple(tuple(row) for row in label_ends),
            names=tuple(tuple(row) for row in cut_off),
            labelled=bool(attributes.get("labelled", True)),
        )
    except Exception:  # garbage of any kind
        return None


def _texts_of_file(name: str, spec: PromptOptions | None) -> PromptSet | None:
    """Return the set of this name from the recipe's prompt file, if it has it."""
    if spec is None:
        return None
    prompts = load_prompts(spec.file, spec.descriptions)
    sets = (prompt_set(prompts, found) for found in prompts.prompt_sets)
    return next((found for found in sets if found.name == name), None)


def _mend_captions(
    cache: Path,
    manifest: Mapping[str, Any],
    shards: Sequence[Shard],
    spec: CacheOptions,
    problems: Sequence[Problem],
    device: str,
) -> list[str]:
    """Embed damaged captions anew from the shards that they were read from; name them.

    A set stays as it is if its attributes do not tell which shards these were.
    """
    mended = []
    for name in _names(problems, "captions"):
        try:
            attributes = read_caption_attributes(cache / "captions" / name)
        except Damaged:
            continue
        split, read = attributes["split"], attributes["shards"]
        held = held_shards(cache, manifest, split, shards) if split in manifest["splits"] else []
        held = [item for item in held if item.as_mapping() in read]
        if [item.as_mapping() for item in held] != read:
            continue
        collected = collect_captions(held)
        made = remade(
            manifest,
            collected,
            attributes,
            device=device,
            teacher=lambda: live_teacher(cache, manifest, spec.teacher, device),
        )
        writer.drop_captions(cache, name)
        writer.publish_captions(cache, name, *made)
        mended.append(name)
    writer.sweep(cache)
    return mended


def _reseal_older(
    cache: Path,
    manifest: Mapping[str, Any],
    problems: Sequence[Problem],
    max_skip_fraction: float,
) -> None:
    """Write damaged seals of older generations anew; stage one seals the newest."""
    for generation in range(manifest["generation"]):
        place = f"index/{generation:06d}"
        if any(problem.place.startswith(place) for problem in problems):
            seal_cache(cache, read_manifest(cache, generation), max_skip_fraction)


def _check_mended(cache: Path) -> None:
    after = verify_cache(cache)
    if after.problems:
        raise LossesError(
            "\n".join(
                [
                    f"{cache}: what could be mended is; still wrong:",
                    *(f"  {problem.text()}" for problem in after.problems),
                ]
            )
        )
