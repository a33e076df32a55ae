"""Writes out what a prompt file leaves to the installed libraries: ImageNet's names and glosses."""

from collections.abc import Mapping
from typing import Any

from pipeline import imagenet
from pipeline.errors import DataError
from pipeline.options import nearest

_SOURCES = {"names_from": "open_clip", "descriptions_from": "timm", "templates_from": "open_clip"}


def written_out(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prompt file's mapping with names, descriptions and templates in place.

    names_from: open_clip gives every row without a name ImageNet-1K's at its `wnid`;
    descriptions_from: timm gives the gloss; a set's templates_from: open_clip gives the 80
    templates. Raises DataError for another source or id, LibraryError if the library is not there.
    """
    plain = {key: value for key, value in content.items() if key not in _SOURCES}
    _check_sources(content)
    rows = content.get("classes")
    if isinstance(rows, list) and ("names_from" in content or "descriptions_from" in content):
        plain["classes"] = _rows(rows, content)
    sets = content.get("prompt_sets")
    if isinstance(sets, Mapping):
        plain["prompt_sets"] = {name: _set(chosen) for name, chosen in sets.items()}
    return plain


def _check_sources(fields: Mapping[str, Any]) -> None:
    for key, source in _SOURCES.items():
        if key in fields and fields[key] != source:
            raise DataError(f"{key}: expected {source}, found {fields[key]!r}")


def _set(chosen: Any) -> Any:
    """Write a set out: a list is one of averaged templates."""
    if isinstance(chosen, list):
        return {"templates": chosen}
    if not isinstance(chosen, Mapping) or "templates_from" not in chosen:
        return chosen
    _check_sources(chosen)
    rest = {key: value for key, value in chosen.items() if key != "templates_from"}
    return {"templates": list(imagenet.templates()), **rest}


def _rows(rows: list[Any], content: Mapping[str, Any]) -> list[Any]:
    wnids = imagenet.synsets()
    for row in rows:
        if not isinstance(row, Mapping) or row.get("wnid") not in wnids:
            known = nearest(str(row), wnids[:3])
            raise DataError(f"classes: {row!r} has no wnid of ImageNet-1K ({known}, ...)")
    names = dict(zip(wnids, imagenet.class_names(), strict=True)) if "names_from" in content else {}
    listed = [row["wnid"] for row in rows]
    glosses = imagenet.glosses(listed) if "descriptions_from" in content else [None] * len(listed)
    return [_row(row, names, gloss) for row, gloss in zip(rows, glosses, strict=True)]


def _row(row: Mapping[str, Any], names: Mapping[str, str], gloss: str | None) -> dict[str, Any]:
    found = {key: value for key, value in row.items() if key != "wnid"}
    if row["wnid"] in names:
        found.setdefault("name", names[row["wnid"]])
    if gloss:
        found.setdefault("description", gloss)
    return found
