"""The bank of earlier targets is a queue that no restart empties."""

from pathlib import Path

import pytest
import torch

from pipeline.bank import Bank
from pipeline.batches import TrainingBatches, ViewBatch
from pipeline.cache.reader import TargetCache
from pipeline.contracts import Keys
from pipeline.shards import find_shards

CPU = torch.device("cpu")


@pytest.fixture
def source(sealed_cache: Path, shards_dir: Path) -> TrainingBatches:
    return TrainingBatches(
        TargetCache.open(sealed_cache),
        find_shards([str(shards_dir)]),
        sizes=(32,),
        batch_size=8,
        num_views=2,
        seed=0,
    )


def keys_of(batch: ViewBatch) -> Keys:
    return Keys(batch.keys_GD, batch.key_rows_G)


def banks(source: TrainingBatches, size: int, start: int, stop: int) -> list[Keys]:
    bank = Bank(source, size, CPU)
    return [
        bank.before(step, keys_of(batch))
        for step, batch in enumerate(source.starting_at(start, stop), start)
    ]


@pytest.mark.parametrize("size", [3, 8, 20, 100])
def test_equals_a_queue_of_every_target_that_came_before(
    source: TrainingBatches, size: int
) -> None:
    first = source.keys_before(0, size)
    queue = list(zip(first.targets_ND, first.rows_N.tolist(), strict=True))
    for bank, batch in zip(banks(source, size, 0, 9), source.starting_at(0, 9), strict=True):
        assert torch.equal(bank.targets_ND, torch.stack([target for target, _ in queue]))
        assert bank.rows_N.tolist() == [row for _, row in queue]
        for target, row in zip(batch.target_BD, batch.rows_B.tolist(), strict=True):
            queue.append((target, row))
            queue.pop(0)


@pytest.mark.parametrize("step", [1, 4, 7])
def test_is_the_same_from_any_step_on(source: TrainingBatches, step: int) -> None:
    straight, resumed = banks(source, 20, 0, 9), banks(source, 20, step, 9)
    for one, other in zip(straight[step:], resumed, strict=True):
        assert torch.equal(one.targets_ND, other.targets_ND)
        assert torch.equal(one.rows_N, other.rows_N)


def test_is_empty_where_no_loss_asks_for_one(source: TrainingBatches) -> None:
    (bank,) = banks(source, 0, 0, 1)
    assert bank.targets_ND.shape == (0, source.keys_before(0, 1).targets_ND.shape[1])
    assert bank.rows_N.shape == (0,)


def test_starts_with_real_targets_of_the_cache(source: TrainingBatches, sealed_cache: Path) -> None:
    cache = TargetCache.open(sealed_cache)
    (bank,) = banks(source, 30, 0, 1)
    known = torch.cat(
        [torch.from_numpy(cache.targets(torch.arange(24).numpy(), v)) for v in range(2)]
    )
    assert all((row == known).all(dim=1).any() for row in bank.targets_ND)
