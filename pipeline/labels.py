"""Tells which prompt sets of a cache name the classes that its labels count."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cache import layout
from pipeline.cache.reader import Anchors, read_anchors
from pipeline.errors import CacheError, DataError
from pipeline.templates import as_read

_log = logging.getLogger(__name__)


def own_set(cache: Path, manifest: Mapping[str, Any]) -> Anchors | None:
    """Return the zero-shot set that a cache was made with: its class i is what label i means.

    None if the set is not there, cannot be read, or (in a cache that does not record its whole
    name) might be any of several.
    """
    made_with = manifest["made_with"]
    recipe = made_with.get("recipe", {}).get("prompts") or {}
    name = made_with.get("prompt_sets", {}).get("zeroshot")
    if name is None and "zeroshot" in recipe:
        name = _whole_name(layout.anchor_names(cache), recipe)
    try:
        return read_anchors(cache, name) if name is not None else None
    except CacheError:
        return None


def _whole_name(known: Sequence[str], recipe: Mapping[str, Any]) -> str | None:
    short, dataset = recipe["zeroshot"], Path(str(recipe.get("file", ""))).stem
    found = [name for name in known if name == short or name.endswith(f"-{short}")]
    if f"{dataset}-{short}" in found:
        return f"{dataset}-{short}"
    return found[0] if len(found) == 1 else None


def foreign(anchors: Anchors, own: Anchors | None) -> str | None:
    """Return why labels are not places among the classes of a prompt set, or None if they are."""
    if own is None:
        return "the cache's own zero-shot set is not there, so nothing says what its labels mean"
    names, theirs = (list(dict.fromkeys(item.class_names)) for item in (anchors, own))
    for label, (name, other) in enumerate(zip(names, theirs)):  # noqa: B905
        if as_read(name) != as_read(other):
            return f"label {label} is {other!r} in {own.name}, class {label} here {name!r}"
    if len(names) != len(theirs):
        return f"it has {len(names)} classes, {own.name}, which names the labels, {len(theirs)}"
    return None


def warn_if_foreign(anchors: Anchors, own: Anchors | None) -> None:
    """Warn of a set by which labels are scored, and which may name other classes than theirs."""
    if why := foreign(anchors, own):
        _log.warning("zero-shot set %s: %s; check that they mean the same", anchors.name, why)


def check_named(anchors: Anchors, known: Sequence[Anchors | None]) -> None:
    """Raise DataError unless a prompt set has the classes of one that is known to name labels."""
    reasons = [foreign(anchors, own) for own in known]
    if None not in reasons:
        raise DataError(
            f"prompt set {anchors.name} does not name the classes of these labels ({reasons[0]}): "
            "a zero-shot score by it would mean nothing"
        )
