"""The README is true: its commands exist, its table is the cache, its recipe loads."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr

from pipeline.cache import layout
from pipeline.cache.reader import read_manifest
from pipeline.prompts import load_sets
from pipeline.recipe import load_recipe, recipe_from
from tests.conftest import Invoke

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATA_README = (ROOT / "data/README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def table_rows() -> list[tuple[str, str]]:
    """Return (place, array or file) of each row of the table of the cache on disk."""
    section = README.split("## The cache on disk")[1].split("\n## ")[0]
    rows, place = [], ""
    for line in section.splitlines():
        cells = [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and cells[0] != "where" and not cells[0].startswith("---"):
            place = cells[0] or place
            rows.append((place, cells[1]))
    return rows


def test_bare_zarr_and_numpy_find_everything_that_the_table_names(captioned_cache: Path) -> None:
    rows = table_rows()
    groups = {
        "units": layout.UNIT_ARRAYS,
        "anchors": layout.ANCHOR_ARRAYS,
        "captions": layout.CAPTION_ARRAYS,
    }
    for parent, arrays in groups.items():
        named = {name for place, name in rows if place.startswith(parent)}
        assert named == {*arrays, "attributes"}
    for place, name in rows:
        if place.startswith(tuple(groups)):
            parent = zarr.open_group(captioned_cache / place.split("/")[0], mode="r")
            assert list(parent.groups())
            for _, group in parent.groups():
                assert name == "attributes" or name in group, (place, name)
        elif "<split>" in name:
            for column in layout.INDEX_COLUMNS:
                assert column in README
                assert np.load(captioned_cache / place / f"train.{column}.npy").shape == (24,)
        else:
            assert (captioned_cache / place / name).exists(), (place, name)


def test_the_number_of_view_parameters_is_the_one_in_the_table(sealed_cache: Path) -> None:
    assert f"[n,V,{len(read_manifest(sealed_cache)['param_columns'])}]" in README


def test_the_python_lines_run(sealed_cache: Path) -> None:
    (code,) = blocks("python")
    code = code.replace("data/cache/digits", str(sealed_cache))
    code = code.replace("view(3)", "view(1)").replace("digits-cpa", "shapes-context")
    names: dict[str, object] = {}
    exec(code, names)  # the block as a reader would paste it
    assert len(names["cache"]) == 24  # type: ignore[arg-type]


COMMANDS = [
    line.split("#")[0].split()
    for block in (*blocks("sh"), *re.findall(r"```sh\n(.*?)```", DATA_README, flags=re.DOTALL))
    for line in block.splitlines()
    if line.removeprefix(".venv/bin/").startswith("beamclip ")
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[1:3]))
def test_every_command_and_option_exists(beamclip: Invoke, words: list[str]) -> None:
    groups = ("data", "teacher", "text-encoder", "anchors", "captions", "cache")
    depth = 2 if words[1] in groups else 1
    helped = beamclip(*words[1 : 1 + depth], "--help")
    assert helped.code == 0, helped.err
    for option in (word for word in words if word.startswith("--")):
        assert option in helped.out


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    wanted = set(re.findall(r"make ([a-z][a-z-]+)", README))
    assert {"probe", "test"} <= wanted
    for target in wanted:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_fields_shown_for_a_recipe_load() -> None:
    snippet, alone, _ = blocks("yaml")
    fields = {**load_recipe("digits").resolved(), **yaml.safe_load(snippet)}
    assert recipe_from(fields, where="README").teacher.model == "ViT-B-16-quickgelu"
    for told in (alone, alone.replace("# or", "teacher")):
        fields |= {"losses": {"ism": {}}, **yaml.safe_load(told)}
        assert not recipe_from(fields, where="README").teacher.reads_text


def test_the_fields_shown_for_a_prompt_file_load(tmp_path: Path) -> None:
    *_, snippet = blocks("yaml")
    (tmp_path / "shown.yaml").write_text(f"dataset: shown\n{snippet}", encoding="utf-8")
    texts = {item.name: item.texts for item in load_sets(str(tmp_path / "shown.yaml"))}
    assert texts["shown-plain"] == (("A photo of a crane.",), ("A photo of trousers.",))
    assert texts["shown-cpa"][0][1] == "A photo of a crane. Long-legged and long-necked."
    assert len(texts["shown-apart"]) == 4


def test_the_house_shows_every_module() -> None:
    section = README.split("## The house")[1]
    for path in (ROOT / "pipeline").glob("*.py"):
        if path.name != "__init__.py":
            assert path.name in section, path.name
