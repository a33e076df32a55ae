"""The order of training is a pure function of (seed, epoch), whoever reads it."""

import numpy as np
import pytest

from pipeline.errors import StudentError
from pipeline.order import Order, hold_out, noise_seed, plan_epoch

SHARDS = np.repeat(np.arange(7), [5, 9, 4, 6, 8, 3, 5])  # of 40 rows


class TestPlan:
    @pytest.mark.parametrize(("rows", "batch"), [(24, 8), (24, 7), (1, 1), (5, 5), (1000, 32)])
    def test_an_epoch_sees_no_row_twice_and_leaves_out_less_than_a_batch(
        self, rows: int, batch: int
    ) -> None:
        plan = plan_epoch(rows, batch, seed=3, epoch=1)
        assert plan.shape == (rows // batch, batch)
        assert len(np.unique(plan)) == plan.size
        assert 0 <= plan.min() <= plan.max() < rows

    def test_is_a_function_of_seed_and_epoch_alone(self) -> None:
        plans = [plan_epoch(50, 8, seed, epoch) for seed, epoch in [(0, 3), (1, 9), (0, 3)]]
        assert np.array_equal(plans[0], plans[2])

    def test_differs_between_epochs_and_between_seeds(self) -> None:
        plans = [plan_epoch(50, 8, seed, epoch) for seed in range(4) for epoch in range(4)]
        assert len({plan.tobytes() for plan in plans}) == 16

    def test_leaves_out_another_part_each_epoch(self) -> None:
        left_out = {
            frozenset(range(10)) - frozenset(plan_epoch(10, 8, 0, epoch).flat)
            for epoch in range(20)
        }
        assert len(left_out) > 5

    def test_every_place_is_as_likely_as_another(self) -> None:
        first = [int(plan_epoch(10, 2, 0, epoch)[0, 0]) for epoch in range(2000)]
        counts = np.bincount(first, minlength=10)
        # Chi-square of 9 degrees of freedom: 27.9 is passed once in a thousand.
        assert ((counts - 200) ** 2 / 200).sum() < 27.9

    def test_fewer_rows_than_a_batch_make_one_step_of_all(self) -> None:
        assert sorted(plan_epoch(3, 8, 0, 0).tolist()[0]) == [0, 1, 2]

    def test_no_row_at_all_is_an_error(self) -> None:
        with pytest.raises(StudentError, match="no valid row"):
            plan_epoch(0, 8, 0, 0)


class TestWindows:
    @pytest.mark.parametrize("window", [1, 2, 3, 10])
    def test_read_no_more_shards_at_a_time_than_they_are_wide(self, window: int) -> None:
        order = plan_epoch(40, 1, 0, 4, shard_N=SHARDS, window=window).ravel()
        assert sorted(order.tolist()) == list(range(40))
        shards = SHARDS[order]
        for shard in range(7):
            places = np.flatnonzero(shards == shard)
            span = set(shards[places[0] : places[-1] + 1].tolist())
            assert len(span) <= window

    def test_mix_the_rows_within_and_the_shards_between(self) -> None:
        epochs = [plan_epoch(40, 1, 0, e, shard_N=SHARDS, window=2).ravel() for e in range(6)]
        assert len({order.tobytes() for order in epochs}) == 6
        assert len({tuple(dict.fromkeys(SHARDS[order].tolist())) for order in epochs}) == 6
        assert any((np.diff(order) < 0).any() for order in epochs)

    def test_are_a_function_of_seed_and_epoch_alone(self) -> None:
        one, other, again = (
            plan_epoch(40, 4, seed, 3, shard_N=SHARDS, window=2) for seed in (0, 1, 0)
        )
        assert np.array_equal(one, again)
        assert not np.array_equal(one, other)

    def test_as_wide_as_all_shards_hold_all_rows_at_once(self) -> None:
        wide = plan_epoch(40, 4, 0, 0, shard_N=SHARDS, window=7)
        assert np.array_equal(wide, plan_epoch(40, 4, 0, 0))


def order(rows: int = 40, **changes: int) -> Order:
    settings = {"batch_size": 8, "seed": 0} | changes
    return Order(np.arange(100, 100 + rows), SHARDS[:rows], **settings)


class TestOrder:
    @pytest.mark.parametrize("ranks", [1, 2, 4, 8])
    def test_is_the_same_however_many_ranks_divide_it(self, ranks: int) -> None:
        one, several = order(), order(ranks=ranks)
        assert several.steps_per_epoch == one.steps_per_epoch == 5
        for step in range(12):
            rows, epoch = several.step(step)
            assert np.array_equal(rows, one.step(step)[0])
            assert epoch == step // 5

    def test_steps_are_cut_to_a_multiple_of_the_ranks(self) -> None:
        few = order(rows=7, ranks=4)  # fewer rows than a batch
        assert few.steps_per_epoch == 1
        assert len(few.step(0)[0]) == 4

    def test_fewer_rows_than_ranks_are_repeated_so_that_all_take_equal_steps(self) -> None:
        rows, _ = order(rows=3, ranks=8).step(0)
        assert len(rows) == 8
        assert set(rows.tolist()) == {100, 101, 102}

    def test_a_batch_that_does_not_divide_is_an_error(self) -> None:
        with pytest.raises(StudentError, match="multiple of 3"):
            order(ranks=3)

    @pytest.mark.parametrize("count", [1, 7, 8, 20, 100])
    @pytest.mark.parametrize("step", [0, 1, 4, 5, 13])
    def test_before_a_step_is_what_a_queue_of_all_steps_would_hold(
        self, step: int, count: int
    ) -> None:
        plan = order()
        queue: list[tuple[int, int]] = []
        for earlier in range(step - 20, step):
            rows, epoch = plan.step(earlier)
            queue += [(row, epoch) for row in rows.tolist()]
        found = [(row, epoch) for rows, epoch in plan.before(step, count) for row in rows.tolist()]
        assert found == queue[-count:]

    def test_before_the_first_step_lie_epochs_of_their_own(self) -> None:
        plan = order()
        rows = {plan.step(step)[0].tobytes() for step in range(-10, 10)}
        assert len(rows) == 20
        assert plan.step(-1)[1] == -1


def test_held_out_rows_are_as_many_as_asked_and_spread() -> None:
    held = hold_out(1000, 50)
    assert held.sum() == 50
    assert np.array_equal(held, hold_out(1000, 50))
    assert hold_out(1000, 0).sum() == 0
    assert 5 < held[:500].sum() < 45


def test_noise_differs_between_steps_seeds_and_ranks() -> None:
    found = {noise_seed(s, step, rank) for s in range(3) for step in range(3) for rank in range(3)}
    assert len(found) == 27
