"""What the page says of images is what the run's student and its cache say."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np

from pipeline.cache.reader import TargetCache
from pipeline.report.collect import RunFacts
from pipeline.report.seen import Seen, ground_of, look, said, shared_images, train_labels


def test_predictions_are_those_that_the_probe_scored(seen: list[Seen]) -> None:
    for one in seen:
        right = (one.said_N == one.ground.labels_N).mean()
        assert right == one.run.score("student", "zeroshot", "top1")
    teacher = said(seen[0].ground.teacher, seen[0].ground.zeroshot)
    right = (teacher == seen[0].ground.labels_N).mean()
    assert right == seen[0].run.score("teacher", "zeroshot", "top1")


def test_students_of_one_group_see_the_same_rows(seen: list[Seen]) -> None:
    for one in seen:
        assert np.array_equal(one.features.rows_N, seen[0].ground.teacher.rows_N)
    assert not np.array_equal(seen[0].features.embedding_ND, seen[1].features.embedding_ND)


def test_sets_of_the_same_classes_stand_beside_the_zeroshot_set(facts: list[RunFacts]) -> None:
    ground = ground_of(facts[0])
    assert [item.name for item in ground.labelled] == ["shapes-plain", "shapes-context"]
    assert [item.name for item in ground.every_set] == ["shapes-plain", "shapes-context"]


def test_a_cache_that_is_gone_is_a_reason_for_each_run(facts: list[RunFacts]) -> None:
    moved = [
        dataclasses.replace(run, origin={**run.origin, "cache_path": "/nowhere"}) for run in facts
    ]
    found, reasons = look(moved, device="cpu", workers=0)
    assert found == []
    assert set(reasons) == {run.name for run in facts}
    assert all("no cache in /nowhere" in reason for reason in reasons.values())


def test_a_run_whose_weights_are_damaged_leaves_the_others_to_be_seen(
    tmp_path: Path, facts: list[RunFacts]
) -> None:
    shutil.copytree(facts[0].path, tmp_path / "run")
    (tmp_path / "run" / "student.safetensors").write_bytes(b"x")
    broken = dataclasses.replace(facts[0], path=tmp_path / "run")
    found, reasons = look([broken, facts[1]], device="cpu", workers=0)
    assert [one.run.name for one in found] == [facts[1].name]
    assert list(reasons) == [broken.name]


def test_train_labels_and_shared_images_are_counted(sealed_cache: Path) -> None:
    labels_N = TargetCache.open(sealed_cache, "train", "eval").column("label")
    assert np.array_equal(train_labels(sealed_cache, 0), labels_N)
    assert shared_images(sealed_cache, 0) == 0
