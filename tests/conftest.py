"""Fixtures: real, tiny inputs that the tests share."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Before torch is imported anywhere: tests share two cores, and must not ask a hub for anything.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.buckets import Bucket, s3_server
from tests.inputs import (
    PROMPTS,
    SHARED_RECIPE,
    TINY_RECIPE,
    VISION_RECIPE,
    build,
    captioned_samples,
    labelled_samples,
    make_teacher,
    save_vit,
)

if TYPE_CHECKING:
    from pipeline.unit import UnitJob


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep decoded views of one test away from another's."""
    monkeypatch.setenv("BEAMCLIP_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run torch on one thread and leave it as it was."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shards_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two train shards of 14 and 10 samples, one test shard of 12."""
    from pipeline.shards import write_shards

    folder = tmp_path_factory.mktemp("shards")
    write_shards(labelled_samples(24, seed=1), folder, "train", per_shard=14)
    write_shards(labelled_samples(12, seed=2), folder, "test", per_shard=14)
    return folder


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary open_clip folder of a very small model with random weights."""
    return make_teacher(tmp_path_factory.mktemp("teachers") / "random", seed=0)


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, teacher_dir: Path) -> Path:
    """A recipe for the shards, with its prompt file, as a user would write them."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "shapes-prompts.yaml").write_text(PROMPTS, encoding="utf-8")
    recipe = TINY_RECIPE.format(teacher=teacher_dir, prompts=folder / "shapes-prompts.yaml")
    (folder / "shapes.yaml").write_text(recipe, encoding="utf-8")
    return folder / "shapes.yaml"


@pytest.fixture(scope="session")
def sealed_cache(
    tmp_path_factory: pytest.TempPathFactory, shards_dir: Path, recipe_file: Path
) -> Path:
    """A sealed cache of the shards; read it, never change it (see `cache_copy`)."""
    return build(tmp_path_factory.mktemp("cache") / "sealed", shards_dir, recipe_file)


@pytest.fixture(scope="session")
def captioned_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards with captions; the sixth test image is damaged, the eighth sample has none."""
    from pipeline.shards import write_shards

    folder = tmp_path_factory.mktemp("captioned")
    write_shards(captioned_samples(24, seed=1), folder, "train", per_shard=14)
    test = captioned_samples(12, seed=2)
    test[5][1]["png"] = b"<html>"
    write_shards(test, folder, "test", per_shard=9)
    return folder


@pytest.fixture(scope="session")
def captioned_cache(
    tmp_path_factory: pytest.TempPathFactory, captioned_shards: Path, recipe_file: Path
) -> Path:
    """A sealed cache of the captioned shards, with the captions of test; never change it."""
    from pipeline.caption_sets import add_captions
    from pipeline.shards import find_shards

    cache = build(tmp_path_factory.mktemp("cache") / "captioned", captioned_shards, recipe_file)
    add_captions(cache, find_shards([str(captioned_shards)]), device="cpu")
    return cache


@pytest.fixture(scope="session")
def vision_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose teacher, a ViT with random weights, sees images and reads no text."""
    folder = tmp_path_factory.mktemp("vision")
    save_vit(folder / "vit.safetensors")
    recipe = VISION_RECIPE.format(weights=folder / "vit.safetensors")
    (folder / "vision.yaml").write_text(recipe, encoding="utf-8")
    return folder / "vision.yaml"


@pytest.fixture(scope="session")
def vision_cache(
    tmp_path_factory: pytest.TempPathFactory, captioned_shards: Path, vision_recipe: Path
) -> Path:
    """A sealed cache of the captioned shards by that teacher, captions and all; never change it."""
    folder = tmp_path_factory.mktemp("cache") / "vision"
    return build(folder, captioned_shards, vision_recipe)


@pytest.fixture(scope="session")
def shared_recipe(
    tmp_path_factory: pytest.TempPathFactory, captioned_shards: Path, vision_recipe: Path
) -> Path:
    """The recipe of a very small model of images and texts, learnt from the vision cache."""
    from pipeline.shards import find_shards
    from pipeline.text_tiny import TextTinyOptions, train_tiny_text_encoder

    folder = tmp_path_factory.mktemp("shared")
    spec = TextTinyOptions(epochs=1, max_tokens=16)
    train_tiny_text_encoder(find_shards([str(captioned_shards)]), folder / "bert", spec)
    (folder / "shapes-prompts.yaml").write_text(PROMPTS, encoding="utf-8")
    told = SHARED_RECIPE.format(text=folder / "bert", prompts=folder / "shapes-prompts.yaml")
    vision = vision_recipe.read_text(encoding="utf-8").partition("student:")[0]
    (folder / "shared.yaml").write_text(vision + told, encoding="utf-8")
    return folder / "shared.yaml"


@pytest.fixture
def captioned_copy(tmp_path: Path, captioned_cache: Path) -> Path:
    """A copy of the cache with captions that a test may damage."""
    return Path(shutil.copytree(captioned_cache, tmp_path / "captioned"))


@pytest.fixture(scope="session")
def more_shards(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path) -> Path:
    """The shards, a third train shard of 6 samples, named to stand first, and one of val."""
    from pipeline.shards import write_shards

    folder = Path(shutil.copytree(shards_dir, tmp_path_factory.mktemp("more") / "shards"))
    (path,) = write_shards(labelled_samples(6, seed=3), folder / "own", "train", per_shard=6)
    path.rename(folder / "train-00000.tar")
    write_shards(labelled_samples(5, seed=4), folder, "val", per_shard=5)
    (folder / "own").rmdir()
    return folder


@pytest.fixture(scope="session")
def grown_cache(
    tmp_path_factory: pytest.TempPathFactory,
    sealed_cache: Path,
    more_shards: Path,
    recipe_file: Path,
) -> Path:
    """The sealed cache, extended by shards and by two views; read it, never change it."""
    cache = Path(shutil.copytree(sealed_cache, tmp_path_factory.mktemp("grown") / "cache"))
    return build(cache, more_shards, recipe_file, "views=4", extend=True)


@pytest.fixture
def grown_copy(tmp_path: Path, grown_cache: Path) -> Path:
    """A copy of the extended cache that a test may damage."""
    return Path(shutil.copytree(grown_cache, tmp_path / "grown"))


@pytest.fixture
def cache_copy(tmp_path: Path, sealed_cache: Path) -> Path:
    """A copy of the sealed cache that a test may damage."""
    return Path(shutil.copytree(sealed_cache, tmp_path / "cache"))


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """An S3 on this machine, for as long as the tests run."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket of its own, with the variables set by which it is found."""
    bucket = Bucket(s3_address, f"bucket-{uuid.uuid4().hex}")
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.fixture
def job(sealed_cache: Path, shards_dir: Path, teacher_dir: Path, tmp_path: Path) -> "UnitJob":
    """The job of one unit of the sealed cache, to be done in another cache."""
    from pipeline.cache import layout
    from pipeline.cache.reader import read_manifest
    from pipeline.decode import DecodePolicy
    from pipeline.shards import find_shards
    from pipeline.teacher import TeacherOptions
    from pipeline.unit import UnitJob

    manifest = read_manifest(sealed_cache)
    shard = next(s for s in find_shards([str(shards_dir)]) if s.split == "train")
    return UnitJob(
        cache=tmp_path / "cache",
        unit=layout.UnitId("train", shard.name, "mild", 0, 1),
        shard=shard,
        teacher=TeacherOptions(model=f"local-dir:{teacher_dir}", batch_size=16),
        device="cpu",
        teacher_digest=layout.teacher_digest(manifest["teacher"]),
        fingerprint=layout.fingerprint(manifest),
        schedule=manifest["schedules"]["mild"],
        decode=DecodePolicy(),
    )


Invoke = Callable[..., "Outcome"]


class Outcome:
    """What a command left: exit code and text."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def beamclip() -> Invoke:
    """Run a command line in this process: beamclip("probe", "--run", path)."""
    from click.testing import CliRunner

    from pipeline.cli import main

    def invoke(*arguments: object) -> Outcome:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return invoke
