"""A teacher that sees images alone: its cache, a student of it, and what it cannot serve."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.audit.verify import verify_cache
from pipeline.cache.reader import TargetCache, read_manifest
from pipeline.errors import CacheError, CacheMismatchError, RecipeError
from pipeline.recipe import load_recipe
from pipeline.rundir import RunDir
from pipeline.shards import write_shards
from pipeline.teacher import load_teacher
from tests.conftest import Invoke
from tests.inputs import build, captioned_samples, captions_at


def test_targets_and_norms_together_are_what_the_teacher_gives(
    vision_cache: Path, vision_recipe: Path, captioned_shards: Path
) -> None:
    from pipeline.batches import eval_batches
    from pipeline.shards import find_shards

    cache = TargetCache.open(vision_cache, "test", "eval")
    teacher = load_teacher(load_recipe(str(vision_recipe)).teacher, torch.device("cpu"))
    (batch,) = eval_batches(cache, find_shards([str(captioned_shards)]), input_px=32)
    raw_BD = teacher.encode_images(batch.views(torch.device("cpu"))).numpy()
    assert np.ptp(np.linalg.norm(raw_BD, axis=1)) > 0.01  # norms say something
    found_BD = batch.norms_B[:, None].numpy() * batch.target_BD.numpy()
    np.testing.assert_allclose(found_BD, raw_BD, atol=2e-3 * np.abs(raw_BD).max())
    np.testing.assert_allclose(batch.norms_B, np.linalg.norm(raw_BD, axis=1), rtol=1e-5)


def test_the_cache_is_sound_and_keeps_every_caption_without_embedding_it(
    vision_cache: Path,
) -> None:
    assert verify_cache(vision_cache, full=True).problems == []
    for split, count in (("train", 24), ("test", 12)):
        captions = TargetCache.open(vision_cache, split).captions(split)
        texts = [text for place in range(count) for text in captions_at(place)]
        assert list(captions.texts) == texts
        assert captions.embeddings_KD.shape == (len(texts), 0)


def test_a_second_run_finds_all_done(
    vision_cache: Path, captioned_shards: Path, vision_recipe: Path, beamclip: Invoke
) -> None:
    found = beamclip(
        *("teacher-cache", "--shards", captioned_shards, "--cache", vision_cache),
        *("--recipe", vision_recipe, "--json"),
    )
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert told["made"] == 0
    assert told["counts"]["test"] == {"seen": 12, "skipped": 1, "reasons": {"undecodable": 1}}


def test_captions_grow_with_the_cache_and_the_command_of_before_stays_satisfied(
    vision_cache: Path, captioned_shards: Path, vision_recipe: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(vision_cache, tmp_path / "cache"))
    more = Path(shutil.copytree(captioned_shards, tmp_path / "shards"))
    (path,) = write_shards(captioned_samples(6, seed=3), more / "own", "train", per_shard=6)
    path.rename(more / "train-000002.tar")
    (more / "own").rmdir()
    before = TargetCache.open(cache).captions("train")
    build(cache, more, vision_recipe, extend=True)
    grown = TargetCache.open(cache).captions("train")
    assert grown.texts[: len(before.texts)] == before.texts
    assert set(grown.rows_K.tolist()) - set(before.rows_K.tolist()) == set(range(24, 30))
    old = TargetCache.open(cache, generation=0).captions("train")
    assert old.rows_K[old.valid_K].tolist() == before.rows_K[before.valid_K].tolist()
    build(cache, captioned_shards, vision_recipe)
    assert TargetCache.open(cache).captions("train").texts == grown.texts


def test_a_student_trains_from_it_and_is_scored(
    vision_cache: Path,
    captioned_shards: Path,
    vision_recipe: Path,
    tmp_path: Path,
    beamclip: Invoke,
) -> None:
    run = tmp_path / "run"
    trained = beamclip(
        *("train-student", "--cache", vision_cache, "--shards", captioned_shards),
        *("--recipe", vision_recipe, "--run", run, "--set", "losses={ism: {}}"),
    )
    assert trained.code == 0, trained.err
    assert RunDir(run).last_metrics()["ism"] < 0
    scored = beamclip("probe", "--run", run, "--probes", "linear,knn")
    assert scored.code == 0, scored.err
    asked = beamclip("probe", "--run", run, "--probes", "zeroshot")
    assert asked.code == 1
    assert "reads no text" in asked.err
    named = beamclip("probe", "--run", run, "--zeroshot", "shapes-plain")
    assert named.code == 1
    assert "its teacher reads no text" in named.err
    told = beamclip("cache", "info", vision_cache)
    assert "feature_point cls_pre_norm" in told.out


def test_losses_over_anchors_are_refused_with_the_reason(vision_recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"csm_ce compare with text anchors.*reads no text"):
        load_recipe(str(vision_recipe), ["losses={csm_ce: {}}"])


def test_prompts_cannot_be_added(vision_cache: Path) -> None:
    from pipeline.prompts import load_sets
    from pipeline.texts import add_anchors

    with pytest.raises(CacheError, match="sees images and reads no text"):
        add_anchors(vision_cache, load_sets("digits", ["plain"]), device="cpu")


def test_another_feature_point_is_another_cache(
    vision_cache: Path, captioned_shards: Path, vision_recipe: Path
) -> None:
    with pytest.raises(CacheMismatchError, match="feature_point"):
        build(vision_cache, captioned_shards, vision_recipe, "teacher.feature_point=pooled")
    assert read_manifest(vision_cache)["teacher"]["feature_point"] == "cls_pre_norm"
