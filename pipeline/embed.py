"""Stage one: streams shards through the teacher and leaves a sealed cache of targets."""

import contextlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import runtime
from pipeline.cache import layout, writer
from pipeline.cache.captions import read_captions
from pipeline.cache.reader import read_manifest
from pipeline.cache.seal import SplitCounts, seal_cache
from pipeline.caption_sets import add_captions, remove_captions
from pipeline.cluster import HERE, Place, check_place
from pipeline.decode import DecodePolicy
from pipeline.errors import LossesError
from pipeline.making import make_units, renderers_of
from pipeline.manifest import Published, agree, plan_manifest, published_units
from pipeline.options import options
from pipeline.prompt_file import check_class_order, load_prompts
from pipeline.prompts import PromptOptions, PromptSet, prompt_set
from pipeline.resident import resident_fingerprint, resident_teacher
from pipeline.schedule import Schedule
from pipeline.shards import Shard
from pipeline.teacher import TeacherOptions, check_teacher
from pipeline.texts import embed_prompt_set
from pipeline.unit import UnitJob

_log = logging.getLogger(__name__)


@options
class CacheOptions:
    """Everything that decides what stage one writes."""

    teacher: TeacherOptions
    schedule: Schedule
    views: int
    prompts: PromptOptions | None  # None: of a teacher that reads no text
    decode: DecodePolicy
    captions: bool = False  # keep the captions of every split
    max_skip_fraction: float = 0.01


@dataclass
class CacheReport:
    """What one run of stage one did; counts are of the whole generation."""

    cache: str
    generation: int
    newest_generation: int  # a cache that has grown since holds more than was asked for
    units: int
    made: int
    views: int
    seconds: float
    anchors: list[str] = field(default_factory=list)
    counts: dict[str, SplitCounts] = field(default_factory=dict)

    def as_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        counts = {
            split: {"seen": count.seen, "skipped": count.skipped, "reasons": dict(count.reasons)}
            for split, count in self.counts.items()
        }
        return {**vars(self), "counts": counts}

    def text(self) -> str:
        """Say what was done, and every reason for which samples were skipped."""
        lines = [
            f"cache {self.cache}: {self.units} units ({self.made} made now, {self.views} views in "
            f"{self.seconds:.1f} s), sealed; anchors: {', '.join(self.anchors)}"
        ]
        for split, count in self.counts.items():
            reasons = "".join(f", {reason} {n}" for reason, n in count.reasons.most_common())
            lines.append(f"  {split}: {count.seen} samples, {count.skipped} skipped{reasons}")
        if self.newest_generation > self.generation:
            lines.append(
                f"  this is generation {self.generation}, as was asked for; the cache has grown to "
                f"generation {self.newest_generation} since"
            )
        return "\n".join(lines)


def build_cache(
    cache: Path,
    shards: Sequence[Shard],
    spec: CacheOptions,
    *,
    recipe: Mapping[str, Any],
    place: Place = HERE,
    extend: bool = False,
    views_per_unit: int | None = None,
    redo: Collection[str] = (),
) -> CacheReport:
    """Make, or go on making, the cache of these shards; publish units, anchors and the seal.

    place: where units are made; it changes no number. extend: add what a begun cache lacks as its
    next generation. views_per_unit: the most views of one unit, by default all; units that a begun
    cache has planned keep their views. redo: names of published units to make anew, once the cache
    is known to be of this recipe. Raises CacheMismatchError if the cache was made from something
    else, DataError or TeacherError before anything is written, LossesError if units failed or too
    many samples were skipped: the rest is published all the same; StorageError or ClusterError
    where going on makes no sense. A rerun redoes only what is missing.
    """
    began, device = time.monotonic(), place.device
    check_place(place)
    sets, named = _prompt_sets(spec, shards)
    check_teacher(spec.teacher)
    writer.check_place(cache)
    with writer.exclusive(cache):
        writer.sweep(cache)
        plan = _plan(shards, spec, device, recipe, named, views_per_unit)
        agreed = agree(cache, plan, shards, extend=extend)
        manifest = agreed.manifest
        for item in sets:
            embed_prompt_set(cache, resident_teacher(spec.teacher, device), manifest, item)
        jobs = _missing(cache, manifest, agreed.published, shards, spec, place, redo)
        _unseal(cache, jobs)
        done = make_units(jobs, manifest, place)
        counts = seal_cache(cache, manifest, spec.max_skip_fraction)
        _seal_others(cache, manifest["generation"], spec.max_skip_fraction)
        writer.sweep(cache)  # of workers that died on the way
    if spec.captions and agreed.newest == manifest["generation"]:
        _keep_captions(cache, manifest, shards, device)
    return CacheReport(
        cache=str(cache),
        generation=manifest["generation"],
        newest_generation=agreed.newest,
        units=len(layout.planned_units(manifest)),
        made=len(done),
        views=sum(report.views for report in done),
        seconds=time.monotonic() - began,
        anchors=[item.name for item in sets],
        counts=counts,
    )


def _keep_captions(
    cache: Path, manifest: Mapping[str, Any], shards: Sequence[Shard], device: str
) -> None:
    """Add the captions of every split; where shards have come to it since, read them anew.

    Runs that are pinned to an older generation find theirs among them.
    """
    for split, content in manifest["splits"].items():
        if split in layout.caption_names(cache):
            known = {shard["name"] for shard in read_captions(cache, split).shards}
            if not {shard["name"] for shard in content["shards"]} <= known:
                _log.info("captions %s: the split has grown, they are read anew", split)
                remove_captions(cache, split)
        add_captions(cache, shards, split=split, device=device)


def _prompt_sets(
    spec: CacheOptions, shards: Sequence[Shard]
) -> tuple[list[PromptSet], dict[str, str]]:
    """Return every set of the prompt file, and the whole names of those that the recipe uses.

    A mistyped name is told now, not by training. A teacher that reads no text embeds none.
    """
    if spec.prompts is None:
        return [], {}
    prompts = load_prompts(spec.prompts.file, spec.prompts.descriptions)
    check_class_order(prompts, shards)
    named = {use: prompt_set(prompts, name).name for use, name in spec.prompts.uses.items()}
    if not spec.teacher.reads_text:
        return [], {}
    return [prompt_set(prompts, name) for name in prompts.prompt_sets], named


def _plan(
    shards: Sequence[Shard],
    spec: CacheOptions,
    device: str,
    recipe: Mapping[str, Any],
    named: Mapping[str, str],
    views_per_unit: int | None,
) -> dict[str, Any]:
    batch = {
        "size": spec.teacher.batch_size,
        "threads": spec.teacher.threads,
        "device": runtime.pick_device(device).type,
    }
    teacher = resident_fingerprint(spec.teacher, device)
    return plan_manifest(
        shards,
        teacher,
        batch,
        spec.schedule,
        spec.views,
        spec.decode,
        recipe,
        views_per_unit=views_per_unit,
        prompt_sets=named,
    )


def _missing(
    cache: Path,
    manifest: Mapping[str, Any],
    published: Published,
    shards: Sequence[Shard],
    spec: CacheOptions,
    place: Place,
    redo: Collection[str],
) -> list[UnitJob]:
    """Return a job for every planned unit that is not published, or to be redone.

    What stands in the way is moved off.
    """
    fingerprint = layout.fingerprint(manifest)
    by_name = {(shard.split, shard.name): shard for shard in shards}
    renderers = renderers_of(place, shards)
    jobs = []
    for unit in layout.planned_units(manifest):
        if unit in published and unit.name not in redo:
            continue
        if (cache / "units" / unit.name).exists():
            writer.drop_unit(cache, unit.name)
        jobs.append(
            UnitJob(
                cache=cache,
                unit=unit,
                shard=by_name[unit.split, unit.shard],
                teacher=spec.teacher,
                device=place.device,
                renderers=renderers,
                teacher_digest=layout.teacher_digest(manifest["teacher"]),
                fingerprint=fingerprint,
                schedule=manifest["schedules"][unit.schedule],
                decode=spec.decode,
            )
        )
    return jobs


def _unseal(cache: Path, jobs: Sequence[UnitJob]) -> None:
    """Take away the seal of every generation that lacks a unit which is to be made."""
    missing = {job.unit for job in jobs}
    for number in layout.generations(cache) if jobs else []:
        if not missing.isdisjoint(layout.planned_units(read_manifest(cache, number))):
            writer.unseal(cache, number)


def _seal_others(cache: Path, generation: int, max_skip_fraction: float) -> None:
    """Seal what else is complete: generations share units, and runs are pinned to one each."""
    for number in layout.generations(cache):
        if number == generation or layout.is_sealed(cache, number):
            continue
        manifest = read_manifest(cache, number)
        if len(published_units(cache, manifest)) == len(layout.planned_units(manifest)):
            with contextlib.suppress(LossesError):  # its skips stop its own command alone
                seal_cache(cache, manifest, max_skip_fraction)
