"""Batches join the right pixels with the right targets, in an order fixed by (seed, epoch)."""

import io
import resource
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.batches import TrainingBatches, ViewBatch, check_cache, eval_batches
from pipeline.cache.reader import TargetCache
from pipeline.decode import DecodePolicy
from pipeline.errors import CacheMismatchError, ShardError
from pipeline.recipe import load_recipe
from pipeline.resident import resident_teacher
from pipeline.runtime import torch_threads
from pipeline.schedule import EVAL, Schedule, ViewParams
from pipeline.shards import Sample, Shard, find_shards, read_samples, write_shards
from pipeline.views import render_views
from tests.images import picture, saved
from tests.inputs import build, labelled_samples

CPU = torch.device("cpu")
TEACHER_PX = 32


@pytest.fixture
def cache(sealed_cache: Path) -> TargetCache:
    return TargetCache.open(sealed_cache)


@pytest.fixture
def shards(shards_dir: Path) -> list[Shard]:
    return find_shards([str(shards_dir)])


@pytest.fixture(scope="session")
def holed(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> tuple[Path, Path]:
    """Shards with one image that is cut off in each split, and their cache."""
    folder = tmp_path_factory.mktemp("holed")
    for split, seed in (("train", 5), ("test", 6)):
        samples = labelled_samples(12, seed=seed)
        extension, image = next(iter(samples[4][1].items()))
        samples[4][1][extension] = image[: len(image) // 2]
        write_shards(samples, folder / "shards", split, per_shard=8)
    return build(folder / "cache", folder / "shards", recipe_file), folder / "shards"


@pytest.fixture(scope="session")
def jpegs(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> tuple[Path, Path]:
    """Shards of larger JPEGs, some with bytes too many before the end, and their cache."""
    folder = tmp_path_factory.mktemp("jpegs")
    samples = []
    for number in range(12):
        image = Image.fromarray(picture(150 + number, 120, number))
        encoded = saved(image, "JPEG", subsampling=number % 3, progressive=number == 5)
        if number % 4 == 1:
            encoded = encoded[:-2] + b"more" + encoded[-2:]
        samples.append((f"{number:05d}", {"jpg": encoded, "cls": b"0"}))
    write_shards(samples, folder / "shards", "train", per_shard=12)
    wide = ("schedule.crop_scale=[0.2,1.0]", "views=2")
    return build(folder / "cache", folder / "shards", recipe_file, *wide), folder / "shards"


def source(cache: TargetCache, shards: list[Shard], **changes: int) -> TrainingBatches:
    settings = {"batch_size": 8, "num_views": 2, "seed": 0} | changes
    size = settings.pop("input_px", TEACHER_PX)
    return TrainingBatches(cache, shards, sizes=(size,), **settings)


def samples_by_row(cache: TargetCache, shards: Iterable[Shard]) -> dict[int, Sample]:
    """Read every sample of the split from its tars, by row of the cache."""
    return {
        cache.row_of(shard.name, sample.ordinal): sample
        for shard in shards
        if shard.split == cache.split
        for sample in read_samples(shard)
    }


def scheduled(cache: TargetCache, sample: Sample, row: int, view: int) -> ViewParams:
    """Ask the schedule itself what is seen of a sample."""
    width, height = (int(cache.column(side)[row]) for side in ("width", "height"))
    return cache.schedule.params(sample.key, view, width, height)


def assert_same(one: ViewBatch, other: ViewBatch) -> None:
    assert one.geometry.keys() == other.geometry.keys()
    assert all(torch.equal(views, other.geometry[size]) for size, views in one.geometry.items())
    assert np.array_equal(one.params_BP, other.params_BP)
    assert torch.equal(one.target_BD, other.target_BD)
    assert torch.equal(one.rows_B, other.rows_B)
    assert torch.equal(one.labels_B, other.labels_B)


class TestViews:
    @pytest.mark.parametrize("px", [TEACHER_PX, 48])
    def test_are_byte_equal_to_what_stage_one_renders_of_the_same_sample(
        self, cache: TargetCache, shards: list[Shard], px: int
    ) -> None:
        samples = samples_by_row(cache, shards)
        per_epoch = 3
        batches = source(cache, shards, input_px=px).starting_at(0, 2 * per_epoch)
        for step, batch in enumerate(batches):
            views = batch.views(CPU)
            assert views.dtype == torch.uint8
            assert views.shape == (8, 3, px, px)
            for i, row in enumerate(batch.rows_B.tolist()):
                params = scheduled(cache, samples[row], row, step // per_epoch)
                encoded = samples[row].image().content
                assert torch.equal(views[i], render_views(encoded, [params], px)[0])
                assert np.array_equal(batch.params_BP[i], np.array(params, np.float32))

    def test_at_several_sizes_are_those_of_stage_one_though_rows_below_are_left_out(
        self, jpegs: tuple[Path, Path]
    ) -> None:
        cache, shards = TargetCache.open(jpegs[0]), find_shards([str(jpegs[1])])
        samples = samples_by_row(cache, shards)
        sizes = (20, TEACHER_PX, 96)
        batches = TrainingBatches(cache, shards, sizes=sizes, batch_size=4, num_views=2, seed=0)
        for step, batch in enumerate(batches.starting_at(0, 6)):
            for i, row in enumerate(batch.rows_B.tolist()):
                params = scheduled(cache, samples[row], row, step // 3)
                for size in sizes:
                    expected = render_views(samples[row].image().content, [params], size)[0]
                    assert torch.equal(batch.views(CPU, size)[i], expected)

    def test_of_an_epoch_are_the_views_of_its_number_in_turn(
        self, cache: TargetCache, shards: list[Shard]
    ) -> None:
        for num_views, views in [(2, [0, 1, 0, 1]), (1, [0, 0, 0, 0])]:
            batches = list(source(cache, shards, num_views=num_views).starting_at(0, 12))
            for step, batch in enumerate(batches):
                expected = cache.view_params(batch.rows_B.numpy(), views[step // 3])
                assert np.array_equal(batch.params_BP, expected)

    def test_change_with_the_view(self, cache: TargetCache, shards: list[Shard]) -> None:
        batches = source(cache, shards)
        by_epoch = [
            {
                row: view.numpy().tobytes()
                for b in batches.starting_at(3 * epoch, 3 * epoch + 3)
                for row, view in zip(b.rows_B.tolist(), b.views(CPU), strict=True)
            }
            for epoch in range(3)
        ]
        assert by_epoch[0] == by_epoch[2]
        assert all(by_epoch[0][row] != by_epoch[1][row] for row in by_epoch[0])


class TestTargets:
    # float16 rounds components by at most 2^-11: 1e-7 of a cosine.
    TOLERANCE = 1e-6

    @pytest.fixture
    def recompute(self, recipe_file: Path):  # type: ignore[no-untyped-def]
        teacher = resident_teacher(load_recipe(str(recipe_file)).teacher, "cpu")

        def embed(batch: ViewBatch) -> np.ndarray:
            with torch_threads(1):
                return teacher.embed_images(batch.views(CPU)).numpy()

        return embed

    def assert_joined(self, batch: ViewBatch, again_BD: np.ndarray) -> None:
        target_BD = batch.target_BD.numpy()
        assert target_BD.dtype == np.float32
        norms_B = np.linalg.norm(target_BD, axis=1)
        np.testing.assert_allclose(norms_B, 1, atol=1e-3)
        cosine_BB = again_BD @ (target_BD / norms_B[:, None]).T
        assert (np.diag(cosine_BB) >= 1 - self.TOLERANCE).all()
        others = cosine_BB[~np.eye(len(cosine_BB), dtype=bool)]
        assert others.max() < 1 - 2 * self.TOLERANCE  # so that a swap would be seen

    def test_of_training_are_the_teachers_of_the_very_views(
        self, cache: TargetCache, shards: list[Shard], recompute
    ) -> None:
        for batch in source(cache, shards).starting_at(0, 6):
            self.assert_joined(batch, recompute(batch))

    def test_of_evaluation_are_the_teachers_of_the_very_views(
        self, sealed_cache: Path, shards: list[Shard], recompute
    ) -> None:
        for split in ("train", "test"):
            cache = TargetCache.open(sealed_cache, split, EVAL)
            for batch in eval_batches(cache, shards, input_px=TEACHER_PX, batch_size=9):
                self.assert_joined(batch, recompute(batch))

    def test_come_with_the_label_of_the_sample(
        self, cache: TargetCache, shards: list[Shard]
    ) -> None:
        samples = samples_by_row(cache, shards)
        for batch in source(cache, shards).starting_at(0, 3):
            assert batch.labels_B.tolist() == [
                samples[row].label() for row in batch.rows_B.tolist()
            ]


class TestOrder:
    def test_starting_at_a_step_yields_what_the_straight_run_yields_from_there(
        self, cache: TargetCache, shards: list[Shard]
    ) -> None:
        straight = list(source(cache, shards).starting_at(0, 9))
        assert len(straight) == 9
        for step in (1, 3, 7, 9):
            rest = list(source(cache, shards).starting_at(step, 9))
            assert len(rest) == 9 - step
            for one, other in zip(straight[step:], rest, strict=True):
                assert_same(one, other)

    def test_worker_processes_change_nothing(self, cache: TargetCache, shards: list[Shard]) -> None:
        here = source(cache, shards, num_views=2).starting_at(1, 60)
        there = source(cache, shards, num_views=2, workers=2).starting_at(1, 60)
        for one, other in zip(here, there, strict=True):
            assert_same(one, other)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_the_last_two_batches_stay_as_they_were(
        self, sealed_cache: Path, shards: list[Shard], workers: int
    ) -> None:
        """Loaders use their memory of views again, but not that of these two."""
        cache = TargetCache.open(sealed_cache, "train", EVAL)
        batches = eval_batches(cache, shards, input_px=TEACHER_PX, batch_size=1, workers=workers)
        last: ViewBatch | None = None
        kept: torch.Tensor | None = None
        for batch in batches:
            now = batch.views(CPU).clone()
            time.sleep(0.02)  # loaders run as far ahead as they may
            if last is not None and kept is not None:
                assert torch.equal(last.views(CPU), kept)
            last, kept = batch, now

    def test_evaluation_goes_through_every_row_once_in_order(
        self, sealed_cache: Path, shards: list[Shard]
    ) -> None:
        cache = TargetCache.open(sealed_cache, "train", EVAL)
        batches = list(eval_batches(cache, shards, input_px=TEACHER_PX, batch_size=10))
        assert [len(batch.rows_B) for batch in batches] == [10, 10, 4]
        assert torch.cat([batch.rows_B for batch in batches]).tolist() == list(range(24))

    def test_reading_batches_leaves_the_global_generator_alone(
        self, cache: TargetCache, shards: list[Shard], sealed_cache: Path
    ) -> None:
        before = torch.get_rng_state()
        list(source(cache, shards).starting_at(0, 2))
        list(eval_batches(TargetCache.open(sealed_cache, "test"), shards, input_px=TEACHER_PX))
        assert torch.equal(torch.get_rng_state(), before)

    def test_invalid_rows_never_enter(self, holed: tuple[Path, Path]) -> None:
        path, folder = holed
        shards = find_shards([str(folder)])
        cache = TargetCache.open(path)
        assert np.flatnonzero(~cache.column("valid")).tolist() == [4]
        seen = [row for b in source(cache, shards).starting_at(0, 30) for row in b.rows_B.tolist()]
        assert set(seen) == set(range(12)) - {4}
        for split in ("train", "test"):
            batches = eval_batches(TargetCache.open(path, split, EVAL), shards, input_px=TEACHER_PX)
            rows = torch.cat([batch.rows_B for batch in batches]).tolist()
            assert rows == [row for row in range(12) if row != 4]

    def test_fewer_rows_than_a_batch_train_on_all_of_them(
        self, cache: TargetCache, shards: list[Shard]
    ) -> None:
        batches = source(cache, shards, batch_size=100)
        assert batches.steps_per_epoch == 1
        (batch,) = batches.starting_at(4, 5)
        assert sorted(batch.rows_B.tolist()) == list(range(24))


class TestShards:
    @pytest.fixture
    def own(self, tmp_path: Path, shards_dir: Path) -> Path:
        """A copy of the shards that a test may change."""
        return Path(shutil.copytree(shards_dir, tmp_path / "shards"))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_edited_image_is_an_error_that_names_shard_and_sample(
        self, cache: TargetCache, own: Path, workers: int
    ) -> None:
        row = cache.row_of("000001", 3)
        with open(own / "train-000001.tar", "r+b") as file:
            file.seek(int(cache.column("offset")[row]) + 40)
            byte = file.read(1)[0]
            file.seek(-1, io.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        batches = source(cache, find_shards([str(own)]), workers=workers)
        with pytest.raises(ShardError, match=r"train-000001\.tar: sample 3 is not") as caught:
            list(batches.starting_at(0, 3))
        assert "Traceback" not in str(caught.value)

    def test_digests_are_looked_at_unless_told_otherwise(
        self, cache: TargetCache, own: Path
    ) -> None:
        row = cache.row_of("000000", 3)  # a JPEG; a byte of its density, which no pixel hangs on
        with open(own / "train-000000.tar", "r+b") as file:
            file.seek(int(cache.column("offset")[row]) + 15)
            byte = file.read(1)[0]
            file.seek(-1, io.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        shards = find_shards([str(own)])
        with pytest.raises(ShardError, match=r"train-000000\.tar: sample 3 is not"):
            list(source(cache, shards).starting_at(0, 3))
        found = list(source(cache, shards, check_digests=False).starting_at(0, 3))
        assert sorted(r for batch in found for r in batch.rows_B.tolist()) == list(range(24))

    def test_a_jpeg_that_was_cut_is_noticed_without_digests_too(
        self, jpegs: tuple[Path, Path], tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(jpegs[1], tmp_path / "shards"))
        cache = TargetCache.open(jpegs[0])
        end = int(cache.column("offset")[7] + cache.column("bytes")[7])
        with open(folder / "train-000000.tar", "r+b") as file:
            file.seek(end - 300)
            file.write(b"\xff\xd9" + bytes(298))  # an end mark, too early
        batches = source(cache, find_shards([str(folder)]), check_digests=False)
        with pytest.raises(ShardError, match=r"train-000000\.tar: sample 7: truncated"):
            list(batches.starting_at(0, 2))

    def test_two_samples_of_equal_size_that_changed_places_are_noticed(
        self, cache: TargetCache, own: Path
    ) -> None:
        path = own / "train-000000.tar"
        content = bytearray(path.read_bytes())
        offset, size = cache.column("offset"), cache.column("bytes")
        one, other = 0, 1
        a = slice(int(offset[one]), int(offset[one] + min(size[one], size[other])))
        b = slice(int(offset[other]), int(offset[other] + min(size[one], size[other])))
        content[a], content[b] = content[b], content[a]
        path.write_bytes(content)
        with pytest.raises(ShardError, match="not the image that the cache was made from"):
            list(source(cache, find_shards([str(own)])).starting_at(0, 3))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_shard_that_goes_missing_on_the_way_is_named(
        self, cache: TargetCache, own: Path, workers: int
    ) -> None:
        batches = source(cache, find_shards([str(own)]), workers=workers)
        (own / "train-000000.tar").unlink()
        with pytest.raises(OSError, match="No such file") as caught:
            list(batches.starting_at(0, 3))
        assert caught.value.filename == str(own / "train-000000.tar")

    def test_a_shard_cut_off_on_the_way_is_an_error(self, cache: TargetCache, own: Path) -> None:
        batches = source(cache, find_shards([str(own)]))
        with open(own / "train-000000.tar", "r+b") as file:
            file.truncate(2048)
        with pytest.raises(ShardError, match=r"train-000000\.tar: sample \d+ is not"):
            list(batches.starting_at(0, 3))

    def test_a_missing_shard_is_refused_before_the_first_step(
        self, cache: TargetCache, own: Path
    ) -> None:
        (own / "train-000001.tar").unlink()
        with pytest.raises(CacheMismatchError, match="train-000001 bytes") as caught:
            source(cache, find_shards([str(own)]))
        ((field, _, found),) = caught.value.differences
        assert (field, found) == ("train-000001 bytes", "(not given)")

    def test_a_shard_of_another_size_is_refused_before_the_first_step(
        self, cache: TargetCache, own: Path
    ) -> None:
        size = (own / "train-000000.tar").stat().st_size
        with open(own / "train-000000.tar", "ab") as file:
            file.write(bytes(512))
        with pytest.raises(CacheMismatchError) as caught:
            source(cache, find_shards([str(own)]))
        assert caught.value.differences == [("train-000000 bytes", size, size + 512)]

    def test_a_shard_of_the_same_name_in_another_split_does_not_stand_in(
        self, cache: TargetCache, own: Path
    ) -> None:
        shards = [f"test={own / 'train-000000.tar'}", f"train={own / 'train-000001.tar'}"]
        with pytest.raises(CacheMismatchError, match="train-000000"):
            source(cache, find_shards(shards))

    def test_shards_that_the_cache_does_not_know_are_not_read(
        self, cache: TargetCache, own: Path
    ) -> None:
        write_shards(labelled_samples(2, seed=9), own / "more", "train", per_shard=2)
        (own / "more" / "train-000000.tar").rename(own / "train-000009.tar")
        batches = source(cache, find_shards([str(own)])).starting_at(0, 3)
        assert sorted(row for b in batches for row in b.rows_B.tolist()) == list(range(24))

    def test_shards_may_lie_elsewhere(self, cache: TargetCache, own: Path, shards) -> None:
        here = list(source(cache, shards).starting_at(0, 2))
        for one, other in zip(
            here, source(cache, find_shards([str(own)])).starting_at(0, 2), strict=True
        ):
            assert_same(one, other)

    def test_many_shards_do_not_use_up_the_files_that_may_be_open(
        self, tmp_path: Path, recipe_file: Path
    ) -> None:
        count, free = 16, 14
        write_shards(labelled_samples(count, seed=8), tmp_path / "many", "train", per_shard=1)
        path = build(tmp_path / "cache", tmp_path / "many", recipe_file, "views=1")
        cache = TargetCache.open(path)
        batches = source(
            cache, find_shards([str(tmp_path / "many")]), num_views=1, batch_size=count
        )
        cache.targets(np.arange(count), 0), cache.view_params(np.arange(count), 0)  # decoded
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
        allowed = [number for number in range(1000) if number not in used][free]
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, limits[1]))
        try:
            (batch,) = batches.starting_at(0, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert sorted(batch.rows_B.tolist()) == list(range(count))

    def test_files_are_closed_with_the_batches(
        self, cache: TargetCache, shards: list[Shard]
    ) -> None:
        def open_tars() -> list[str]:
            links = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
            return [str(link.readlink()) for link in links if ".tar" in str(link.readlink())]

        before = len(open_tars())
        batches = source(cache, shards)
        list(batches.starting_at(0, 3))
        assert len(open_tars()) == before + 2
        del batches
        assert len(open_tars()) == before


class TestCheck:
    def test_a_cache_of_the_same_rules_is_accepted(self, cache: TargetCache) -> None:
        schedule = cache.schedule
        assert isinstance(schedule, Schedule)
        for views in (1, 2):
            check_cache(cache, schedule, views, DecodePolicy())

    def test_every_field_that_differs_is_named_at_once(self, cache: TargetCache) -> None:
        other = Schedule(name="mild", seed=1, crop_scale=(0.5, 1.0))
        with pytest.raises(CacheMismatchError) as caught:
            check_cache(cache, other, 3, DecodePolicy(max_pixels=7))
        fields = {field: (old, new) for field, old, new in caught.value.differences}
        assert fields == {
            "schedule.seed": (0, 1),
            "schedule.crop_scale.0": (0.7, 0.5),
            "decode.max_pixels": (50_000_000, 7),
            "views": (2, 3),
        }
        for field in fields:
            assert field in str(caught.value)
