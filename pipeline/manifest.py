"""Decides what a cache is made from; refuses to go on with one that was made from other things."""

import json
import platform
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline import __version__, runtime
from pipeline.cache import layout, writer
from pipeline.cache.reader import read_manifest
from pipeline.errors import CacheMismatchError
from pipeline.options import differences, to_mapping
from pipeline.schedule import EVAL, EvalSchedule, Schedule
from pipeline.shards import Shard
from pipeline.teacher import LOCAL_DIR, Teacher, TeacherOptions
from pipeline.views import DecodePolicy

# Libraries whose code decides pixels or vectors.
_DECISIVE = ("torch", "open_clip_torch", "timm", "pillow", "numpy")


def plan_manifest(
    shards: Sequence[Shard],
    teacher: Teacher,
    spec: TeacherOptions,
    schedule: Schedule,
    views: int,
    decode: DecodePolicy,
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the first manifest generation: every split its eval view, train also `views` more."""
    evaluation = EvalSchedule(
        resize_mode=teacher.preprocess.resize_mode, interpolation=teacher.preprocess.interpolation
    )
    installed = runtime.versions()
    plan = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "generation": 0,
        "teacher": teacher.fingerprint(),
        "schedules": {
            EVAL: {"kind": EVAL, **to_mapping(evaluation)},
            schedule.name: {"kind": "crops", **to_mapping(schedule)},
        },
        "decode": to_mapping(decode),
        "batch": {"size": spec.batch_size, "threads": spec.threads},
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
    if not changed:
        changed = _changed_content(cache, old, shards)
    return changed


def _comparable(manifest: Mapping[str, Any], name: str) -> Any:
    """Leave out what says nothing of content: a folder's path, a file's time."""
    value = json.loads(json.dumps(manifest[name]))
    if name == "teacher" and value["model"].startswith(LOCAL_DIR):
        value["model"] = LOCAL_DIR
    if name == "splits":
        for split in value.values():
            split["shards"] = {shard["name"]: shard["bytes"] for shard in split["shards"]}
    return value


def _changed_content(
    cache: Path, old: Mapping[str, Any], shards: Sequence[Shard]
) -> list[tuple[str, Any, Any]]:
    """Hash the shards whose time alone changed, and compare with what published units recorded."""
    times = {
        (split, shard["name"]): shard["mtime_ns"]
        for split, content in old["splits"].items()
        for shard in content["shards"]
    }
    changed: list[tuple[str, Any, Any]] = []
    for shard in shards:
        if times[shard.split, shard.name] == shard.mtime_ns:
            continue
        recorded = _recorded_sha256(cache, old, shard)
        if recorded and (found := _sha256(shard.path)) != recorded:
            changed.append((f"splits.{shard.split}.{shard.name}.sha256", recorded, found))
    return changed


def _recorded_sha256(cache: Path, old: Mapping[str, Any], shard: Shard) -> str | None:
    for unit in layout.planned_units(old):
        if (unit.split, unit.shard) == (shard.split, shard.name):
            attributes = layout.unit_attributes(cache, unit, layout.fingerprint(old))
            if attributes is not None:
                return str(attributes["shard"]["sha256"])
    return None


def _sha256(path: Path) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
