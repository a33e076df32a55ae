"""The digits recipe, whole: what the README promises, and the guard against misaligned rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.cache import layout, writer
from pipeline.cache.reader import TargetCache, read_manifest
from pipeline.cache.seal import seal_cache
from pipeline.probing import probe
from pipeline.stage_two import Loading, train
from tests.trees import tree_digests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CHANCE = 0.25  # far below any trained student, above the commonest class's share of 0.124


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, the tiny teacher and the sealed cache of the digits recipe."""
    from pipeline.cli import main

    root = tmp_path_factory.mktemp("digits")
    for line in (
        f"data digits --out {root}/shards",
        f"teacher tiny --shards {root}/shards --prompts digits --to {root}/teacher",
        f"teacher-cache --shards {root}/shards --cache {root}/cache --recipe digits "
        f"--set teacher.model=local-dir:{root}/teacher",
    ):
        main(line.split(), standalone_mode=False)
    return root


def scores_of(root: Path, cache: Path, run: Path, *overrides: str) -> dict[str, Any]:
    from pipeline.recipe import load_recipe
    from pipeline.shards import find_shards

    teacher = f"teacher.model=local-dir:{root}/teacher"
    recipe = load_recipe("digits", [teacher, *overrides])
    shards = find_shards([str(root / "shards")])
    train(recipe, [cache], shards, run, resume=False, device="cpu", loading=Loading(workers=0))
    return probe(run, None, [], workers=0, device="cpu")


def test_the_student_stands_beside_its_teacher(digits: Path, tmp_path: Path) -> None:
    scores = scores_of(digits, digits / "cache", tmp_path / "run")
    teacher = scores["teacher"]["zeroshot"]["top1"]
    assert teacher >= 0.97
    assert scores["student"]["zeroshot"]["top1"] >= teacher - 0.01
    assert scores["student"]["linear"]["accuracy"] >= 0.98
    assert scores["chance"]["zeroshot"]["top1"] < 0.15


def test_shuffled_targets_drop_zero_shot_to_chance(digits: Path, tmp_path: Path) -> None:
    """The guard against rows joined to wrong targets; a linear probe hardly notices them."""
    shuffled = shuffle_targets(digits / "cache", tmp_path / "cache")
    quick = ("student.model=resnet10t", "training.epochs=4")
    scores = scores_of(digits, shuffled, tmp_path / "run", *quick)
    assert scores["student"]["zeroshot"]["top1"] < CHANCE
    assert scores["student_raw"]["zeroshot"]["top1"] < CHANCE
    control = scores_of(digits, digits / "cache", tmp_path / "control", *quick)
    assert control["student_raw"]["zeroshot"]["top1"] > 0.9


def test_another_architecture_leaves_every_byte_of_the_cache_alone(
    digits: Path, tmp_path: Path
) -> None:
    before = tree_digests(digits, "cache", "teacher", "shards")
    quick = ("student.model=mobilenetv3_small_050", "training.epochs=1")
    scores_of(digits, digits / "cache", tmp_path / "run", *quick)
    assert tree_digests(digits, "cache", "teacher", "shards") == before


def shuffle_targets(cache: Path, copy: Path) -> Path:
    """Publish a cache like `cache` whose training targets are those of other rows of the shard."""
    import shutil

    shutil.copytree(cache, copy)
    manifest = read_manifest(copy)
    writer.unseal(copy, 0)
    fingerprint = layout.fingerprint(manifest)
    for unit in layout.planned_units(manifest):
        if unit.schedule == "eval":
            continue
        attributes = dict(layout.unit_attributes(copy, unit, fingerprint) or {})
        group = zarr.open_group(copy / "units" / unit.name, mode="r")
        arrays = {name: np.asarray(group[name][...]) for name in layout.UNIT_ARRAYS}
        order = np.random.default_rng(0).permutation(len(arrays["targets"]))
        arrays["targets"] = arrays["targets"][order]
        writer.drop_unit(copy, unit.name)
        for name in ("digests", "format", "version", "unit"):
            attributes.pop(name)
        writer.publish_unit(copy, unit, arrays, attributes)
    seal_cache(copy, manifest, 0.0)
    assert len(TargetCache.open(copy)) == len(TargetCache.open(cache))
    return copy
