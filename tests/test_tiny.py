"""The small teacher: an ordinary open_clip folder that has learnt something."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import DataError
from pipeline.prompt_file import TemplateSet, load_prompts
from pipeline.schedule import EvalSchedule
from pipeline.shards import find_shards, read_samples, write_shards
from pipeline.teacher import TeacherOptions, load_teacher
from pipeline.tiny import TinyOptions, train_tiny_teacher
from pipeline.views import render_views
from tests.inputs import labelled_samples

SPEC = TinyOptions(epochs=12, batch_size=12, text_width=32, text_layers=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-shards")
    write_shards(labelled_samples(96, seed=3), folder, "train", per_shard=96)
    write_shards(labelled_samples(30, seed=4), folder, "test", per_shard=30)
    return folder


def test_it_loads_as_any_open_clip_folder_and_tells_the_classes_apart(
    shards: Path, recipe_file: Path, tmp_path: Path
) -> None:
    prompts = load_prompts(str(recipe_file.with_name("shapes-prompts.yaml")))
    found = find_shards([str(shards)])
    train_tiny_teacher(found, prompts, tmp_path / "teacher", SPEC)
    teacher = load_teacher(
        TeacherOptions(model=f"local-dir:{tmp_path / 'teacher'}"), torch.device("cpu")
    )
    assert teacher.preprocess.size == 32
    texts = teacher.embed_texts([f"A photo of a {item.name}." for item in prompts.classes])
    right = []
    for sample in read_samples(next(shard for shard in found if shard.split == "test")):
        params = EvalSchedule().params(sample.key, 0, 40, 36)
        views = render_views(sample.image().content, [params], 32)
        answer = int((teacher.embed_images(views) @ texts.T).argmax())
        right.append(answer == sample.label())
    assert np.mean(right) > 0.9  # chance is 1/3
    files = sorted(path.name for path in (tmp_path / "teacher").iterdir())
    assert files == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_variants_of_a_prompt_set_do_not_change_it(
    tmp_path: Path, shards: Path, recipe_file: Path
) -> None:
    plain = load_prompts(str(recipe_file.with_name("shapes-prompts.yaml")))
    variant = TemplateSet(templates=("A photo of {article} {label}.",))
    more = replace(plain, prompt_sets={**plain.prompt_sets, "plain.article": variant})
    quick = replace(SPEC, epochs=1)
    for name, prompts in (("one", plain), ("two", more)):
        train_tiny_teacher(find_shards([str(shards)]), prompts, tmp_path / name, quick)
    one, two = (tmp_path / n / "open_clip_model.safetensors" for n in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_test_split_is_never_trained_on(
    shards: Path, recipe_file: Path, tmp_path: Path
) -> None:
    prompts = load_prompts(str(recipe_file.with_name("shapes-prompts.yaml")))
    only_test = [shard for shard in find_shards([str(shards)]) if shard.split == "test"]
    with pytest.raises(DataError, match="found 0 samples in 0 train shards"):
        train_tiny_teacher(only_test, prompts, tmp_path / "teacher", SPEC)


def test_labels_outside_the_prompts_are_an_error(tmp_path: Path, shards: Path) -> None:
    prompts = tmp_path / "two.yaml"
    prompts.write_text(
        "dataset: two\nclasses: [{name: a}, {name: b}]\nprompt_sets: {plain: ['{label}']}\n"
    )
    with pytest.raises(DataError, match=r"from 0 to 1; found 96 samples .*labels 0 to 2"):
        train_tiny_teacher(
            find_shards([str(shards)]), load_prompts(str(prompts)), tmp_path / "teacher", SPEC
        )


def test_an_existing_folder_is_never_overwritten(
    shards: Path, recipe_file: Path, tmp_path: Path
) -> None:
    prompts = load_prompts(str(recipe_file.with_name("shapes-prompts.yaml")))
    with pytest.raises(DataError, match="already exists"):
        train_tiny_teacher(find_shards([str(shards)]), prompts, tmp_path, SPEC)


def test_a_sample_that_cannot_be_used_is_left_out_and_told(
    tmp_path: Path, recipe_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = labelled_samples(24, seed=3)
    pairs[3] = ("00003", {"png": b"<html>", "cls": b"0"})
    pairs[4] = ("00004", {"png": pairs[4][1]["png"], "cls": b"one"})
    write_shards(pairs, tmp_path / "shards", "train", per_shard=24)
    prompts = load_prompts(str(recipe_file.with_name("shapes-prompts.yaml")))
    quick = replace(SPEC, epochs=1)
    train_tiny_teacher(find_shards([str(tmp_path / "shards")]), prompts, tmp_path / "t", quick)
    assert "left out sample 00003: undecodable" in caplog.text
    assert "left out sample 00004: bad-label" in caplog.text
