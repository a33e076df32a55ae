"""Features are the frozen encoder's own, row by row, for student and teacher alike."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.batches import eval_batches
from pipeline.cache.reader import TargetCache
from pipeline.features import student_features, teacher_features
from pipeline.schedule import EVAL
from pipeline.shards import Shard, find_shards
from pipeline.students import Student, StudentOptions, build_student
from tests.runs import MODEL

CPU = torch.device("cpu")
PX = 32


@pytest.fixture
def cache(sealed_cache: Path) -> TargetCache:
    return TargetCache.open(sealed_cache, "test", EVAL)


@pytest.fixture
def shards(shards_dir: Path) -> list[Shard]:
    return find_shards([str(shards_dir)])


@pytest.fixture
def student(cache: TargetCache) -> Student:
    return build_student(StudentOptions(model=MODEL), dim=cache.dim, input_px=PX, seed=0)


def test_a_students_are_what_it_says_of_each_row_in_turn(
    cache: TargetCache, shards: list[Shard], student: Student
) -> None:
    features = student_features(
        student, eval_batches(cache, shards, input_px=PX, batch_size=5), CPU
    )
    student.eval()
    (whole,) = eval_batches(cache, shards, input_px=PX)
    with torch.inference_mode():
        outputs = student(whole.views(CPU))
    np.testing.assert_allclose(features.features_NF, outputs.features_BF.numpy(), atol=1e-5)
    np.testing.assert_allclose(features.embedding_ND, outputs.embedding_BD.numpy(), atol=1e-5)
    assert features.labels_N.tolist() == [row % 3 for row in range(12)]


def test_a_students_are_float32_and_its_embedding_is_normalised(
    cache: TargetCache, shards: list[Shard], student: Student
) -> None:
    features = student_features(student, eval_batches(cache, shards, input_px=PX), CPU)
    assert features.features_NF.dtype == features.embedding_ND.dtype == np.float32
    assert features.labels_N.dtype == np.int64
    assert features.embedding_ND.shape == (12, cache.dim)
    np.testing.assert_allclose(np.linalg.norm(features.embedding_ND, axis=1), 1, atol=1e-6)


def test_making_them_changes_nothing_in_the_student(
    cache: TargetCache, shards: list[Shard], student: Student
) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student_features(student, eval_batches(cache, shards, input_px=PX), CPU)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_teachers_are_its_targets_of_the_eval_view(cache: TargetCache) -> None:
    features = teacher_features(cache)
    assert np.array_equal(features.embedding_ND, cache.targets(np.arange(12), 0))
    assert features.embedding_ND.dtype == np.float32
    assert features.features_NF is features.embedding_ND  # it is known by its embedding alone
    assert features.labels_N.tolist() == [row % 3 for row in range(12)]
