"""Typed options: strict reading from mappings, writing back, naming differences."""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, dataclass_transform, get_args

from pipeline.errors import RecipeError

T = TypeVar("T")
ABSENT = "(absent)"  # stands in a list of differences for a field that one side lacks


@dataclass_transform(frozen_default=True, kw_only_default=True)
def options(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass whose unknown keys are errors."""
    # NaN and infinity are refused because every artifact keeps its options as JSON.
    cls.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def parse(cls: type[T], mapping: Mapping[str, Any], *, where: str) -> T:
    """Build `cls` from plain values; raises RecipeError listing every wrong key and value.

    `where` names the source ("recipe digits.yaml") for the message. Values are checked strictly:
    "3" and true are no numbers, 1.0 is no whole number; a whole number serves as a float.
    """
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(mapping, Mapping):
        raise RecipeError(f"{where}:\n  expected a mapping, found {mapping!r}")
    try:
        # Through JSON: strict mode would refuse a list for a tuple, and a mapping for options.
        text = json.dumps(mapping, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}:\n  {error}: write plain text, numbers and lists") from None
    try:
        return TypeAdapter(cls).validate_json(text, strict=True)
    except ValidationError as error:
        lines = [_explain(cls, fault) for fault in error.errors()]
        raise RecipeError("\n".join([f"{where}:", *lines])) from None


def to_mapping(value: Any) -> Any:
    """Return `value` (an options dataclass) as plain dicts, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_mapping(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_mapping(item) for item in value]
    return value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one level of dotted names; empty ones are values."""
    if prefix and isinstance(value, Mapping | list | tuple) and not value:
        return {prefix: value}
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """List (dotted field, old, new) wherever two nested values differ; absent is ABSENT."""
    old_flat, new_flat = flatten(old), flatten(new)
    return [
        (field, old_flat.get(field, ABSENT), new_flat.get(field, ABSENT))
        for field in sorted(old_flat.keys() | new_flat.keys())
        if old_flat.get(field, ABSENT) != new_flat.get(field, ABSENT)
    ]


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return a hint ("did you mean 'x'?", or the list of what is valid) for a mistyped word."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names)}"


def _explain(cls: type, fault: Any) -> str:
    """Put one validation fault in words."""
    path = [str(part) for part in fault["loc"]]
    field = ".".join(path)
    if fault["type"] == "unexpected_keyword_argument":
        valid = _field_names(cls, path[:-1])
        return f"  unknown key {field!r}: {nearest(path[-1], valid)}"
    if fault["type"] in {"missing", "missing_argument"}:
        return f"  {field!r} is required and was not given"
    if fault["type"] == "value_error":  # an options class's own words say what was found
        return f"  {field!r}: {fault['ctx']['error']}" if field else f"  {fault['ctx']['error']}"
    message = f"{fault['msg'][0].lower()}{fault['msg'][1:]}, found {fault['input']!r}"
    if isinstance(fault["input"], str) and re.fullmatch(
        r"[+-]?[\d.]+([eE][+-]?\d+)?", fault["input"]
    ):
        message += " as text; YAML takes 1.0e-3 for a number, not 1e-3 or a quoted one"
    return f"  {field!r}: {message}"


def _field_names(hint: Any, path: list[str]) -> list[str]:
    """Return the field names of the options class that `path` leads to, through any container."""
    if not dataclasses.is_dataclass(hint):
        inner = [item for item in get_args(hint) if dataclasses.is_dataclass(item)]
        return _field_names(inner[0], path[1:]) if inner else []
    hints = {f.name: f.type for f in dataclasses.fields(hint)}
    return _field_names(hints.get(path[0]), path[1:]) if path else list(hints)
