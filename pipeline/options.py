"""Typed options: strict reading from mappings, writing back, naming differences."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, dataclass_transform

from pipeline.errors import RecipeError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def options(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass whose unknown keys are errors."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def parse(cls: type[T], mapping: Mapping[str, Any], *, where: str) -> T:
    """Build `cls` from plain values; raises RecipeError listing every wrong key and value.

    `where` names the source ("recipe digits.yaml") for the message. Values are checked strictly:
    "3" is no number and 1.5 no whole number; a whole number serves as a float.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        # Through JSON types: lists become tuples, which plain strict mode refuses.
        return TypeAdapter(cls).validate_python(mapping)
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
    """Return nested mappings and lists as one level of dotted names."""
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
    """List (dotted field, old, new) wherever two nested values differ; absent is '(absent)'."""
    old_flat, new_flat = flatten(old), flatten(new)
    absent = "(absent)"
    return [
        (field, old_flat.get(field, absent), new_flat.get(field, absent))
        for field in sorted(old_flat.keys() | new_flat.keys())
        if old_flat.get(field, absent) != new_flat.get(field, absent)
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
    message = re.sub(r"^(Value|Assertion) error, ", "", fault["msg"])
    return f"  {field!r}: {message[0].lower()}{message[1:]}, found {fault['input']!r}"


def _field_names(cls: type, path: list[str]) -> list[str]:
    """Return the field names of the options class that `path` leads to."""
    hints = {f.name: f.type for f in dataclasses.fields(cls)}
    if not path:
        return list(hints)
    inner = hints.get(path[0])
    return _field_names(inner, path[1:]) if dataclasses.is_dataclass(inner) else []  # type: ignore[arg-type]
