"""Which prompt sets name the labels is read from the cache: its own zero-shot set says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.audit.info import cache_info
from pipeline.cache import layout
from pipeline.cache.reader import read_anchors, read_manifest
from pipeline.errors import DataError
from pipeline.labels import check_named, foreign, own_set
from pipeline.prompts import load_sets
from pipeline.texts import add_anchors, remove_anchors
from tests.conftest import Invoke
from tests.runs import small_recipe, train


@pytest.fixture
def add(cache_copy: Path, recipe_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """Add the tests' prompts to a copy of the cache as another dataset's, words replaced."""

    def add(dataset: str, *words: tuple[str, str]) -> Path:
        text = recipe_file.with_name("shapes-prompts.yaml").read_text(encoding="utf-8")
        for old, new in (("dataset: shapes", f"dataset: {dataset}"), *words):
            text = text.replace(old, new)
        (tmp_path / f"{dataset}.yaml").write_text(text, encoding="utf-8")
        add_anchors(cache_copy, load_sets(str(tmp_path / f"{dataset}.yaml")), device="cpu")
        return cache_copy

    return add


def own_name(cache: Path) -> str | None:
    own = own_set(cache, read_manifest(cache))
    return None if own is None else own.name


def forget_name(cache: Path) -> None:
    """Make the manifest one that does not record the whole names of its prompt sets."""
    path = layout.manifest_path(cache, 0)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["made_with"]["prompt_sets"]
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_the_own_set_is_the_recipes_whatever_else_was_added(add: Callable[..., Path]) -> None:
    cache = add("other", ("green", "olive"))
    assert read_manifest(cache)["made_with"]["prompt_sets"] == {
        "anchors": "shapes-context",
        "zeroshot": "shapes-plain",
    }
    assert own_name(cache) == "shapes-plain"
    remove_anchors(cache, "shapes-plain")
    assert own_name(cache) is None


def test_a_cache_that_does_not_record_the_name_is_told_by_what_it_has(
    add: Callable[..., Path], cache_copy: Path
) -> None:
    forget_name(cache_copy)
    assert own_name(cache_copy) == "shapes-plain"
    add("shapes-prompts")  # as the recipe's prompt file is called
    assert own_name(cache_copy) == "shapes-prompts-plain"
    remove_anchors(cache_copy, "shapes-prompts-plain")
    add("other")
    assert own_name(cache_copy) is None


def test_sets_of_the_same_names_in_one_order_name_the_labels(sealed_cache: Path) -> None:
    own = own_set(sealed_cache, read_manifest(sealed_cache))
    assert own is not None
    names = own.class_names

    def why(*other: str) -> str | None:
        return foreign(replace(own, name="x", class_names=other), own)

    assert foreign(read_anchors(sealed_cache, "shapes-context"), own) is None
    assert why(*(name.upper() for name in names)) is None
    assert why(*(name for name in names for _ in range(3))) is None  # separate anchors
    assert why(*names[::-1]) == (
        "label 0 is 'red square' in shapes-plain, class 0 here 'blue square'"
    )
    assert why(*names[:2]) == "it has 2 classes, shapes-plain, which names the labels, 3"
    assert "is not there" in (foreign(own, None) or "")
    check_named(own, [None, own])
    with pytest.raises(DataError, match="does not name the classes of these labels"):
        check_named(replace(own, class_names=names[::-1]), [own, None])


def test_another_datasets_classes_get_no_zero_shot_score(add: Callable[..., Path]) -> None:
    cache = add("other", ("green square", "aquarium fish"))
    info = cache_info(cache)
    assert set(info.zeroshot["test"]) == {"shapes-context", "shapes-plain"}
    assert info.anchors["shapes-plain"].foreign is None
    why = "label 1 is 'green square' in shapes-plain, class 1 here 'aquarium fish'"
    assert info.anchors["other-plain"].foreign == why
    assert f"    not scored: {why}" in info.text().splitlines()


def test_probing_by_another_datasets_classes_is_refused(
    add: Callable[..., Path], shards_dir: Path, recipe_file: Path, tmp_path: Path, beamclip: Invoke
) -> None:
    cache = add("other", ("green square", "aquarium fish"))
    add("same")
    run = tmp_path / "run"
    train(small_recipe(recipe_file, "training.epochs=1"), cache, shards_dir, run)
    words = ("probe", "--run", run, "--probes", "zeroshot", "--device", "cpu", "--zeroshot")
    refused = beamclip(*words, "other-plain")
    assert refused.code == 1
    assert "'aquarium fish'" in refused.err
    assert "other-plain does not name the classes of these labels" in refused.err
    assert beamclip(*words, "same-plain").code == 0


def test_training_that_is_scored_by_other_names_says_so(
    add: Callable[..., Path],
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
    beamclip: Invoke,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They may be better names of the same classes; the run's own set is then taken."""
    cache, run = add("better", ("green square", "olive square")), tmp_path / "run"
    recipe = small_recipe(recipe_file, "prompts.zeroshot=better-plain", "training.epochs=1")
    train(recipe, cache, shards_dir, run)
    assert "zero-shot set better-plain: label 1 is 'green square'" in caplog.text
    words = ("probe", "--run", run, "--probes", "zeroshot", "--device", "cpu")
    assert beamclip(*words).code == 0
    assert beamclip(*words, "--zeroshot", "better-context").code == 0
