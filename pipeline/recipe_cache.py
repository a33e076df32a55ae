"""Opens a cache by a recipe: refuses what was made otherwise, finds the recipe's anchors in it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.anchors import cached_anchors, named_anchors
from pipeline.batches import check_cache
from pipeline.cache import layout
from pipeline.cache.reader import Anchors, TargetCache, no_anchors
from pipeline.errors import CacheMismatchError, LibraryError
from pipeline.options import differences
from pipeline.prompt_file import PromptFile, check_class_order, load_prompts
from pipeline.prompts import PromptOptions, prompt_set
from pipeline.recipe import Recipe
from pipeline.shards import Shard
from pipeline.teacher import LOCAL_DIR
from pipeline.teacher.contract import OPEN_CLIP

_log = logging.getLogger(__name__)


def open_cache(path: Path, recipe: Recipe, generation: int | None) -> TargetCache:
    """Open the train split under the recipe's schedule; raises CacheMismatchError with a diff."""
    cache = TargetCache.open(path, "train", generation=generation)
    if recipe.schedule.name in cache.manifest["splits"]["train"]["views"]:
        cache = TargetCache.open(path, "train", recipe.schedule.name, generation=generation)
    check_cache(cache, recipe.schedule, recipe.views, recipe.decode)
    found = _named_teacher(cache.manifest["teacher"])
    wanted = _named_teacher(vars(recipe.teacher))
    if changed := differences({"teacher": found}, {"teacher": wanted}):
        raise CacheMismatchError(f"{path} is of another teacher than the recipe's:", changed)
    return cache


def open_further(
    paths: Sequence[Path], recipe: Recipe, first: TargetCache, anchors: Anchors
) -> list[tuple[TargetCache, Anchors]]:
    """Open the caches of the recipe's further teachers, each with its anchors of the same classes.

    Raises CacheMismatchError unless there is one cache for each of `further_teachers`, in order.
    """
    wanted = recipe.further_teachers
    if len(paths) != len(wanted):
        raise CacheMismatchError(
            f"the recipe names {len(wanted)} further teachers, {len(paths)} further caches were "
            "given: give one --cache for `teacher`, then one for each of `further_teachers`",
            [],
        )
    found = []
    for path, teacher in zip(paths, wanted, strict=True):
        cache = open_cache(path, replace(recipe, teacher=teacher), None)
        theirs = named_anchors(path, cache.manifest, anchors.name)
        if theirs.class_names != anchors.class_names:
            raise CacheMismatchError(
                f"{path}: prompt set {anchors.name} is not of the classes that it has in "
                f"{first.path}: embed it anew from the same prompt file",
                [("classes", len(anchors.class_names), len(theirs.class_names))],
            )
        found.append((cache, theirs))
    return found


def prompt_sets(
    spec: PromptOptions | None, cache: TargetCache, shards: Sequence[Shard]
) -> dict[str, Anchors]:
    """Return the cached anchors by their use, held against the prompt file if they are its own.

    Empty ones, of no class, if the cache's teacher reads no text.
    """
    if spec is None or not layout.reads_text(cache.manifest):
        return dict.fromkeys(("anchors", "zeroshot"), no_anchors(cache.dim))
    prompts = _readable_prompts(spec)
    if prompts is not None:
        check_class_order(prompts, shards)
    return {
        use: _anchors(prompts or Path(spec.file).stem, name, cache)
        for use, name in spec.uses.items()
    }


def _readable_prompts(spec: PromptOptions) -> PromptFile | None:
    """Return the prompt file, or None if it takes a library that stage two does without."""
    try:
        return load_prompts(spec.file, spec.descriptions)
    except LibraryError as error:
        _log.warning("cached anchors were not held against their prompt file: %s", error)
        return None


def _anchors(prompts: PromptFile | str, name: str, cache: TargetCache) -> Anchors:
    """Return a set of the prompt file (or of its name), or any of the cache by its whole name."""
    known = layout.anchor_names(cache.path)
    if isinstance(prompts, str):
        name = name if name in known else f"{prompts}-{name}"
        return named_anchors(cache.path, cache.manifest, name)
    if name not in prompts.prompt_sets and name in known:
        return named_anchors(cache.path, cache.manifest, name)
    return cached_anchors(cache.path, cache.manifest, prompt_set(prompts, name))


def _named_teacher(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Name a teacher as a recipe does; where a folder lies says nothing of what it holds."""
    names = ["model", "pretrained", "precision"]
    if fields.get("kind", OPEN_CLIP) != OPEN_CLIP:
        names += ["feature_point", "top_k"]
    named = {name: fields[name] for name in names}
    for name in ("model", "pretrained"):
        if (named[name] or "").startswith(LOCAL_DIR):
            named[name] = LOCAL_DIR
    return named


def known_teacher(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells a teacher from another of the same name or dimension."""
    return {name: manifest["teacher"][name] for name in ("weights_sha256", "preprocess", "dim")}
