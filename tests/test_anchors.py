"""Cached anchors are those of the prompts at hand, or an error says which text differs."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.anchors import (
    cached_anchors,
    check_anchors,
    closest_pairs,
    list_anchors,
    show_anchors,
)
from pipeline.cache.reader import read_anchors, read_manifest
from pipeline.errors import CacheError, CacheMismatchError
from pipeline.prompt_file import PromptFile, TemplateSet, load_prompts
from pipeline.prompts import PromptSet, prompt_set


@pytest.fixture
def prompts(recipe_file: Path) -> PromptSet:
    return prompt_set(load_prompts(str(recipe_file.with_name("shapes-prompts.yaml"))), "plain")


def test_unchanged_prompts_find_their_anchors(sealed_cache: Path, prompts: PromptSet) -> None:
    assert cached_anchors(sealed_cache, read_manifest(sealed_cache), prompts).texts == prompts.texts


def test_reordered_classes_are_an_error(sealed_cache: Path, prompts: PromptSet) -> None:
    turned = replace(
        prompts, class_names=prompts.class_names[::-1], texts=tuple(reversed(prompts.texts))
    )
    with pytest.raises(CacheMismatchError, match=r"class_names\.0: cache has 'red square'"):
        cached_anchors(sealed_cache, read_manifest(sealed_cache), turned)


def test_a_set_that_was_never_embedded_is_an_error(sealed_cache: Path, prompts: PromptSet) -> None:
    with pytest.raises(CacheError, match="no anchors 'shapes-other'"):
        cached_anchors(
            sealed_cache, read_manifest(sealed_cache), replace(prompts, name="shapes-other")
        )


# --- describing ----------------------------------------------------------------------------------


def test_every_set_is_listed_by_name(sealed_cache: Path) -> None:
    found = list_anchors(sealed_cache)
    assert [(item.name, item.classes, len(item.templates)) for item in found] == [
        ("shapes-context", 3, 1),
        ("shapes-plain", 3, 2),
    ]


def test_a_set_is_shown_with_what_was_embedded(sealed_cache: Path) -> None:
    found = show_anchors(sealed_cache, "shapes-plain")
    assert found.class_names == ("red square", "green square", "blue square")
    assert found.templates == ("A photo of a {label}.", "A drawing of a {label}.")
    assert found.examples == ("A photo of a red square.", "A drawing of a red square.")
    anchors = read_anchors(sealed_cache, "shapes-plain")
    assert found.tokens == (anchors.token_counts_AT.min(), anchors.token_counts_AT.max())
    assert len(found.closest) == 3
    one, other = (
        found.class_names.index(n) for n in (found.closest[0].one, found.closest[0].other)
    )
    wanted = float(anchors.embeddings_AD[one] @ anchors.embeddings_AD[other])
    assert found.closest[0].cosine == pytest.approx(wanted, abs=1e-6)


def test_the_closest_pairs_are_those_of_all_pairs_compared_one_by_one() -> None:
    rows = np.random.default_rng(0).normal(size=(2100, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[2050] = rows[7]
    cosine = np.triu(rows @ rows.T, 1) - 2 * np.tril(np.ones((2100, 2100), np.float32))
    wanted = np.sort(cosine, axis=None)[::-1][:5]
    found = closest_pairs(rows, 5)
    assert found[0][:2] == (7, 2050)
    np.testing.assert_allclose([value for _, _, value in found], wanted, atol=1e-6)
    assert all(value == pytest.approx(rows[i] @ rows[j], abs=1e-6) for i, j, value in found)


@pytest.mark.parametrize(("rows", "pairs"), [(1, 0), (2, 1), (3, 3)])
def test_few_classes_have_few_pairs(rows: int, pairs: int) -> None:
    assert len(closest_pairs(np.eye(rows, 4, dtype=np.float32), 5)) == pairs


def test_an_unknown_set_names_the_nearest(sealed_cache: Path) -> None:
    with pytest.raises(CacheError, match="did you mean 'shapes-plain'"):
        show_anchors(sealed_cache, "shapes-plan")


# --- checking ------------------------------------------------------------------------------------


def edited(prompts: PromptFile, **fields: object) -> PromptFile:
    return replace(prompts, **fields)  # type: ignore[arg-type]


@pytest.fixture
def file(recipe_file: Path) -> PromptFile:
    return load_prompts(str(recipe_file.with_name("shapes-prompts.yaml")))


def test_the_file_that_was_embedded_agrees(sealed_cache: Path, file: PromptFile) -> None:
    assert check_anchors(sealed_cache, file) == {
        "checked": ["shapes-context", "shapes-plain"],
        "labels_checked": True,
    }
    assert check_anchors(sealed_cache, file, ["plain"])["checked"] == ["shapes-plain"]


def test_classes_in_another_order_are_all_listed(sealed_cache: Path, file: PromptFile) -> None:
    red, green, blue = file.classes
    with pytest.raises(CacheMismatchError, match="does not agree") as caught:
        check_anchors(sealed_cache, edited(file, classes=(green, red, blue)), ["plain"])
    assert [row[0] for row in caught.value.differences] == [
        *("shapes-plain.class_names.0", "shapes-plain.class_names.1"),
        *(f"shapes-plain.texts.{i}.{j}" for i in range(2) for j in range(2)),
    ]


def test_edits_missing_sets_and_labels_without_a_class_are_told_together(
    sealed_cache: Path, file: PromptFile
) -> None:
    sets = {**file.prompt_sets, "other": TemplateSet(templates=("The {label}.",))}
    changed = edited(file, classes=file.classes[:2], prompt_sets=sets)
    with pytest.raises(CacheMismatchError) as caught:
        check_anchors(sealed_cache, changed, ["plain", "other"])
    rows = {field: (old, new) for field, old, new in caught.value.differences}
    assert rows["shapes-other"] == ("(absent)", "2 classes")
    assert rows["shapes-plain.class_names.2"] == ("blue square", "(absent)")
    for split in ("train", "test"):
        assert rows[f"labels of {split}"] == ("label 2", "labels 0 to 1")


def test_labels_of_an_unsealed_cache_are_not_checked(cache_copy: Path, file: PromptFile) -> None:
    shutil.rmtree(cache_copy / "index")
    assert check_anchors(cache_copy, file)["labels_checked"] is False
