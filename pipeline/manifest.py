"""Decides what a cache is made from; refuses to go on with one that was made from other things."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__, runtime
from pipeline.cache import layout, writer
from pipeline.cache.reader import read_manifest
from pipeline.decode import DecodePolicy
from pipeline.errors import CacheMismatchError
from pipeline.options import ABSENT, differences, to_mapping
from pipeline.schedule import EVAL, EvalSchedule, Schedule
from pipeline.shards import Shard, sha256_of
from pipeline.teacher import LOCAL_DIR

# Libraries whose code decides pixels or vectors.
_DECISIVE = ("torch", "open_clip_torch", "timm", "pillow", "simplejpeg", "numpy")

Published = Mapping[layout.UnitId, Mapping[str, Any]]
_Change = tuple[str, Any, Any]


@dataclass(frozen=True)
class Agreed:
    """The manifest generation to work by, and what is published of it."""

    manifest: dict[str, Any]
    published: Published
    newest: int  # the cache's newest generation


def plan_manifest(
    shards: Sequence[Shard],
    teacher: Mapping[str, Any],
    batch: Mapping[str, Any],
    schedule: Schedule,
    views: int,
    decode: DecodePolicy,
    recipe: Mapping[str, Any],
    *,
    views_per_unit: int | None = None,
    prompt_sets: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the first manifest generation: every split its eval view, train also `views` more.

    teacher: its fingerprint. batch: size, threads and device, on which last bits of vectors depend.
    views_per_unit: the most views of one unit; by default a unit has all of them. prompt_sets: the
    whole names of the recipe's `anchors` and `zeroshot`; class i of the latter is label i.
    """
    evaluation = EvalSchedule(
        resize_mode=teacher["preprocess"]["resize_mode"],
        interpolation=teacher["preprocess"]["interpolation"],
    )
    installed = runtime.versions()
    plan = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "generation": 0,
        "teacher": teacher,
        "schedules": {
            EVAL: {"kind": EVAL, **to_mapping(evaluation)},
            schedule.name: {"kind": "crops", **to_mapping(schedule)},
        },
        "decode": to_mapping(decode),
        "batch": batch,
        "libraries": {name: installed[name] for name in _DECISIVE if name in installed},
        "splits": {
            split: _split_plan(shards, split, schedule.name, views, views_per_unit or views)
            for split in dict.fromkeys(shard.split for shard in shards)
        },
        "param_columns": list(layout.PARAM_COLUMNS),
        "sample_columns": list(layout.SAMPLE_COLUMNS),
        "made_with": {
            "beamclip": __version__,
            "commit": runtime.git_commit(),
            "versions": installed,
            "machine": platform.machine(),
            "recipe": recipe,
            "prompt_sets": dict(prompt_sets or {}),
        },
    }
    return dict(json.loads(json.dumps(plan)))  # as it will read back: lists, not tuples


def agree(
    cache: Path, plan: Mapping[str, Any], shards: Sequence[Shard], *, extend: bool = False
) -> Agreed:
    """Return the manifest generation that a plan asks for; write it if the cache is to have it.

    A cache of several generations is asked for any of them by its shards and views: the newest that
    matches is taken. With `extend`, a plan that only adds to the newest one becomes the next.
    Raises CacheMismatchError listing each field with its old and new value.
    """
    while True:
        known = layout.generations(cache)
        try:
            return _agree_once(cache, known, plan, shards, extend)
        except FileExistsError:
            if layout.generations(cache) == known:
                raise
            # Another writer was first: agree with what that wrote.


def _agree_once(
    cache: Path,
    known: Sequence[int],
    plan: Mapping[str, Any],
    shards: Sequence[Shard],
    extend: bool,
) -> Agreed:
    if not known:
        writer.create_manifest(cache, plan)
        return Agreed(dict(plan), published_units(cache, plan), newest=0)
    manifests = [read_manifest(cache, number) for number in known]
    newest = manifests[-1]
    asked = next((old for old in reversed(manifests) if not _changed_splits(old, plan)), None)
    if changed := _changed_fields(newest, plan):
        splits = [] if asked else _changed_splits(newest, plan)
        raise CacheMismatchError(_made_from_else(cache), [*changed, *splits])
    if asked is None:
        _check_growth(cache, _changed_splits(newest, plan), extend)
    published = published_units(cache, asked or newest)
    if edited := _changed_content(asked or newest, published, shards):
        raise CacheMismatchError(_made_from_else(cache), edited)
    if asked is not None:
        return Agreed(asked, published, newest=newest["generation"])
    manifest = _extended(newest, plan)
    writer.create_manifest(cache, manifest)
    return Agreed(manifest, published_units(cache, manifest), newest=manifest["generation"])


def published_units(cache: Path, manifest: Mapping[str, Any]) -> Published:
    """Return every planned unit that is complete, with the name, bytes and sha256 of its shard."""
    fingerprint = layout.fingerprint(manifest)
    published = {}
    for unit in layout.planned_units(manifest):
        attributes = layout.unit_attributes(cache, unit, fingerprint)
        if attributes is not None:
            published[unit] = attributes["shard"]
    return published


def _check_growth(cache: Path, changed: list[_Change], extend: bool) -> None:
    """Raise CacheMismatchError unless what differs is additions alone, and they are wanted."""
    if not all(_is_addition(old, new) for _, old, new in changed):
        raise CacheMismatchError(_made_from_else(cache), changed)
    if not extend:
        raise CacheMismatchError(
            f"{cache} holds less than is asked for; nothing was touched. Run again with --extend "
            "to add what it lacks, and leave what it has as it is:",
            changed,
        )


def _made_from_else(cache: Path) -> str:
    return (
        f"{cache} was made from something else; nothing was touched. A cache may only grow "
        "(--extend), by shards and views. Give this work a new --cache, or put back what differs:"
    )


def _is_addition(old: Any, new: Any) -> bool:
    """Tell whether a field of the splits is there for the first time, or more views of one kind."""
    return bool(old == ABSENT or (isinstance(old, int) and isinstance(new, int) and new > old))


def _extended(newest: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the next generation: what the newest holds stands as it is, the rest is added."""
    splits = {
        split: _grown(newest["splits"].get(split, {"shards": [], "views": {}}), content)
        for split, content in plan["splits"].items()
    }
    return {**plan, "generation": newest["generation"] + 1, "splits": splits}


def _grown(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a split's shards and view ranges; ranges that units were made by stay."""
    known = {shard["name"]: shard for shard in old["shards"]}
    views = {}
    for schedule, ranges in new["views"].items():
        kept = old["views"].get(schedule, [])
        after = layout.num_views(kept) if kept else 0
        added = [[max(first, after), last] for first, last in ranges if last >= after]
        views[schedule] = [*kept, *added]
    return {"shards": [known.get(s["name"], s) for s in new["shards"]], "views": views}


def _split_plan(
    shards: Sequence[Shard], split: str, schedule: str, views: int, views_per_unit: int
) -> dict[str, Any]:
    ranges = {EVAL: [[0, 0]]}
    if split == "train":
        ranges[schedule] = [
            [first, min(first + views_per_unit, views) - 1]
            for first in range(0, views, views_per_unit)
        ]
    return {
        "shards": [
            {"name": shard.name, "bytes": shard.size_bytes, **shard.version}
            for shard in shards
            if shard.split == split
        ],
        "views": ranges,
    }


def _changed_fields(old: Mapping[str, Any], plan: Mapping[str, Any]) -> list[_Change]:
    """Compare what decides the bytes of every unit."""
    return [
        (f"{name}.{field}", before, after)
        for name in layout.FINGERPRINTED
        for field, before, after in differences(_comparable(old, name), _comparable(plan, name))
    ]


def _comparable(manifest: Mapping[str, Any], name: str) -> Any:
    """Leave out where a teacher's folder lies, which says nothing of what it holds."""
    value = json.loads(json.dumps(manifest[name]))
    for field in ("model", "pretrained") if name == "teacher" else ():
        if (value[field] or "").startswith(LOCAL_DIR):
            value[field] = LOCAL_DIR
    return value


def _changed_splits(old: Mapping[str, Any], plan: Mapping[str, Any]) -> list[_Change]:
    """Compare names of shards and numbers of views; not how views are cut into units."""
    return [
        (f"splits.{field}", before, after)
        for field, before, after in differences(_coverage(old), _coverage(plan))
    ]


def _coverage(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        split: {
            "shards": {shard["name"]: "present" for shard in content["shards"]},
            "views": {name: layout.num_views(ranges) for name, ranges in content["views"].items()},
        }
        for split, content in manifest["splits"].items()
    }


def _changed_content(
    old: Mapping[str, Any], published: Published, shards: Sequence[Shard]
) -> list[_Change]:
    """Compare each shard with what its published units saw; one without any may have been mended.

    A shard whose size and time (or ETag) are as they were is taken to be the same; one whose time
    alone differs is hashed.
    """
    versions = {
        (split, shard["name"]): {key: shard[key] for key in ("mtime_ns", "etag") if key in shard}
        for split, content in old["splits"].items()
        for shard in content["shards"]
    }
    first_seen: dict[tuple[str, str], Mapping[str, Any]] = {}
    for unit, seen in published.items():
        first_seen.setdefault((unit.split, unit.shard), seen)
    changed: list[_Change] = []
    for shard in shards:
        place = shard.split, shard.name
        if place not in first_seen:
            continue
        field, seen = f"splits.{shard.split}.shards.{shard.name}", first_seen[place]
        if shard.size_bytes != seen["bytes"]:
            changed.append((f"{field}.bytes", seen["bytes"], shard.size_bytes))
        elif versions[place] != shard.version and (found := sha256_of(shard)) != seen["sha256"]:
            changed.append((f"{field}.sha256", seen["sha256"], found))
    return changed
