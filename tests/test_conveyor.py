"""Units on their way: batches of their own, errors of their own, and renderers that die."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from pipeline.cache import layout
from pipeline.conveyor import Device, _carry, carry_units, embed_unit, embed_units
from pipeline.errors import ShardError, TeacherError
from pipeline.feeder import Batch
from pipeline.rendering import RenderPlan, Request, Slab
from pipeline.renderpool import RenderHere
from pipeline.resident import resident_fingerprint, resident_teacher, stop_renderers
from pipeline.runtime import Meter
from pipeline.schedule import ViewParams
from pipeline.shards import find_shards
from pipeline.teacher import OpenClipTeacher, load_teacher
from pipeline.transfers import page_locked
from pipeline.unit import UnitJob, UnitReport


def ignore(progress: tuple[int, int]) -> None:
    """Stand where nobody listens."""


def test_a_unit_made_twice_is_published_once(job: UnitJob) -> None:
    first, second = embed_unit(job, ignore), embed_unit(job, ignore)
    assert (first.published, second.published) == (True, False)
    assert (first.seen, first.skipped, first.views) == (14, 0, 28)


def test_a_unit_made_alone_equals_the_one_made_among_others(
    job: UnitJob, sealed_cache: Path
) -> None:
    embed_unit(job, ignore)
    found = layout.unit_attributes(job.cache, job.unit, job.fingerprint)
    assert found == layout.unit_attributes(sealed_cache, job.unit, job.fingerprint)


def test_progress_adds_up_to_the_shards_views_and_nearly_its_bytes(job: UnitJob) -> None:
    heard: list[tuple[int, int]] = []
    embed_unit(job, heard.append)
    work, views = (sum(part) for part in zip(*heard, strict=True))
    assert views == 14 * 2
    assert 0.6 < work / (job.shard.size_bytes * 2) <= 1  # what is left is the tar's padding


def test_a_process_with_another_teacher_never_embeds(job: UnitJob) -> None:
    other = UnitJob(**{**vars(job), "teacher_digest": "0" * 64})
    with pytest.raises(TeacherError, match="not the one of the cache's manifest"):
        embed_unit(other, ignore)
    assert not (job.cache / "units").exists()


@pytest.fixture
def jobs(job: UnitJob, shards_dir: Path) -> list[UnitJob]:
    """The jobs of every train unit, for another cache."""
    return [
        dataclasses.replace(job, shard=shard, unit=dataclasses.replace(job.unit, shard=shard.name))
        for shard in find_shards([str(shards_dir)])
        if shard.split == "train"
    ]


def outcomes(jobs: list[UnitJob]) -> list[UnitReport]:
    found = []
    for _, outcome in embed_units(jobs, ignore):
        assert isinstance(outcome, UnitReport), outcome
        found.append(outcome)
    return found


def attributes(job: UnitJob) -> dict[str, Any] | None:
    return layout.unit_attributes(job.cache, job.unit, job.fingerprint)


def test_units_made_together_equal_units_made_alone(
    jobs: list[UnitJob], sealed_cache: Path
) -> None:
    assert len(jobs) > 1
    assert [report.name for report in outcomes(jobs)] == [job.unit.name for job in jobs]
    for job in jobs:
        assert attributes(job) is not None
        assert attributes(job) == attributes(dataclasses.replace(job, cache=sealed_cache))


@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
def test_batches_of_any_size_reach_the_right_rows(
    jobs: list[UnitJob], sealed_cache: Path, batch_size: int
) -> None:
    for job in jobs:
        options = dataclasses.replace(job.teacher, batch_size=batch_size)
        outcomes([dataclasses.replace(job, teacher=options)])
        for name in ("targets", "norms", "params", "valid", "keys", "digests", "samples"):
            place = f"units/{job.unit.name}"
            found = np.asarray(zarr.open_group(job.cache / place, mode="r")[name])
            expected = np.asarray(zarr.open_group(sealed_cache / place, mode="r")[name])
            if name == "norms":
                np.testing.assert_allclose(found, expected, rtol=1e-6)
            elif name == "targets":
                assert least_cosine(found, expected) > 1 - 1e-6
            else:
                assert (found == expected).all(), name


def least_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    one, other = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return float(((one * other).sum(-1) / norms).min())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_gives_a_cpus_targets(
    jobs: list[UnitJob], sealed_cache: Path, precision: Any
) -> None:
    options = dataclasses.replace(jobs[0].teacher, precision=precision)
    digest = layout.teacher_digest(resident_fingerprint(options, "cuda"))
    outcomes(
        [
            dataclasses.replace(job, teacher=options, teacher_digest=digest, device="cuda")
            for job in jobs
        ]
    )
    for job in jobs:
        places = [folder / "units" / job.unit.name for folder in (job.cache, sealed_cache)]
        found, expected = (np.asarray(zarr.open_group(p, mode="r")["targets"]) for p in places)
        assert least_cosine(found, expected) > 1 - (1e-4 if precision == "fp32" else 1e-2)


@pytest.mark.gpu
def test_batches_do_not_wait_for_the_gpu(jobs: list[UnitJob]) -> None:
    """But for the vectors of the batch before, when the next one has been begun."""
    size = jobs[0].teacher.batch_size
    teacher = resident_teacher(jobs[0].teacher, "cuda")
    slab = Slab(4 * size, teacher.preprocess.size)
    slab.params_RP[:] = ViewParams(brightness=1.1, contrast=0.9, hue=0.1, blur_sigma=0.02)
    device = Device(teacher, torch.device("cuda"), slab, size, 4 * size)

    class Here:
        error: Exception | None = None

    unit: Any = Here()
    with page_locked(slab.views_R3SS, torch.device("cuda")):
        assert slab.views_R3SS.is_pinned()
        for number in range(6):
            torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
            try:
                done = device.embed(Batch(unit, number * size, size))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert len(done) == (number > 0)
            assert unit.error is None
        (last,) = device.finish()
    assert last.vectors_BD.shape == (size, teacher.dim)
    assert not slab.views_R3SS.is_pinned()


def test_a_damaged_shard_ends_its_unit_alone(jobs: list[UnitJob], tmp_path: Path) -> None:
    cut = tmp_path / "train-cut.tar"
    cut.write_bytes(jobs[0].shard.path.read_bytes()[:9000])
    (shard,) = find_shards([str(cut)])
    broken = dataclasses.replace(
        jobs[0], shard=shard, unit=dataclasses.replace(jobs[0].unit, shard="cut")
    )
    ended = embed_units([jobs[0], broken, *jobs[1:]], ignore)
    found = {job.unit.name: outcome for job, outcome in ended}
    assert isinstance(found.pop(broken.unit.name), ShardError)
    assert len(found) == len(jobs)
    assert all(isinstance(outcome, UnitReport) for outcome in found.values())
    assert attributes(broken) is None


class ShortOfMemory(OpenClipTeacher):
    """A teacher on a device that has room for `most` views at a time."""

    most = 3

    def encode_images(self, views_B3SS: torch.Tensor) -> torch.Tensor:
        if len(views_B3SS) > self.most:
            raise torch.OutOfMemoryError(f"no room for {len(views_B3SS)} views")
        return super().encode_images(views_B3SS)


@pytest.mark.parametrize("most", [3, 1])
def test_a_device_short_of_memory_gets_smaller_batches(
    job: UnitJob, sealed_cache: Path, most: int
) -> None:
    teacher = load_teacher(job.teacher, torch.device("cpu"))
    teacher.__class__ = type("ShortOfMemory", (ShortOfMemory,), {"most": most})
    ((_, outcome),) = carry_units([job], teacher, ignore)
    assert isinstance(outcome, UnitReport)
    place = f"units/{job.unit.name}"
    found = zarr.open_group(job.cache / place, mode="r")["targets"][...].astype(np.float64)
    expected = zarr.open_group(sealed_cache / place, mode="r")["targets"][...].astype(np.float64)
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    assert (found * expected).sum(-1).min() > 1 - 1e-6


def test_a_device_without_any_memory_ends_the_unit(job: UnitJob) -> None:
    teacher = load_teacher(job.teacher, torch.device("cpu"))
    teacher.__class__ = type("ShortOfMemory", (ShortOfMemory,), {"most": 0})
    ((_, outcome),) = carry_units([job], teacher, ignore)
    assert isinstance(outcome, torch.OutOfMemoryError)
    assert attributes(job) is None


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Stop the processes that this module started."""
    yield
    stop_renderers()


def test_processes_that_render_change_nothing(jobs: list[UnitJob], sealed_cache: Path) -> None:
    outcomes([dataclasses.replace(job, renderers=2) for job in jobs])
    for job in jobs:
        assert attributes(job) == attributes(dataclasses.replace(job, cache=sealed_cache))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [("decode-00003:crash", "decoder-died"), ("decode-00003:hang", "decoder-hung")],
)
def test_a_decoder_that_dies_or_hangs_costs_its_sample_alone(
    job: UnitJob, fault: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_renderers()
    monkeypatch.setenv("BEAMCLIP_FAULT_POINT", fault)
    monkeypatch.setenv("BEAMCLIP_DECODE_SECONDS", "2")
    report = embed_unit(dataclasses.replace(job, renderers=1), ignore)
    stop_renderers()
    assert (report.seen, report.skipped) == (14, 1)
    found = attributes(job)
    assert found is not None
    (skip,) = found["skips"]
    assert (skip["key"], skip["reason"]) == ("00003", reason)
    valid = np.asarray(zarr.open_group(job.cache / "units" / job.unit.name, mode="r")["valid"])
    assert valid.all(axis=1).sum() == 13


class OutOfMemory(RenderHere):
    """Renderers of a process that has no memory left for the fourth sample."""

    asked = 0

    def submit(self, plan: RenderPlan, request: Request) -> None:
        self.asked += 1
        if self.asked == 4:
            raise MemoryError
        super().submit(plan, request)


def test_a_sample_that_was_never_taken_up_ends_its_unit_and_holds_nobody_up(
    jobs: list[UnitJob],
) -> None:
    teacher = load_teacher(jobs[0].teacher, torch.device("cpu"))
    renderers = OutOfMemory(64, teacher.preprocess.size)
    ended = list(_carry(jobs, teacher, Meter(ignore), renderers, 64))
    assert isinstance(ended[0][1], MemoryError)
    assert all(isinstance(outcome, UnitReport) for _, outcome in ended[1:])
    assert attributes(jobs[0]) is None


def test_two_runs_in_one_process_wait_for_each_other(
    jobs: list[UnitJob], tmp_path: Path, sealed_cache: Path
) -> None:
    """They would otherwise share a slab, and each answer to the other's samples."""
    elsewhere = [dataclasses.replace(job, cache=tmp_path / "elsewhere") for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(outcomes, [jobs, elsewhere]))
    assert [len(reports) for reports in both] == [len(jobs), len(jobs)]
    for job in [*jobs, *elsewhere]:
        assert attributes(job) == attributes(dataclasses.replace(job, cache=sealed_cache))
