"""Brings back what a cache was made with: its options, and its teacher by the manifest."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pipeline.cache import layout
from pipeline.embed import CacheOptions
from pipeline.errors import CacheMismatchError
from pipeline.options import differences, parse
from pipeline.resident import resident_fingerprint, resident_teacher
from pipeline.teacher import Teacher, TeacherOptions, check_teacher


def recorded_options(
    cache: Path,
    manifest: Mapping[str, Any],
    *,
    teacher: str | None = None,
    prompts: str | None = None,
) -> CacheOptions:
    """Return the options of the recipe that a manifest keeps.

    teacher, prompts: where the teacher's model and the prompt file lie today, if they have moved.
    Raises RecipeError if the manifest keeps no whole recipe.
    """
    recipe = manifest["made_with"]["recipe"]
    known = {
        field.name: recipe[field.name] for field in fields(CacheOptions) if field.name in recipe
    }
    options = parse(CacheOptions, known, where=f"the recipe in the manifest of {cache}")
    if teacher is not None:
        options = replace(options, teacher=replace(options.teacher, model=teacher))
    if prompts is not None and options.prompts is not None:
        options = replace(options, prompts=replace(options.prompts, file=prompts))
    return options


def live_teacher(
    cache: Path, manifest: Mapping[str, Any], spec: TeacherOptions, device: str
) -> Teacher:
    """Load the teacher of a cache; raises CacheMismatchError if it is another one."""
    check_teacher(spec)
    found, known = resident_fingerprint(spec, device), manifest["teacher"]
    if layout.teacher_digest(found) != layout.teacher_digest(known):
        apart = {"model": None, "pretrained": None}
        raise CacheMismatchError(
            f"{cache} was not made by the teacher in {spec.model}; name the right one with "
            "--teacher:",
            differences({**known, **apart}, {**found, **apart}),
        )
    return resident_teacher(spec, device)
