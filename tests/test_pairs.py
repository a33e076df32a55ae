"""Each image is seen twice, differently, in an order that only the seed and the epoch decide."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ShardError, StudentError
from pipeline.order import plan_epoch
from pipeline.pairs import PairBatch, Pairs
from pipeline.schedule import Schedule
from pipeline.shards import find_shards, read_samples, write_shards
from pipeline.simclr import SIMCLR
from pipeline.views import render_views
from tests.inputs import encode, labelled_samples, square

PX = 24
CPU = torch.device("cpu")


def pairs(folder: Path, *, schedule: Schedule = SIMCLR, **options: Any) -> Pairs:
    chosen = {"input_px": PX, "batch_size": 8, "seed": 0} | options
    return Pairs(find_shards([str(folder)]), schedule, **chosen)


def epoch(source: Pairs, number: int = 0) -> list[PairBatch]:
    first = number * source.steps_per_epoch
    return list(source.starting_at(first, first + source.steps_per_epoch))


def samples_of(folder: Path) -> list[tuple[str, bytes]]:
    shards = [shard for shard in find_shards([str(folder)]) if shard.split == "train"]
    return [(s.key, s.image().content) for shard in shards for s in read_samples(shard)]


def test_views_are_the_schedules_own_rendered_as_stage_one_would(shards_dir: Path) -> None:
    source = pairs(shards_dir)
    samples = samples_of(shards_dir)
    assert len(source) == len(samples) == 24
    for number in (0, 3):
        order = plan_epoch(24, 8, 0, number)
        for batch, rows in zip(epoch(source, number), order, strict=True):
            views = batch.views(CPU)
            assert views.shape == (16, 3, PX, PX)
            assert views.dtype == torch.uint8
            for place, row in enumerate(rows):
                key, encoded = samples[row]
                width, height = 40, 36
                params = [SIMCLR.params(key, 2 * number + i, width, height) for i in (0, 1)]
                expected = render_views(encoded, params, PX)
                assert torch.equal(views[[place, 8 + place]], expected), key


def test_only_train_shards_are_read(more_shards: Path) -> None:
    assert len(pairs(more_shards)) == 30


def test_the_two_views_of_an_image_differ_and_so_do_those_of_the_next_epoch(
    shards_dir: Path,
) -> None:
    source = pairs(shards_dir, batch_size=24)
    (one,), (other,) = epoch(source, 0), epoch(source, 1)
    views = one.views(CPU)
    assert all(not torch.equal(views[i], views[24 + i]) for i in range(24))
    seen = {row.tobytes() for batch in (one, other) for row in batch.params}
    assert len(seen) == 96


def test_workers_and_the_step_that_is_begun_at_change_nothing(shards_dir: Path) -> None:
    source = pairs(shards_dir)
    straight = list(source.starting_at(0, 6))
    others = [*source.starting_at(0, 2), *pairs(shards_dir, workers=2).starting_at(2, 6)]
    for one, other in zip(straight, others, strict=True):
        assert torch.equal(one.geometry, other.geometry)
        assert np.array_equal(one.params, other.params)


def test_another_seed_is_another_order(shards_dir: Path) -> None:
    one, other = epoch(pairs(shards_dir))[0], epoch(pairs(shards_dir, seed=1))[0]
    assert not np.array_equal(one.params, other.params)


def test_another_seed_of_the_schedule_is_other_views_of_the_same_order(shards_dir: Path) -> None:
    other = dataclasses.replace(SIMCLR, seed=1)
    one, two = epoch(pairs(shards_dir))[0], epoch(pairs(shards_dir, schedule=other))[0]
    assert not np.array_equal(one.params, two.params)


def test_images_that_cannot_be_decoded_are_left_out_and_named(tmp_path: Path) -> None:
    samples = labelled_samples(8)
    samples[3] = ("broken", {"jpg": encode(square(0, 1), "JPEG")[:300], "cls": b"0"})
    samples[5] = ("no-image", {"txt": b"words"})
    write_shards(samples, tmp_path, "train", per_shard=8)
    source = pairs(tmp_path, batch_size=7)
    assert len(source) == 7  # the one without an image is known from the start
    (batch,) = epoch(source)
    assert len(batch) == 6
    assert batch.geometry.shape[0] == 12
    ((name, reason),) = batch.unread
    assert name.endswith("train-000000.tar: broken")
    assert reason.startswith("truncated")


def test_a_batch_without_any_image_is_empty(tmp_path: Path) -> None:
    broken = {"jpg": encode(square(0, 1), "JPEG")[:300]}
    write_shards([(f"{i}", broken) for i in range(4)], tmp_path, "train", per_shard=4)
    (batch,) = epoch(pairs(tmp_path, batch_size=4))
    assert len(batch) == 0
    assert len(batch.unread) == 4
    assert batch.views(CPU).shape == (0, 3, PX, PX)


def test_less_than_two_images_are_an_error(tmp_path: Path) -> None:
    write_shards(labelled_samples(1), tmp_path, "train", per_shard=1)
    write_shards(labelled_samples(5), tmp_path, "test", per_shard=5)
    with pytest.raises(StudentError, match="found 1 images in 1 train shards"):
        pairs(tmp_path)


def test_a_shard_that_shrinks_is_an_error_of_the_loader_too(
    tmp_path: Path, shards_dir: Path
) -> None:
    folder = Path(shutil.copytree(shards_dir, tmp_path / "shards"))
    source = pairs(folder, workers=1)
    for path in folder.glob("train-*.tar"):
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ShardError, match="changed while it was read"):
        epoch(source)
