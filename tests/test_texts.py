"""Prompt sets become anchors: by the cache's own teacher, leaving all else alone."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.cache.reader import TargetCache, read_anchors
from pipeline.errors import CacheError, CacheMismatchError, DataError, TeacherError
from pipeline.prompts import load_sets, sampled
from pipeline.texts import add_anchors, remove_anchors
from tests.inputs import build, make_teacher
from tests.runs import held_elsewhere
from tests.trees import tree_digests, tree_stamps

CLASSES = ["red square", "green square", "blue square"]


def prompt_file(folder: Path, *names: str, dataset: str = "more", **sets: list[str]) -> str:
    """Write a prompt file of these classes and sets."""
    fields: dict[str, Any] = {
        "dataset": dataset,
        "classes": [{"name": name} for name in names or CLASSES],
        "prompt_sets": sets or {"plain": ["A {label}."]},
    }
    path = folder / "more.yaml"
    path.write_text(yaml.safe_dump(fields, allow_unicode=True), encoding="utf-8")
    return str(path)


def test_added_anchors_leave_every_published_byte_alone(cache_copy: Path, tmp_path: Path) -> None:
    before = tree_stamps(cache_copy)
    digest = TargetCache.open(cache_copy).digest
    file = prompt_file(tmp_path, plain=["A {label}."], many=["a {label}", "one {label}"])
    assert add_anchors(cache_copy, load_sets(file), device="cpu") == {
        "more-plain": True,
        "more-many": True,
    }
    after = tree_stamps(cache_copy)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {
        "more-plain",
        "more-many",
    }
    opened = TargetCache.open(cache_copy)  # still sealed
    assert opened.digest == digest
    assert opened.anchors("more-many").texts[2] == ("a blue square", "one blue square")


def test_added_anchors_are_the_ones_that_stage_one_would_have_made(
    cache_copy: Path, sealed_cache: Path, recipe_file: Path
) -> None:
    shutil.rmtree(cache_copy / "anchors")
    file = str(recipe_file.with_name("shapes-prompts.yaml"))
    add_anchors(cache_copy, load_sets(file), device="cpu")
    assert tree_digests(cache_copy, "anchors") == tree_digests(sealed_cache, "anchors")


def test_only_the_sets_asked_for_are_added_and_those_there_stay(
    cache_copy: Path, tmp_path: Path
) -> None:
    file = prompt_file(tmp_path, one=["A {label}."], two=["The {label}."], three=["{label}"])
    assert add_anchors(cache_copy, load_sets(file, ["two"]), device="cpu") == {"more-two": True}
    before = tree_stamps(cache_copy)
    added = add_anchors(cache_copy, load_sets(file, ["two", "three"]), device="cpu")
    assert added == {"more-two": False, "more-three": True}
    after = tree_stamps(cache_copy)
    assert {name: after[name] for name in before} == before
    with pytest.raises(CacheError, match="no anchors 'more-one'"):
        read_anchors(cache_copy, "more-one")


def test_nothing_to_add_needs_no_teacher(cache_copy: Path, recipe_file: Path) -> None:
    file = str(recipe_file.with_name("shapes-prompts.yaml"))
    added = add_anchors(cache_copy, load_sets(file), device="cpu", teacher="local-dir:/nowhere")
    assert added == {"shapes-context": False, "shapes-plain": False}


def test_another_teacher_is_refused_by_its_digest(cache_copy: Path, tmp_path: Path) -> None:
    other = make_teacher(tmp_path / "other", seed=1)
    before = tree_stamps(cache_copy)
    with pytest.raises(CacheMismatchError, match=r"teacher\.weights_sha256"):
        add_anchors(
            cache_copy, load_sets(prompt_file(tmp_path)), device="cpu", teacher=f"local-dir:{other}"
        )
    assert tree_stamps(cache_copy) == before


def test_a_teacher_that_moved_is_found_where_it_is_said_to_be(
    tmp_path: Path, shards_dir: Path, recipe_file: Path, teacher_dir: Path
) -> None:
    first = shutil.copytree(teacher_dir, tmp_path / "first")
    override = f"teacher.model=local-dir:{first}"
    cache = build(tmp_path / "cache", shards_dir, recipe_file, override)
    first.rename(tmp_path / "second")
    file = prompt_file(tmp_path)
    with pytest.raises(TeacherError, match="no teacher in"):
        add_anchors(cache, load_sets(file), device="cpu")
    added = add_anchors(
        cache, load_sets(file), device="cpu", teacher=f"local-dir:{tmp_path}/second"
    )
    assert added == {"more-plain": True}


def test_an_edited_set_under_a_cached_name_is_refused(cache_copy: Path, tmp_path: Path) -> None:
    add_anchors(cache_copy, load_sets(prompt_file(tmp_path)), device="cpu")
    before = tree_stamps(cache_copy)
    with pytest.raises(CacheMismatchError, match=r"texts\.0\.0: cache has 'A red square\.'"):
        add_anchors(
            cache_copy, load_sets(prompt_file(tmp_path, plain=["The {label}."])), device="cpu"
        )
    assert tree_stamps(cache_copy) == before


def test_a_cache_that_is_being_written_is_left_alone(cache_copy: Path, tmp_path: Path) -> None:
    with (
        held_elsewhere(cache_copy / ".lock"),
        pytest.raises(CacheError, match="being written by another process"),
    ):
        add_anchors(cache_copy, load_sets(prompt_file(tmp_path)), device="cpu")


def test_where_there_is_no_cache_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no cache in"):
        add_anchors(tmp_path / "none", load_sets(prompt_file(tmp_path)), device="cpu")
    assert not (tmp_path / "none").exists()


def test_unicode_and_emoji_are_embedded_and_read_back_as_they_are(
    cache_copy: Path, tmp_path: Path
) -> None:
    names = ["naïve café", "猫", "🙂 👩‍🔬", "مرحبا", "a\u200bb", "x\ty\nz"]
    add_anchors(cache_copy, load_sets(prompt_file(tmp_path, *names)), device="cpu")
    anchors = read_anchors(cache_copy, "more-plain")
    assert anchors.class_names == tuple(names)
    assert anchors.texts == tuple((f"A {name}.",) for name in names)
    np.testing.assert_allclose(np.linalg.norm(anchors.embeddings_AD, axis=1), 1, atol=1e-6)
    assert anchors.token_counts_AT.min() > 3


@pytest.mark.parametrize(
    "name", ["x" * 5000, "猫" * 5000, "🙂" * 100, "red " * 1250], ids=["x", "cat", "smile", "red"]
)
def test_a_name_that_the_teacher_would_cut_is_an_error_that_counts_its_tokens(
    cache_copy: Path, tmp_path: Path, name: str
) -> None:
    before = tree_stamps(cache_copy)
    file = prompt_file(tmp_path, "dog", name, plain=["A {label}.", "One {label}."])
    with pytest.raises(DataError, match=r"\d{3,} tokens up to the end .* the teacher reads 32:"):
        add_anchors(cache_copy, load_sets(file), device="cpu")
    assert tree_stamps(cache_copy) == before


@pytest.mark.parametrize(
    ("description", "kept"),
    [
        ("Short and red. " + "So it goes on and on " * 9, "A dog: Short and red."),
        ("x" * 5000, "A dog: xxxx"),
        ("🙂" * 5000, "A dog: 🙂🙂"),
        ("so " * 1666, "A dog: so so so"),
        ("猫" * 5000, "A dog: 猫猫"),
    ],
    ids=["sentences", "one-word", "smile", "words", "cat"],
)
def test_context_that_is_too_long_is_cut_reported_and_kept_whole_beside_what_was_embedded(
    cache_copy: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    description: str,
    kept: str,
) -> None:
    file = Path(prompt_file(tmp_path, "dog", "cat", cpa=["A {label}: {description}"]))
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["classes"] = [
        {"name": "dog", "description": description},
        {"name": "cat", "description": "Small."},
    ]
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    add_anchors(cache_copy, load_sets(str(file)), device="cpu")
    anchors = read_anchors(cache_copy, "more-cpa")
    [cut] = anchors.cuts
    text = anchors.texts[cut["anchor"]][cut["template"]]
    assert text == f"A dog: {description}"
    assert text[: cut["kept"]].startswith(kept)
    assert "'dog' has" in caplog.text
    assert f"has {cut['tokens']} tokens and was cut after" in caplog.text
    assert cut["tokens"] > 32 >= anchors.token_counts_AT[0, 0]
    short = tmp_path / "short.yaml"
    content["dataset"] = "short"
    content["classes"][0]["description"] = text[7 : cut["kept"]]
    short.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    add_anchors(cache_copy, load_sets(str(short)), device="cpu")
    np.testing.assert_allclose(
        read_anchors(cache_copy, "short-cpa").embeddings_AD, anchors.embeddings_AD, atol=1e-6
    )
    assert add_anchors(cache_copy, load_sets(str(file)), device="cpu") == {"more-cpa": False}


def test_the_longest_text_that_fits_is_taken(cache_copy: Path, tmp_path: Path) -> None:
    name = " ".join(["red"] * 30)  # and the marks of start and end
    add_anchors(
        cache_copy, load_sets(prompt_file(tmp_path, name, "dog", plain=["{label}"])), device="cpu"
    )
    assert read_anchors(cache_copy, "more-plain").token_counts_AT[0, 0] == 32


def test_an_unknown_set_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'plain'"):
        load_sets(prompt_file(tmp_path), ["plane"])


# --- sets beside each other ----------------------------------------------------------------------


def test_a_set_is_removed_and_nothing_else(cache_copy: Path, tmp_path: Path) -> None:
    before = tree_digests(cache_copy)
    add_anchors(cache_copy, load_sets(prompt_file(tmp_path)), device="cpu")
    remove_anchors(cache_copy, "more-plain")
    assert tree_digests(cache_copy) == before
    with pytest.raises(CacheError, match=r"no anchors 'more-plain': .*shapes-plain"):
        remove_anchors(cache_copy, "more-plain")


def test_a_sample_and_separate_anchors_are_embedded_as_parts_of_the_whole(
    cache_copy: Path, tmp_path: Path
) -> None:
    file = Path(prompt_file(tmp_path, one=["A {label}."], two=["The {label}."]))
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["prompt_sets"]["each"] = {
        "templates": ["A {label}.", "The {label}."],
        "anchors": "separate",
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    sets = load_sets(str(file), ["one", "two", "each"])
    add_anchors(cache_copy, [*sets, sampled(sets[0], 2, seed=0)], device="cpu")
    one, two, each, part = (
        read_anchors(cache_copy, f"more-{name}")
        for name in ("one", "two", "each", "one.2of3-seed0")
    )
    np.testing.assert_allclose(each.embeddings_AD[0::2], one.embeddings_AD, atol=1e-6)
    np.testing.assert_allclose(each.embeddings_AD[1::2], two.embeddings_AD, atol=1e-6)
    rows = [one.class_names.index(name) for name in part.class_names]
    np.testing.assert_allclose(part.embeddings_AD, one.embeddings_AD[rows], atol=1e-6)
    assert (one.labelled, each.labelled, part.labelled) == (True, False, False)
    assert len(part.class_names) == 2


def test_anchors_are_those_of_open_clips_own_zero_shot_classifier(
    cache_copy: Path, tmp_path: Path, teacher_dir: Path
) -> None:
    import open_clip
    import torch

    templates = [lambda c: f"a photo of a {c}.", lambda c: f"a bad photo of the {c}!", str.upper]
    names = [f"thing {i}" for i in range(300)]  # more than one batch of texts
    sets = ["a photo of a {label}.", "a bad photo of the {label}!", "{label}"]
    add_anchors(cache_copy, load_sets(prompt_file(tmp_path, *names, plain=sets)), device="cpu")
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{teacher_dir}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{teacher_dir}")
    model.eval()
    with torch.inference_mode():
        wanted_DA = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    found_AD = read_anchors(cache_copy, "more-plain").embeddings_AD
    np.testing.assert_allclose(found_AD, wanted_DA.T.numpy(), atol=1e-6)
