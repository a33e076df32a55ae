"""Live targets train as the cached ones do, within the cache's rounding."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import CacheMismatchError, RunError, StudentError
from pipeline.online import OnlineTargets, live_targets
from pipeline.shards import find_shards
from pipeline.stage_two import Loading, train
from tests.conftest import Invoke
from tests.inputs import make_teacher
from tests.runs import small_recipe

FLOAT16 = 1e-3  # what rounding to float16 may move a component's share by


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def both(
    cache: Path, shards: Path, recipe_file: Path, folder: Path, *overrides: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    recipe = small_recipe(recipe_file, "training.epochs=4", *overrides)
    for name, live in (("cached", None), ("live", live_targets("cpu"))):
        train(
            recipe,
            [cache],
            find_shards([str(shards)]),
            folder / name,
            resume=False,
            device="cpu",
            loading=Loading(workers=0),
            live=live,
        )
    return lines(folder / "cached"), lines(folder / "live")


@pytest.mark.parametrize("overrides", [(), ("student.input_px=48", "losses.crd={bank: 9}")])
def test_loss_curves_agree_within_float16(
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
) -> None:
    cached, live = both(sealed_cache, shards_dir, recipe_file, tmp_path, *overrides)
    assert len(cached) == len(live) == 4
    for one, other in zip(cached, live, strict=True):
        for name in ("loss", "csm_ce", "entmin", "ism"):
            assert other[name] == pytest.approx(one[name], rel=FLOAT16)
    assert any(one["loss"] != other["loss"] for one, other in zip(cached, live, strict=True))


def test_targets_are_the_live_teachers_of_the_very_views(
    sealed_cache: Path, shards_dir: Path
) -> None:
    from pipeline.batches import TrainingBatches
    from pipeline.cache.reader import TargetCache

    cache = TargetCache.open(sealed_cache)
    source = TrainingBatches(
        cache, find_shards([str(shards_dir)]), sizes=(32, 48), batch_size=8, num_views=2, seed=0
    )
    live = live_targets("cpu")(source, cache)
    assert isinstance(live, OnlineTargets)
    for one, other in zip(source.starting_at(1, 5), live.starting_at(1, 5), strict=True):
        assert torch.equal(one.rows_B, other.rows_B)
        assert torch.equal(one.views(torch.device("cpu"), 48), other.views(torch.device("cpu"), 48))
        cosine = (one.target_BD * other.target_BD).sum(dim=1).numpy()
        assert (cosine >= 1 - 1e-6).all()
        np.testing.assert_allclose(other.target_BD.norm(dim=1).numpy(), 1, atol=1e-6)


def test_a_run_does_not_go_on_with_the_other_kind_of_targets(
    beamclip: Invoke, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    shared = ["train-student", "--cache", sealed_cache, "--shards", shards_dir]
    shared += ["--recipe", recipe_file, "--set", "student.model=test_resnet"]
    shared += ["--run", tmp_path / "run", "--resume"]
    assert beamclip(*shared, "--online").code == 0
    refused = beamclip(*shared)
    assert refused.code == RunError.exit_code == 1
    assert "live_targets: run has True, asked for False" in refused.err


def test_another_teacher_in_the_place_of_the_caches_is_refused(
    cache_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    from pipeline.audit.live import live_teacher
    from pipeline.cache.reader import read_manifest
    from pipeline.teacher import TeacherOptions

    other = make_teacher(tmp_path / "other", seed=3)
    spec = TeacherOptions(model=f"local-dir:{other}", batch_size=16)
    with pytest.raises(CacheMismatchError, match="was not made by the teacher"):
        live_teacher(cache_copy, read_manifest(cache_copy), spec, "cpu")


def test_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(StudentError, match="leave torchrun out"):
        live_targets("cpu")
