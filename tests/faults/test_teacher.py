"""Teachers that are not the one of the cache, run code, or give no vectors: never in a cache."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.cache.reader import TargetCache
from pipeline.errors import TeacherError
from pipeline.recipe import load_recipe
from pipeline.resident import resident_teacher
from pipeline.shards import write_shards
from tests.conftest import Invoke
from tests.faults.law import check_law
from tests.inputs import build, encode, labelled_samples, make_teacher, square
from tests.teacher.test_clip import Payload, edit_config
from tests.teacher.test_folder import edit_model
from tests.trees import tree_stamps

WEIGHTS = "open_clip_model.safetensors"
LOST = "train-000001.mild.v0-1"


@pytest.fixture
def folder(teacher_dir: Path, tmp_path: Path) -> Path:
    """A copy of the teacher's folder that a test may damage; no process has loaded it yet."""
    return Path(shutil.copytree(teacher_dir, tmp_path / "teacher"))


@pytest.fixture
def partial(cache_copy: Path) -> Path:
    """A cache that lacks a unit and its seal: there is something to resume."""
    shutil.rmtree(cache_copy / "units" / LOST)
    shutil.rmtree(cache_copy / "index")
    return cache_copy


def edit_weights(folder: Path, name: str, change: Callable[[torch.Tensor], object]) -> None:
    """Change one tensor of the weights, in place."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors[name])
    save_file(tensors, folder / WEIGHTS)


def command(cache: Path, shards: Path, recipe: Path, teacher: Path, *more: str) -> list[object]:
    """Return stage one's command line with a teacher's folder."""
    words = ["teacher-cache", "--cache", cache, "--shards", shards, "--recipe", recipe]
    return [*words, "--device", "cpu", "--set", f"teacher.model=local-dir:{teacher}", *more]


def retrained(folder: Path) -> None:
    shutil.rmtree(folder)
    make_teacher(folder, seed=1)


def one_weight(folder: Path) -> None:
    edit_weights(folder, "visual.proj", lambda proj: proj[3, 4].mul_(1.001))


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    payload = pickle.dumps(Payload(folder.with_name("ran")))
    for name in ("open_clip_pytorch_model.bin", "open_clip_model.pt", "model.pth"):
        (folder / name).write_bytes(payload)


def larger_input(folder: Path) -> None:
    edit_config(folder, "preprocess_cfg", size=48)
    edit_model(folder, "vision_cfg", image_size=48)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another of the same dimension": (retrained, "teacher.weights_sha256: cache has"),
    "one weight": (one_weight, "teacher.weights_sha256: cache has"),
    "mean": (
        lambda folder: edit_config(folder, "preprocess_cfg", mean=[0.4, 0.5, 0.5]),
        "teacher.preprocess.mean.0: cache has 0.5, asked for 0.4",
    ),
    "interpolation": (
        lambda folder: edit_config(folder, "preprocess_cfg", interpolation="bilinear"),
        "teacher.preprocess.interpolation: cache has 'bicubic', asked for 'bilinear'",
    ),
    "resize": (
        lambda folder: edit_config(folder, "preprocess_cfg", resize_mode="squash"),
        "teacher.preprocess.resize_mode: cache has 'shortest', asked for 'squash'",
    ),
    "activation": (
        lambda folder: edit_config(folder, "model_cfg", quick_gelu=True),
        "teacher.architecture.quick_gelu: cache has False, asked for True",
    ),
    "image size": (larger_input, "trained with another image size"),
    "image size in part": (
        lambda folder: edit_config(folder, "preprocess_cfg", size=48),
        "make them agree",
    ),
    "tokenizer": (
        lambda folder: edit_model(folder, "text_cfg", hf_tokenizer_name="no/such"),
        "cannot load teacher",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "random teacher is never used"),
    "no folder": (shutil.rmtree, "no teacher in"),
    "pickles": (pickled, "no .safetensors weights"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_cache_goes_on_with_its_own_teacher_alone(
    partial: Path,
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
    teacher_dir: Path,
    folder: Path,
    beamclip: Invoke,
    change: str,
) -> None:
    edit, words = CHANGES[change]
    edit(folder)
    before = tree_stamps(partial)
    refused = beamclip(*command(partial, shards_dir, recipe_file, folder))
    assert refused.code == 1
    assert words in refused.err
    assert tree_stamps(partial) == before
    assert check_law(partial, exit_code=1).missing == {LOST}
    assert not folder.with_name("ran").exists()

    done = beamclip(*command(partial, shards_dir, recipe_file, teacher_dir))
    assert done.code == 0, done.err
    assert check_law(partial, exit_code=0).arrays == check_law(sealed_cache).arrays


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_teacher_that_gives_no_vectors_leaves_nothing_valid(
    tmp_path: Path,
    shards_dir: Path,
    recipe_file: Path,
    folder: Path,
    beamclip: Invoke,
    value: float,
) -> None:
    edit_weights(folder, "visual.proj", lambda proj: proj.fill_(value))
    cache = tmp_path / "cache"
    done = beamclip(*command(cache, shards_dir, recipe_file, folder))
    assert done.code == 3
    assert "24 of 24 train samples were skipped (bad-vector 24)" in done.err
    law = check_law(cache, exit_code=done.code, tars=shards_dir.glob("*.tar"))
    assert not law.sealed
    assert not law.missing
    for unit in law.published:
        assert set(law.reasons[unit].values()) == {"bad-vector"}
    assert law.skipped == law.seen


def test_vectors_that_overflow_cost_their_own_samples_alone(
    tmp_path: Path, recipe_file: Path, folder: Path, beamclip: Invoke
) -> None:
    """Half precision, and a filter whose answer to a white or a black patch is beyond its range."""
    edit_weights(folder, "visual.conv1.weight", lambda weight: weight[0].fill_(100))
    pairs = labelled_samples(22, seed=6)
    for place, level in ((5, 255), (17, 0)):
        image = encode(np.full((32, 32, 3), level, np.uint8))
        pairs[place] = (pairs[place][0], {"png": image, "cls": b"0"})
    write_shards(pairs, tmp_path / "shards", "test", per_shard=22)
    cache, half = tmp_path / "cache", ("--set", "teacher.precision=fp16")
    done = beamclip(*command(cache, tmp_path / "shards", recipe_file, folder, *half))
    assert done.code == 0, done.err
    assert "2 skipped, bad-vector 2" in done.out
    law = check_law(cache, exit_code=0, tars=(tmp_path / "shards").glob("*.tar"))
    assert law.reasons == {"test-000000.eval.v0-0": {5: "bad-vector", 17: "bad-vector"}}
    # In a range that holds them they would be vectors: but that is another teacher.
    refused = beamclip(*command(cache, tmp_path / "shards", recipe_file, folder))
    assert refused.code == 1
    assert "teacher.precision: cache has 'fp16', asked for 'fp32'" in refused.err
    whole = beamclip(*command(tmp_path / "whole", tmp_path / "shards", recipe_file, folder))
    assert whole.code == 0, whole.err
    assert check_law(tmp_path / "whole", exit_code=0).skipped == {"test-000000": 0}


def test_anchors_that_are_no_vectors_are_an_error(
    tmp_path: Path, shards_dir: Path, recipe_file: Path, folder: Path, beamclip: Invoke
) -> None:
    edit_weights(folder, "text_projection", lambda projection: projection.fill_(np.nan))
    done = beamclip(*command(tmp_path / "cache", shards_dir, recipe_file, folder))
    assert done.code == 1
    assert "the model gave a vector that is not finite" in done.err
    assert check_law(tmp_path / "cache", exit_code=done.code).published == set()


# Parts of a model that answer otherwise while it is trained.
TRAINABLE: dict[str, dict[str, Any]] = {
    "dropout": {"patch_dropout": 0.5},
    "batch norm": {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
}


@pytest.mark.parametrize("kind", TRAINABLE)
def test_targets_are_those_of_a_teacher_in_evaluation_mode(
    tmp_path: Path, recipe_file: Path, kind: str
) -> None:
    folder = make_teacher(tmp_path / "teacher", 0, **TRAINABLE[kind])
    pixels = [square(i % 3, i) for i in range(6)]
    write_shards(
        [(f"{i}", {"png": encode(image)}) for i, image in enumerate(pixels)],
        *(tmp_path / "shards", "test"),
        per_shard=6,
    )
    override = f"teacher.model=local-dir:{folder}"
    cache = build(tmp_path / "cache", tmp_path / "shards", recipe_file, override)
    found_BD = TargetCache.open(cache, "test").targets(np.arange(6), 0)

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    images = torch.stack([preprocess(Image.fromarray(image)) for image in pixels])
    with torch.inference_mode():
        wanted_BD = model.eval().encode_image(images, normalize=True).numpy()
        trained_BD = model.train().encode_image(images, normalize=True).numpy()
    assert (found_BD * wanted_BD).sum(axis=1).min() > 1 - 1e-5
    assert (found_BD * trained_BD).sum(axis=1).min() < 0.999


def test_a_teacher_left_in_training_mode_publishes_nothing(
    tmp_path: Path, sealed_cache: Path, shards_dir: Path, recipe_file: Path
) -> None:
    cache = tmp_path / "cache"
    spec = load_recipe(str(recipe_file)).cache_options().teacher
    teacher: Any = resident_teacher(spec, "cpu")
    teacher._model.train()
    try:
        with pytest.raises(TeacherError, match="in training mode"):
            build(cache, shards_dir, recipe_file)
        assert check_law(cache, exit_code=1).published == set()
    finally:
        teacher._model.eval()
    build(cache, shards_dir, recipe_file)
    assert check_law(cache, exit_code=0).arrays == check_law(sealed_cache).arrays
