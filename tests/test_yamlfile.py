"""YAML files are mappings in which every key counts."""

from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.yamlfile import read_yaml


def test_a_mapping_is_read_as_plain_values(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\nb: {c: [x, 2.5, null]}\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml", where="it") == {"a": 1, "b": {"c": ["x", 2.5, None]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3 gives 'a' a second time"),
        ("a:\n  - {b: 1, b: 2}\n", "line 2 gives 'b' a second time"),
        ("[1, 2]", "expected a mapping, found list"),
        ("", "expected a mapping, found NoneType"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be read"),
        ("a: [", "cannot be read"),
        ("? [a]\n: b\n", "cannot be read"),
    ],
)
def test_anything_else_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"^it.*{message}"):
        read_yaml(tmp_path / "a.yaml", where="it")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="it cannot be read"):
        read_yaml(tmp_path / "none.yaml", where="it")
