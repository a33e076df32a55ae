"""Which worker gets which job: windows, retries, and who is blamed for a death."""

import random

import pytest

from pipeline.dispatch import MAX_ATTEMPTS, MAX_DEATHS, Dispatch, Task, worth_retrying
from pipeline.errors import ShardError


def with_workers(jobs: int, *workers: str) -> Dispatch[int]:
    dispatch = Dispatch(range(jobs))
    for worker in workers:
        dispatch.join(worker, 1)
    return dispatch


def given(dispatch: Dispatch[int]) -> dict[str, list[int]]:
    hands: dict[str, list[int]] = {}
    for worker, task in dispatch.assign():
        hands.setdefault(worker, []).append(task.job)
    return hands


def test_a_worker_gets_two_jobs_and_no_third_until_one_is_done() -> None:
    dispatch = with_workers(9, "a", "b")
    moves = dispatch.assign()
    assert sorted(worker for worker, _ in moves) == ["a", "a", "b", "b"]
    assert [task.job for _, task in moves] == [0, 1, 2, 3]
    assert dispatch.assign() == []
    dispatch.finish(*moves[0])
    assert given(dispatch) == {moves[0][0]: [4]}


def test_the_last_jobs_are_spread_and_none_waits_behind_another() -> None:
    assert given(with_workers(3, "a", "b")) == {"a": [0], "b": [1]}


def test_a_worker_of_several_threads_does_one_job_at_a_time() -> None:
    dispatch = Dispatch(range(9))
    dispatch.join("wide", 8)
    assert given(dispatch) == {"wide": [0]}


def test_a_worker_that_joins_is_used_and_one_told_twice_changes_nothing() -> None:
    dispatch = with_workers(9, "a")
    dispatch.assign()
    dispatch.join("b", 1)
    dispatch.join("a", 1)
    assert given(dispatch) == {"b": [2, 3]}


def test_an_orderly_leave_blames_nobody_and_the_jobs_come_first_again() -> None:
    dispatch = with_workers(9, "a")
    dispatch.assign()
    held, given_up = dispatch.leave("a", died=False)
    assert ([task.job for task in held], given_up) == ([0, 1], [])
    dispatch.join("b", 1)
    assert given(dispatch) == {"b": [0, 1]}


def test_who_shared_a_worker_with_a_death_is_tried_on_a_worker_to_itself() -> None:
    dispatch = with_workers(9, "a")
    dispatch.assign()
    dispatch.leave("a", died=True)
    dispatch.join("b", 1)
    dispatch.join("c", 1)
    moves = dispatch.assign()
    assert {worker: task.job for worker, task in moves} == {"b": 0, "c": 1}
    dispatch.finish(*moves[0])
    assert given(dispatch) == {"b": [2, 3]}  # cleared: it works in company again


def test_the_third_death_gives_a_job_up() -> None:
    dispatch = with_workers(1, "a")
    for deaths in range(1, MAX_DEATHS + 1):
        dispatch.assign()
        _, given_up = dispatch.leave("a", died=True)
        assert bool(given_up) == (deaths == MAX_DEATHS)
        dispatch.join("a", 1)
    assert not dispatch.unfinished


def test_an_error_is_tried_elsewhere_first_and_three_times_in_all() -> None:
    dispatch = with_workers(1, "a", "b")
    ((first, task),) = dispatch.assign()
    assert dispatch.fail(first, task, OSError())
    ((second, task),) = dispatch.assign()
    assert {first, second} == {"a", "b"}
    assert dispatch.fail(second, task, OSError())
    ((third, task),) = dispatch.assign()
    assert not dispatch.fail(third, task, OSError())
    assert task.attempts == MAX_ATTEMPTS
    assert not dispatch.unfinished


def test_an_error_of_a_lonely_worker_is_tried_there_again() -> None:
    dispatch = with_workers(1, "a")
    ((worker, task),) = dispatch.assign()
    assert dispatch.fail(worker, task, MemoryError())
    assert dispatch.assign() == [("a", task)]


def test_our_own_errors_are_facts_and_not_tried_again() -> None:
    dispatch = with_workers(1, "a")
    ((worker, task),) = dispatch.assign()
    assert not dispatch.fail(worker, task, ShardError("cut"))
    assert worth_retrying(OSError())
    assert worth_retrying(RuntimeError())
    assert not worth_retrying(KeyboardInterrupt())


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_each_job_ends_once_and_only_killers_are_given_up(seed: int) -> None:
    """Workers die of killers, leave and join at random; an oracle knows who kills."""
    rng = random.Random(seed)
    jobs, workers = rng.randrange(1, 60), rng.randrange(1, 6)
    killers = {job for job in range(jobs) if rng.random() < 0.1}
    flaky = {job: rng.randrange(MAX_ATTEMPTS) for job in range(jobs) if rng.random() < 0.2}
    dispatch = with_workers(jobs, *(f"w{i}" for i in range(workers)))
    hands: dict[str, list[Task[int]]] = {worker: [] for worker in dispatch.workers}
    done: list[int] = []
    given_up: list[int] = []
    deaths, names = 0, iter(range(100, 10_000))

    def take_off(worker: str, *, died: bool) -> None:
        lost, ended = dispatch.leave(worker, died=died)
        assert {task.job for task in lost} == {task.job for task in hands.pop(worker)}
        given_up.extend(task.job for task in ended)
        name = f"w{next(names)}"
        dispatch.join(name, 1)
        hands[name] = []

    while dispatch.unfinished:
        for worker, task in dispatch.assign():
            hands[worker].append(task)
            assert len(hands[worker]) <= 2
            assert len(hands[worker]) == 1 or not any(task.deaths for task in hands[worker])
        worker = rng.choice([worker for worker, held in hands.items() if held])
        task = hands[worker][0]
        if rng.random() < 0.05:
            take_off(worker, died=False)
        elif task.job in killers:
            deaths += 1
            take_off(worker, died=True)
        elif flaky.get(task.job, 0):
            flaky[task.job] -= 1
            hands[worker].remove(task)
            assert dispatch.fail(worker, task, OSError())
        else:
            hands[worker].remove(task)
            dispatch.finish(worker, task)
            done.append(task.job)
    assert sorted(done) == sorted(set(range(jobs)) - killers)
    assert sorted(given_up) == sorted(killers)
    assert deaths <= MAX_DEATHS * len(killers)
