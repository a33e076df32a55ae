"""Class texts that would spoil anchors: refused, or kept with what was done to them on record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cache.reader import read_anchors
from tests.conftest import Invoke
from tests.faults.law import check_law
from tests.runs import MODEL
from tests.trees import tree_stamps

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def edited(tmp_path: Path, recipe_file: Path) -> Callable[[Change], tuple[Path, Path]]:
    """Write the tests' prompt file with a change, and a recipe that names it."""

    def write(change: Change) -> tuple[Path, Path]:
        source = recipe_file.with_name("shapes-prompts.yaml")
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
        change(content)
        prompts, recipe = tmp_path / "edited-prompts.yaml", tmp_path / "edited.yaml"
        prompts.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        text = recipe_file.read_text(encoding="utf-8").replace(str(source), str(prompts))
        recipe.write_text(text, encoding="utf-8")
        return prompts, recipe

    return write


def build(cache: Path, shards: Path, recipe: Path) -> list[object]:
    words = ["teacher-cache", "--cache", cache, "--shards", shards, "--recipe", recipe]
    return [*words, "--device", "cpu"]


def train(cache: Path, shards: Path, recipe: Path, run: Path) -> list[object]:
    words = ["train-student", "--cache", cache, "--shards", shards, "--recipe", recipe]
    return [*words, "--run", run, "--model", MODEL, "--device", "cpu"]


def names(*called: str) -> Change:
    return lambda content: content.update(classes=[{"name": name} for name in called])


def templates(*written: str) -> Change:
    return lambda content: content["prompt_sets"].update(plain=list(written))


def context(index: int, **fields: str) -> Change:
    return lambda content: content["classes"][index].update(fields)


REFUSED: dict[str, tuple[Change, str]] = {
    "twice": (names("red", "green", "red"), "'red' and 'red' read the same"),
    "twice but for case": (names("red", "green", "Red"), "'red' and 'Red' read the same"),
    "twice but for NFC": (names("caf\u00e9", "x", "cafe\u0301"), "read the same to a teacher"),
    "empty name": (names("red", "", "blue"), "a class has an empty name"),
    "empty list": (names(), "the list of classes is empty"),
    "no template": (templates(), "has no template"),
    "empty template": (templates(""), "has no {label}"),
    "no set": (lambda content: content.update(prompt_sets={}), "there is no prompt set"),
    "template without its field": (templates("A photo."), "has no {label}"),
    "unknown field": (templates("A {label} in {place}."), "unknown field 'place'"),
    "field that a class lacks": (templates("A {label}: {description}"), "needs 'description'"),
    "end mark in a name": (names("red", "a <end_of_text> b", "blue"), "the tokenizer's own"),
    "end mark in context": (context(1, coarse="<|endoftext|>"), "the tokenizer's own"),
    "a name of 5,000 characters": (names("red", "x" * 5000, "blue"), "give it a shorter name"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_texts_that_no_image_could_be_told_by_are_refused_before_an_image_is_read(
    tmp_path: Path,
    shards_dir: Path,
    edited: Callable[[Change], tuple[Path, Path]],
    beamclip: Invoke,
    change: str,
) -> None:
    edit, words = REFUSED[change]

    def both(content: dict[str, Any]) -> None:
        content["prompt_sets"].pop("context")
        content["prompt_sets"]["context"] = ["{label}"]
        edit(content)

    cache = tmp_path / "cache"
    _, recipe = edited(both)
    refused = beamclip(*build(cache, shards_dir, recipe))
    assert refused.code == 1
    assert words in refused.err
    assert not list(cache.glob("units/*"))
    check_law(cache, exit_code=1)


@pytest.mark.parametrize("change", REFUSED)
def test_a_finished_cache_takes_no_such_texts_either(
    cache_copy: Path,
    sealed_cache: Path,
    edited: Callable[[Change], tuple[Path, Path]],
    beamclip: Invoke,
    change: str,
) -> None:
    edit, words = REFUSED[change]

    def other(content: dict[str, Any]) -> None:
        content["dataset"] = "other"
        content["prompt_sets"] = {"plain": ["{label}"]}
        edit(content)

    prompts, _ = edited(other)
    before = tree_stamps(cache_copy)
    refused = beamclip("anchors", "add", cache_copy, "--prompts", prompts, "--device", "cpu")
    assert refused.code == 1
    assert words in refused.err
    assert tree_stamps(cache_copy) == before
    assert check_law(cache_copy, exit_code=0).arrays == check_law(sealed_cache).arrays


def test_any_script_and_5000_characters_of_context_are_embedded_and_the_cut_is_told(
    tmp_path: Path,
    shards_dir: Path,
    sealed_cache: Path,
    edited: Callable[[Change], tuple[Path, Path]],
    beamclip: Invoke,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["classes"] = [
            {"name": "naïve café", "coarse": "мороз"},
            {"name": "🙂 猫", "coarse": "A warm shape. " + "x" * 5000},
            {"name": "مرحبا", "coarse": "cool"},
        ]

    cache = tmp_path / "cache"
    _, recipe = edited(change)
    done = beamclip(*build(cache, shards_dir, recipe))
    assert done.code == 0, done.err
    assert "tokens and was cut after" in caplog.text
    assert "categorized as A warm shape." in caplog.text
    shown = beamclip("anchors", "show", cache, "shapes-context").out
    assert "cut: 'A photo of a 🙂 猫, categorized as A warm shape.'" in shown
    anchors = read_anchors(cache, "shapes-context")
    assert [cut["anchor"] for cut in anchors.cuts] == [1]
    assert anchors.texts[1][0].endswith("x" * 5000 + ".")
    assert check_law(cache, exit_code=0).arrays == check_law(sealed_cache).arrays
    again = beamclip(*build(cache, shards_dir, recipe))
    assert again.code == 0, again.err
    assert "(0 made now," in again.out


EDITS: dict[str, Change] = {
    "reordered": lambda content: content["classes"].reverse(),
    "renamed": lambda content: content["classes"][1].update(name="olive square"),
    "context edited": lambda content: content["classes"][2].update(coarse="warm shape"),
    "template edited": lambda content: content["prompt_sets"].update(
        context=["A {label} of the kind {coarse}."]
    ),
    "class added": lambda content: content["classes"].append({"name": "x", "coarse": "y"}),
    "class removed": lambda content: content["classes"].pop(),
}


@pytest.mark.parametrize("change", EDITS)
def test_classes_edited_since_they_were_embedded_are_refused_by_every_command(
    cache_copy: Path,
    sealed_cache: Path,
    shards_dir: Path,
    tmp_path: Path,
    edited: Callable[[Change], tuple[Path, Path]],
    beamclip: Invoke,
    change: str,
) -> None:
    prompts, recipe = edited(EDITS[change])
    before = tree_stamps(cache_copy)
    for command in (
        build(cache_copy, shards_dir, recipe),
        train(cache_copy, shards_dir, recipe, tmp_path / "run"),
        ["anchors", "check", cache_copy, "--prompts", prompts],
        ["anchors", "add", cache_copy, "--prompts", prompts, "--device", "cpu"],
    ):
        refused = beamclip(*command)
        assert refused.code == 1, command
        assert "cache has" in refused.err
    assert not (tmp_path / "run").exists()
    assert tree_stamps(cache_copy) == before
    assert check_law(cache_copy, exit_code=0).arrays == check_law(sealed_cache).arrays


def test_labels_without_a_class_are_told_by_checking_training_and_probing_not_by_caching(
    tmp_path: Path,
    shards_dir: Path,
    recipe_file: Path,
    edited: Callable[[Change], tuple[Path, Path]],
    beamclip: Invoke,
) -> None:
    prompts, recipe = edited(lambda content: content["classes"].pop())
    cache, run = tmp_path / "cache", tmp_path / "run"
    done = beamclip(*build(cache, shards_dir, recipe))
    assert done.code == 0, done.err
    checked = beamclip("anchors", "check", cache, "--prompts", prompts)
    assert checked.code == 1
    assert "label 2" in checked.err
    refused = beamclip(*train(cache, shards_dir, recipe, run))
    assert refused.code == 1
    assert "label 2" in refused.err

    whole = recipe_file.with_name("shapes-prompts.yaml").read_text(encoding="utf-8")
    (tmp_path / "whole.yaml").write_text(whole.replace("shapes", "whole"), encoding="utf-8")
    given = ("--prompts", tmp_path / "whole.yaml", "--device", "cpu")
    assert beamclip("anchors", "add", cache, *given).code == 0
    named = ("--set", "prompts.zeroshot=whole-plain", "--set", "prompts.anchors=whole-context")
    trained = beamclip(*train(cache, shards_dir, recipe, run), *named)
    assert trained.code == 0, trained.err
    refused = beamclip("probe", "--run", run, "--zeroshot", "shapes-plain", "--device", "cpu")
    assert refused.code == 1
    assert "label 2" in refused.err
    assert beamclip("probe", "--run", run, "--device", "cpu").code == 0
    check_law(cache, exit_code=0)
