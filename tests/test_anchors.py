"""Cached anchors are those of the prompts at hand, or an error says which text differs."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.anchors import cached_anchors
from pipeline.cache.reader import read_manifest
from pipeline.errors import CacheError, CacheMismatchError
from pipeline.prompts import PromptSet, load_prompts, prompt_set


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
