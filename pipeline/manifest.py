"""Decides what a cache is made from; refuses to go on with one that was made from other things."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline import __version__, runtime
from pipeline.cache import layout, writer
from pipeline.cache.reader import read_manifest
from pipeline.decode import DecodePolicy
from pipeline.errors import CacheMismatchError
from pipeline.options import differences, to_mapping
from pipeline.schedule import EVAL, EvalSchedule, Schedule
from pipeline.shards import Shard
from pipeline.teacher import LOCAL_DIR

# Libraries whose code decides pixels or vectors.
_DECISIVE = ("torch", "open_clip_torch", "timm", "pillow", "simplejpeg", "numpy")


def plan_manifest(
    shards: Sequence[Shard],
    teacher: Mapping[str, Any],
    batch: Mapping[str, Any],
    schedule: Schedule,
    views: int,
    decode: DecodePolicy,
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the first manifest generation: every split its eval view, train also `views` more.

    teacher: its fingerprint. batch: size, threads and device, on which last bits of vectors depend.
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
            split: _split_plan(shards, split, schedule.name, views)
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
        },
    }
    return dict(json.loads(json.dumps(plan)))  # as it will read back: lists, not tuples


def agree(cache: Path, plan: Mapping[str, Any], shards: Sequence[Shard]) -> dict[str, Any]:
    """Write the manifest of a new cache, or return the one it has if nothing that matters differs.

    Raises CacheMismatchError listing each field with its old and new value.
    """
    try:
        writer.create_manifest(cache, plan)
    except FileExistsError:
        old = read_manifest(cache)
        if changed := _changed(cache, old, plan, shards):
            raise CacheMismatchError(
                f"{cache} was made from something else; nothing was touched. "
                "Give this work a new --cache, or put back what differs:",
                changed,
            ) from None
        return old
    return dict(plan)


def _split_plan(shards: Sequence[Shard], split: str, schedule: str, views: int) -> dict[str, Any]:
    ranges = {EVAL: [[0, 0]]}
    if split == "train":
        ranges[schedule] = [[0, views - 1]]
    return {
        "shards": [
            {"name": shard.name, "bytes": shard.size_bytes, "mtime_ns": shard.mtime_ns}
            for shard in shards
            if shard.split == split
        ],
        "views": ranges,
    }


def _changed(
    cache: Path, old: Mapping[str, Any], plan: Mapping[str, Any], shards: Sequence[Shard]
) -> list[tuple[str, Any, Any]]:
    changed: list[tuple[str, Any, Any]] = []
    for name in (*layout.FINGERPRINTED, "splits"):
        changed += [
            (f"{name}.{field}", before, after)
            for field, before, after in differences(_comparable(old, name), _comparable(plan, name))
        ]
    return changed or _changed_content(cache, old, shards)


def _comparable(manifest: Mapping[str, Any], name: str) -> Any:
    """Leave out what says nothing of content: a folder's path, a file's size and time."""
    value = json.loads(json.dumps(manifest[name]))
    if name == "teacher" and value["model"].startswith(LOCAL_DIR):
        value["model"] = LOCAL_DIR
    if name == "splits":
        for split in value.values():
            split["shards"] = {shard["name"]: "present" for shard in split["shards"]}
    return value


def _changed_content(
    cache: Path, old: Mapping[str, Any], shards: Sequence[Shard]
) -> list[tuple[str, Any, Any]]:
    """Compare each shard with what its published units saw; one without any may have been mended.

    A shard whose size and time are as they were is taken to be the same; one whose time alone
    differs is hashed.
    """
    times = {
        (split, shard["name"]): shard["mtime_ns"]
        for split, content in old["splits"].items()
        for shard in content["shards"]
    }
    changed: list[tuple[str, Any, Any]] = []
    for shard, seen in _published_shards(cache, old, shards):
        field = f"splits.{shard.split}.shards.{shard.name}"
        if shard.size_bytes != seen["bytes"]:
            changed.append((f"{field}.bytes", seen["bytes"], shard.size_bytes))
        elif times[shard.split, shard.name] != shard.mtime_ns:
            found = _sha256(shard.path)
            if found != seen["sha256"]:
                changed.append((f"{field}.sha256", seen["sha256"], found))
    return changed


def _published_shards(
    cache: Path, old: Mapping[str, Any], shards: Sequence[Shard]
) -> Iterator[tuple[Shard, Mapping[str, Any]]]:
    """Yield each shard of which a unit is published, with what that unit says it read."""
    fingerprint = layout.fingerprint(old)
    seen: dict[tuple[str, str], Mapping[str, Any]] = {}
    for unit in layout.planned_units(old):
        if (unit.split, unit.shard) not in seen:
            attributes = layout.unit_attributes(cache, unit, fingerprint)
            if attributes is not None:
                seen[unit.split, unit.shard] = attributes["shard"]
    for shard in shards:
        if (shard.split, shard.name) in seen:
            yield shard, seen[shard.split, shard.name]


def _sha256(path: Path) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
