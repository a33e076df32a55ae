"""One unit: batches, skips and vectors that are no vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cache import layout
from pipeline.cache.reader import read_manifest
from pipeline.decode import DecodePolicy
from pipeline.errors import TeacherError
from pipeline.schedule import ViewParams
from pipeline.shards import find_shards
from pipeline.teacher import TeacherOptions, load_teacher
from pipeline.unit import UnitJob, _Batch, _Rows, embed_unit


def ignore(progress: tuple[int, int]) -> None:
    """Stand where nobody listens."""


@pytest.fixture
def job(sealed_cache: Path, shards_dir: Path, teacher_dir: Path, tmp_path: Path) -> UnitJob:
    """The job of one unit of the sealed cache, to be done in another cache."""
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


def test_the_batch_size_changes_vectors_by_less_than_float16_shows(
    teacher_dir: Path, job: UnitJob
) -> None:
    teacher = load_teacher(job.teacher, torch.device("cpu"))
    views = torch.randint(0, 256, (11, 3, 32, 32), dtype=torch.uint8)
    results = []
    for size in (1, 4, 16):
        targets = [np.zeros((1, teacher.dim), np.float32) for _ in range(11)]
        batch = _Batch(teacher, size, targets)
        for row in range(11):
            batch.add(row, views[row : row + 1], [ViewParams()])
        batch.flush()
        results.append(np.concatenate(targets))
    cosines = [(result * results[0]).sum(1).min() for result in results]
    assert min(cosines) > 1 - 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_vector_that_is_no_vector_becomes_a_skip_and_is_never_valid(value: float) -> None:
    rows = _Rows()
    for ordinal in range(3):
        vectors = np.eye(2, 8, dtype=np.float32)
        if ordinal == 1:
            vectors[1] = value
        rows.keys.append(f"k{ordinal}")
        rows.targets.append(vectors)
        rows.params.append(np.zeros((2, len(layout.PARAM_COLUMNS)), np.float32))
        rows.samples.append((ordinal, 0, 0, 0, 0, -1))
        rows.digests.append(ordinal)
    arrays = rows.arrays(2, 8)
    assert arrays["valid"].tolist() == [[True, True], [True, False], [True, True]]
    assert np.isnan(arrays["targets"][1, 1]).all()
    skips: list[dict[str, Any]] = rows.skips
    assert [(skip["ordinal"], skip["reason"]) for skip in skips] == [(1, "bad-vector")]
