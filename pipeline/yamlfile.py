"""Reads YAML files as mappings in which no key is given twice."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RecipeError


def read_yaml(path: Path, *, where: str) -> dict[str, Any]:
    """Return a file's mapping; raises RecipeError, which begins with `where`, for anything else."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{where} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{where}: expected a mapping, found {type(content).__name__}")
    return content


class _StrictLoader(yaml.SafeLoader):
    """Plain values only; YAML itself would keep the last of two equal keys and say nothing."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node.value, str) and key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line} gives {key_node.value!r} a second time")
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)
