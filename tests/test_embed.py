"""Stage one: what a cache holds, what stops it, and what a rerun does."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cache import layout
from pipeline.cache.reader import TargetCache, read_anchors, read_manifest
from pipeline.cluster import Place
from pipeline.embed import build_cache
from pipeline.errors import (
    CacheError,
    CacheMismatchError,
    DataError,
    LossesError,
    ShardError,
    TeacherError,
)
from pipeline.options import differences
from pipeline.recipe import load_recipe
from pipeline.schedule import Schedule
from pipeline.shards import find_shards, read_samples, write_shards
from pipeline.teacher import TeacherOptions, load_teacher
from pipeline.views import render_views
from tests.inputs import build, labelled_samples, make_teacher
from tests.trees import cache_digests, tree_digests


def test_every_split_has_its_eval_view_and_train_its_scheduled_views(sealed_cache: Path) -> None:
    names = sorted(path.name for path in (sealed_cache / "units").iterdir() if path.is_dir())
    assert names == [
        "test-000000.eval.v0-0",
        "train-000000.eval.v0-0",
        "train-000000.mild.v0-1",
        "train-000001.eval.v0-0",
        "train-000001.mild.v0-1",
    ]


def test_targets_are_the_teachers_embedding_of_the_scheduled_view(
    sealed_cache: Path, shards_dir: Path, teacher_dir: Path
) -> None:
    """Recomputed sample by sample, in other batches: equal up to float16 and batch shape."""
    spec = TeacherOptions(model=f"local-dir:{teacher_dir}")
    teacher = load_teacher(spec, torch.device("cpu"))
    for schedule in ("mild", "eval"):
        cache = TargetCache.open(sealed_cache, "train", schedule)
        for shard in find_shards([f"train={shards_dir}/train-*.tar"]):
            for sample in read_samples(shard):
                row = np.array([cache.row_of(shard.name, sample.ordinal)])
                width, height = cache.column("width")[row[0]], cache.column("height")[row[0]]
                for view in range(cache.num_views):
                    params = cache.schedule.params(sample.key, view, int(width), int(height))
                    views = render_views(sample.image().content, [params], 32)
                    wanted = teacher.embed_images(views)[0].numpy()
                    found = cache.targets(row, view)[0]
                    assert float(found @ wanted) / np.linalg.norm(found) > 1 - 1e-6


def test_the_manifest_says_all_that_decides_the_cache(sealed_cache: Path) -> None:
    manifest = read_manifest(sealed_cache)
    assert manifest["teacher"]["dim"] == 16
    assert len(manifest["teacher"]["weights_sha256"]) == 64
    assert manifest["teacher"]["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-5)
    assert manifest["batch"] == {"size": 16, "threads": 1, "device": "cpu"}
    assert manifest["schedules"]["mild"]["crop_scale"] == [0.7, 1.0]
    assert {"torch", "pillow", "numpy"} <= set(manifest["libraries"])
    assert [shard["name"] for shard in manifest["splits"]["train"]["shards"]] == [
        "000000",
        "000001",
    ]
    assert manifest["made_with"]["recipe"]["name"] == "shapes"


def test_a_second_run_makes_nothing_and_changes_nothing(
    cache_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    before = cache_digests(cache_copy)
    recipe = load_recipe(str(recipe_file))
    shards = find_shards([str(shards_dir)])
    place = Place(device="cpu")
    report = build_cache(cache_copy, shards, recipe.cache_options(), recipe={}, place=place)
    assert (report.units, report.made) == (5, 0)
    assert cache_digests(cache_copy) == before


def test_a_removed_unit_is_made_again_alone_and_the_same(
    cache_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    import shutil

    before = cache_digests(cache_copy)
    times = {name: (cache_copy / name).stat().st_mtime_ns for name in before}
    shutil.rmtree(cache_copy / "units" / "train-000001.mild.v0-1")
    build(cache_copy, shards_dir, recipe_file)
    assert cache_digests(cache_copy) == before
    redone = {n for n in before if (cache_copy / n).stat().st_mtime_ns != times[n]}
    assert {name.split("/")[1] for name in redone} == {"train-000001.mild.v0-1", "000000"}


def test_a_unit_with_damaged_metadata_is_made_again(
    cache_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    before = cache_digests(cache_copy)
    (cache_copy / "units" / "train-000000.eval.v0-0" / "zarr.json").write_text("{}")
    build(cache_copy, shards_dir, recipe_file)
    assert cache_digests(cache_copy) == before


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("schedule.crop_scale=[0.5, 1.0]", "schedules.mild.crop_scale.0"),
        ("schedule.seed=3", "schedules.mild.seed"),
        ("views=3", "splits.train.views.mild"),
        ("decode.max_pixels=1000000", "decode.max_pixels"),
        ("teacher.batch_size=8", "batch.size"),
        ("teacher.threads=2", "batch.threads"),
    ],
)
def test_a_cache_of_another_recipe_is_refused_with_the_field(
    cache_copy: Path, shards_dir: Path, recipe_file: Path, override: str, field: str
) -> None:
    before = cache_digests(cache_copy)
    with pytest.raises(CacheMismatchError) as error:
        build(cache_copy, shards_dir, recipe_file, override)
    assert field in [name for name, _, _ in error.value.differences]
    assert cache_digests(cache_copy) == before


def test_another_teacher_of_the_same_size_is_refused_by_its_weights(
    cache_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    other = make_teacher(tmp_path / "other-teacher", seed=1)
    with pytest.raises(CacheMismatchError, match=r"teacher\.weights_sha256"):
        build(cache_copy, shards_dir, recipe_file, f"teacher.model=local-dir:{other}")


def test_a_teacher_that_moved_to_another_folder_is_the_same_teacher(
    cache_copy: Path, shards_dir: Path, recipe_file: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    import shutil

    moved = shutil.copytree(teacher_dir, tmp_path / "moved")
    before = cache_digests(cache_copy)
    build(cache_copy, shards_dir, recipe_file, f"teacher.model=local-dir:{moved}")
    assert cache_digests(cache_copy) == before


@pytest.fixture
def shards_copy(shards_dir: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(shards_dir, tmp_path / "shards"))


def test_a_touched_shard_is_the_same_shard(
    cache_copy: Path, shards_copy: Path, recipe_file: Path
) -> None:
    before = cache_digests(cache_copy)
    os.utime(shards_copy / "train-000000.tar", ns=(1, 1))
    build(cache_copy, shards_copy, recipe_file)
    assert cache_digests(cache_copy) == before


def test_an_edited_shard_of_the_same_size_is_refused(
    cache_copy: Path, shards_copy: Path, recipe_file: Path
) -> None:
    path = shards_copy / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheMismatchError, match=r"train\.shards\.000000\.sha256"):
        build(cache_copy, shards_copy, recipe_file)


@pytest.mark.parametrize("change", ["grown", "removed", "added"])
def test_a_changed_list_of_shards_is_refused(
    cache_copy: Path, shards_copy: Path, recipe_file: Path, change: str
) -> None:
    path = shards_copy / "train-000001.tar"
    if change == "grown":
        write_shards(labelled_samples(30, seed=8), shards_copy, "train", per_shard=14)
    elif change == "removed":
        path.unlink()
    else:
        (shards_copy / "train-000002.tar").write_bytes(path.read_bytes())
    with pytest.raises(CacheMismatchError, match=r"splits\.train\.shards\.00000"):
        build(cache_copy, shards_copy, recipe_file)


def test_a_corrupt_image_is_skipped_counted_and_named(tmp_path: Path, recipe_file: Path) -> None:
    pairs = labelled_samples(20)
    pairs[7] = ("00007", {"png": pairs[7][1].get("png", b"")[:60], "cls": b"1"})
    pairs[8] = ("00008", {"txt": b"no image at all"})
    write_shards(pairs, tmp_path / "shards", "train", per_shard=20)
    cache = build(tmp_path / "cache", tmp_path / "shards", recipe_file)
    opened = TargetCache.open(cache)
    assert len(opened) == 20
    assert np.flatnonzero(~opened.column("valid")).tolist() == [7, 8]
    assert np.isnan(opened.view(0)[7]).all()
    attributes = layout.unit_attributes(
        cache,
        layout.UnitId("train", "000000", "mild", 0, 1),
        layout.fingerprint(read_manifest(cache)),
    )
    assert attributes is not None
    assert attributes["counts"] == {"seen": 20, "embedded": 18, "skipped": 2}
    assert [(skip["ordinal"], skip["key"]) for skip in attributes["skips"]] == [
        (7, "00007"),
        (8, "00008"),
    ]
    assert attributes["skips"][1]["reason"] == "no-image"


def test_a_truncated_tar_fails_alone_and_the_others_finish(
    tmp_path: Path, recipe_file: Path
) -> None:
    write_shards(labelled_samples(20), tmp_path / "shards", "train", per_shard=10)
    path = tmp_path / "shards" / "train-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LossesError, match="2 of 4 units failed") as error:
        build(tmp_path / "cache", tmp_path / "shards", recipe_file)
    assert "train-000000.tar" in str(error.value)
    assert error.value.exit_code == 3
    published = {p.name for p in (tmp_path / "cache" / "units").iterdir() if p.is_dir()}
    assert published == {"train-000001.eval.v0-0", "train-000001.mild.v0-1"}
    assert not (tmp_path / "cache" / "index").exists()


def test_mended_shards_finish_a_cache_that_a_truncated_one_had_stopped(
    tmp_path: Path, recipe_file: Path
) -> None:
    write_shards(labelled_samples(20), tmp_path / "shards", "train", per_shard=10)
    path = tmp_path / "shards" / "train-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LossesError):
        build(tmp_path / "cache", tmp_path / "shards", recipe_file)
    path.write_bytes(whole)
    build(tmp_path / "cache", tmp_path / "shards", recipe_file)
    clean = build(tmp_path / "clean", tmp_path / "shards", recipe_file)
    mended = tmp_path / "cache"  # whose manifest keeps the size that the cut shard had
    assert tree_digests(mended, "units", "anchors") == tree_digests(clean, "units", "anchors")
    assert TargetCache.open(mended).digest == TargetCache.open(clean).digest


def test_no_model_is_loaded_before_missing_shards_are_told(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"(?s)2 of 2 shards.*train-0\.tar.*train-1\.tar"):
        find_shards([f"{tmp_path}/train-{{0,1}}.tar"])


def test_an_empty_tar_is_a_unit_of_no_rows(tmp_path: Path, recipe_file: Path) -> None:
    write_shards(labelled_samples(10), tmp_path / "shards", "train", per_shard=10)
    (tmp_path / "shards" / "train-000001.tar").write_bytes(bytes(10240))
    cache = TargetCache.open(build(tmp_path / "cache", tmp_path / "shards", recipe_file))
    assert [shard.rows for shard in cache.shards] == [10, 0]
    assert cache.view(0).shape == (10, 16)


def test_strange_keys_stay_inside_the_cache(tmp_path: Path, recipe_file: Path) -> None:
    import io
    import tarfile

    image = labelled_samples(1)[0][1]["png"]
    names = [
        "../../x",
        "/abs/y",
        "new\nline",
        "k" * 3000,
        b"\xff\xfe".decode("utf-8", "surrogateescape"),
    ]
    (tmp_path / "shards").mkdir()
    with tarfile.open(
        tmp_path / "shards" / "train-0.tar", "w", errors="surrogateescape", encoding="utf-8"
    ) as tar:
        for name in names:
            info = tarfile.TarInfo(name + ".png")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    before = {path for path in tmp_path.rglob("*")}
    cache = build(tmp_path / "cache", tmp_path / "shards", recipe_file)
    outside = {p for p in tmp_path.rglob("*") if cache not in p.parents and p != cache}
    assert outside == before
    opened = TargetCache.open(cache)
    assert len(opened) == 5
    assert opened.column("valid").all()
    assert opened.rows_of(names[2]).tolist() == [2]
    assert opened.rows_of(names[4]).tolist() == [4]


def test_prompts_that_the_teacher_would_cut_are_an_error(
    tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    prompts = tmp_path / "long.yaml"
    text = recipe_file.with_name("shapes-prompts.yaml").read_text(encoding="utf-8")
    prompts.write_text(text.replace("A drawing of a", "very " * 40), encoding="utf-8")
    with pytest.raises(DataError, match="name, the teacher reads 32"):
        build(tmp_path / "cache", shards_dir, recipe_file, f"prompts.file={prompts}")


def test_edited_prompts_are_refused_against_cached_anchors(
    tmp_path: Path, cache_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    prompts = tmp_path / "edited.yaml"
    text = recipe_file.with_name("shapes-prompts.yaml").read_text(encoding="utf-8")
    prompts.write_text(text.replace("warm shape", "hot shape"), encoding="utf-8")
    with pytest.raises(CacheMismatchError, match=r"texts\.0\.0"):
        build(cache_copy, shards_dir, recipe_file, f"prompts.file={prompts}")


def test_averaged_anchors_are_normalised(sealed_cache: Path) -> None:
    norms = np.linalg.norm(read_anchors(sealed_cache, "shapes-plain").embeddings_AD, axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_a_missing_teacher_is_told_before_anything_is_written(
    tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    with pytest.raises(TeacherError, match="no teacher in"):
        build(tmp_path / "cache", shards_dir, recipe_file, "teacher.model=local-dir:/nowhere")
    assert not (tmp_path / "cache").exists()


def test_the_cache_holds_the_recipes_schedule(sealed_cache: Path, recipe_file: Path) -> None:
    schedule = TargetCache.open(sealed_cache).schedule
    assert isinstance(schedule, Schedule)
    assert differences(vars(schedule), vars(load_recipe(str(recipe_file)).schedule)) == []


def test_a_folder_that_is_no_cache_is_never_touched(
    tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    (tmp_path / "home" / ".tmp").mkdir(parents=True)
    (tmp_path / "home" / ".tmp" / "x").write_text("precious")
    with pytest.raises(CacheError, match="has no manifest"):
        build(tmp_path / "home", shards_dir, recipe_file)
    (tmp_path / "home" / "letter.txt").write_text("mine")
    with pytest.raises(CacheError, match=r"no cache: it holds 'letter\.txt'"):
        build(tmp_path / "home", shards_dir, recipe_file)
    assert (tmp_path / "home" / ".tmp" / "x").read_text() == "precious"


def test_a_lost_manifest_is_never_replaced_by_another(
    cache_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    import shutil

    shutil.rmtree(cache_copy / "manifest")
    with pytest.raises(CacheError, match="has no manifest, so nothing says"):
        build(cache_copy, shards_dir, recipe_file)


def test_a_file_in_the_place_of_the_manifests_is_an_error(
    tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "manifest").write_text("in the way")
    with pytest.raises(OSError, match="manifest"):
        build(tmp_path / "cache", shards_dir, recipe_file)


def test_anchors_of_another_teacher_are_refused(
    cache_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    import shutil

    teacher = make_teacher(tmp_path / "other-teacher", seed=1)
    other = tmp_path / "other"
    build(other, shards_dir, recipe_file, f"teacher.model=local-dir:{teacher}")
    shutil.rmtree(cache_copy / "anchors" / "shapes-plain")
    shutil.copytree(other / "anchors" / "shapes-plain", cache_copy / "anchors" / "shapes-plain")
    with pytest.raises(CacheMismatchError, match="of another teacher"):
        build(cache_copy, shards_dir, recipe_file)


def test_a_mistyped_prompt_set_is_told_before_the_work(
    tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    with pytest.raises(DataError, match="did you mean 'context'"):
        build(tmp_path / "cache", shards_dir, recipe_file, "prompts.anchors=contxt")
    assert not (tmp_path / "cache").exists()


def test_classes_in_another_order_than_the_labels_are_refused(
    tmp_path: Path, shards_copy: Path, recipe_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes = shards_copy / "classes.txt"
    classes.write_text("blue_square\ngreen square\nred square\n", encoding="utf-8")
    with pytest.raises(DataError, match="same classes in another order"):
        build(tmp_path / "cache", shards_copy, recipe_file)
    classes.write_text("n001\nn002\nn003\n", encoding="utf-8")
    build(tmp_path / "cache", shards_copy, recipe_file)
    assert "check that they mean the same" in caplog.text
