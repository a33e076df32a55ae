"""A model of images and texts may learn from labels alone, which reach its image encoder."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import stage_two
from pipeline.errors import RecipeError, StudentError
from pipeline.probing import probe
from pipeline.reading import learns_pairs, reader_of
from pipeline.recipe import load_recipe
from pipeline.rundir import RunDir
from pipeline.shards import find_shards
from tests.runs import train
from tests.test_ranks import run as run_on_ranks

LABELS = ("losses={supervised: {}}", "training.held_out_rows=0")


@pytest.fixture(scope="module")
def pairs_run(
    vision_cache: Path,
    captioned_shards: Path,
    shared_recipe: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model trained from pairs."""
    run = tmp_path_factory.mktemp("runs") / "pairs"
    train(load_recipe(str(shared_recipe)), vision_cache, captioned_shards, run)
    return run


@pytest.fixture(scope="module")
def bare_cache(vision_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision cache without captions."""
    cache = Path(shutil.copytree(vision_cache, tmp_path_factory.mktemp("bare") / "cache"))
    shutil.rmtree(cache / "captions")
    return cache


def raw(run: Path) -> dict[str, torch.Tensor]:
    return RunDir(run).load_weights("student_raw")


def assert_image_encoder_alone_moved(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]
) -> None:
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"backbone"}
    assert "backbone.blocks.0.attn.qkv.weight" in moved


def test_labels_tune_the_image_encoder_of_a_run_and_leave_the_rest_as_it_is(
    bare_cache: Path, captioned_shards: Path, shared_recipe: Path, pairs_run: Path, tmp_path: Path
) -> None:
    """Not even by weight decay; from a cache without captions."""
    recipe = load_recipe(str(shared_recipe), [*LABELS, f"student.init={pairs_run}"])
    assert recipe.training.weight_decay > 0
    last = train(recipe, bare_cache, captioned_shards, tmp_path / "tuned")
    assert last.keys() >= {"loss", "supervised"}
    first, *_, end = RunDir(tmp_path / "tuned").read_metrics()
    assert end["supervised"] < first["supervised"]
    # Of a run, the averaged weights are taken up.
    started = RunDir(pairs_run).load_weights("student")
    assert_image_encoder_alone_moved(started, raw(tmp_path / "tuned"))
    scores = probe(tmp_path / "tuned", None, (), probes=["linear"], workers=0, device="cpu")
    assert scores["student"]["linear"]["accuracy"] > 1 / 3  # of three classes


def test_it_is_taken_up_again_as_if_it_had_not_stopped(
    bare_cache: Path, captioned_shards: Path, shared_recipe: Path, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    recipe = load_recipe(str(shared_recipe), LABELS)
    train(recipe, bare_cache, captioned_shards, tmp_path / "straight")
    saving = replace(recipe, training=replace(recipe.training, checkpoint_steps=2))
    shards = find_shards([str(captioned_shards)])
    with pytest.raises(StoppedError):
        stage_two.train(
            *(saving, [bare_cache], shards, tmp_path / "run"),
            resume=False,
            device="cpu",
            on_epoch=stop,
        )
    train(saving, bare_cache, captioned_shards, tmp_path / "run", resume=True)
    for name, value in raw(tmp_path / "straight").items():
        assert torch.equal(raw(tmp_path / "run")[name], value)


@pytest.mark.slow
def test_so_do_two_processes(
    bare_cache: Path, captioned_shards: Path, shared_recipe: Path, pairs_run: Path, tmp_path: Path
) -> None:
    chosen = [*LABELS, f"student.init={pairs_run}"]
    train(load_recipe(str(shared_recipe), chosen), bare_cache, captioned_shards, tmp_path / "one")
    done = run_on_ranks(
        *("--cache", bare_cache, "--shards", captioned_shards, "--recipe", shared_recipe),
        *(part for field in chosen for part in ("--set", field)),
        *("--run", tmp_path / "two"),
    )
    assert done.returncode == 0, done.stderr
    two = raw(tmp_path / "two")
    assert_image_encoder_alone_moved(RunDir(pairs_run).load_weights("student"), two)
    for name, value in raw(tmp_path / "one").items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4)


def test_labels_beside_pairs_are_of_pairs(shared_recipe: Path) -> None:
    assert not learns_pairs(load_recipe(str(shared_recipe), LABELS))
    both = load_recipe(str(shared_recipe), ["losses.supervised={}"])
    assert learns_pairs(both)
    assert reader_of([both]) is not None


def test_held_out_rows_are_refused_where_no_captions_are(shared_recipe: Path) -> None:
    recipe = load_recipe(str(shared_recipe), LABELS[:1])
    with pytest.raises(RecipeError, match=r"say training\.held_out_rows=0"):
        reader_of([recipe])


def test_losses_in_the_teachers_space_are_refused_beside_labels(shared_recipe: Path) -> None:
    recipe = load_recipe(str(shared_recipe), ["losses={supervised: {}, mse: {}}"])
    with pytest.raises(RecipeError, match="mse compare with targets in the teacher's space"):
        reader_of([recipe])


def test_a_whole_vit_does_not_start_from_the_fewer_blocks_of_a_run(
    bare_cache: Path, captioned_shards: Path, shared_recipe: Path, pairs_run: Path, tmp_path: Path
) -> None:
    plain = [*LABELS, "student.model=test_vit", f"student.init={pairs_run}"]
    recipe = load_recipe(str(shared_recipe), plain)
    with pytest.raises(StudentError, match="blocks\\.2"):
        train(recipe, bare_cache, captioned_shards, tmp_path / "run")
