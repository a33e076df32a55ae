"""Scores of a run: student, raw student, teacher and chance, under the same probes."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pipeline.batches import eval_batches
from pipeline.cache.reader import TargetCache
from pipeline.errors import CacheError, ProbeError, RunError, StudentError
from pipeline.features import student_features, teacher_features
from pipeline.probes import PROBES
from pipeline.probes.contract import Subject
from pipeline.rundir import WEIGHTS, RunDir
from pipeline.schedule import EVAL
from pipeline.shards import find_shards, write_shards
from pipeline.students import StudentOptions, build_student, load_weights
from tests.inputs import build, labelled_samples
from tests.runs import MODEL, alone, probe, small_recipe, train

PX = 32


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
) -> tuple[RunDir, dict[str, Any]]:
    """A trained and scored run, with its scores."""
    folder = tmp_path_factory.mktemp("evaluate")
    with alone(folder / "scratch"):
        train(small_recipe(recipe_file), sealed_cache, shards_dir, folder / "run")
        return RunDir(folder / "run"), probe(folder / "run")


def trained(folder: Path, shards: Path, recipe_file: Path, *overrides: str) -> RunDir:
    """Cache own shards, train one epoch on them, and return the run."""
    cache = build(folder / "cache", shards, recipe_file, *overrides)
    recipe = small_recipe(recipe_file, "training.epochs=1", *overrides)
    train(recipe, cache, shards, folder / "run")
    return RunDir(folder / "run")


def test_probe_json_holds_encoder_probe_score(finished: tuple[RunDir, dict[str, Any]]) -> None:
    run, scores = finished
    assert json.loads((run.path / "probe.json").read_text(encoding="utf-8")) == scores
    assert list(scores) == ["teacher", *WEIGHTS, "chance"]
    for encoder, probes in scores.items():
        assert list(probes) == ["linear", "zeroshot"]
        for name, values in probes.items():
            assert PROBES[name].headline in values, encoder
            assert all(isinstance(value, float) for value in values.values())


def test_the_teachers_row_comes_from_the_cache_alone(
    finished: tuple[RunDir, dict[str, Any]], sealed_cache: Path
) -> None:
    _, scores = finished
    caches = {split: TargetCache.open(sealed_cache, split, EVAL) for split in ("train", "test")}
    train_, test = (teacher_features(caches[split]) for split in ("train", "test"))
    model = LogisticRegression(C=30, tol=1e-8, max_iter=5000)
    model.fit(unit(train_.embedding_ND), train_.labels_N)
    accuracy = (model.predict(unit(test.embedding_ND)) == test.labels_N).mean()
    assert scores["teacher"]["linear"]["accuracy"] == accuracy
    anchors_AD = caches["test"].anchors("shapes-plain").embeddings_AD
    predicted_N = (test.embedding_ND @ anchors_AD.T).argmax(axis=1)
    assert scores["teacher"]["zeroshot"]["top1"] == (predicted_N == test.labels_N).mean()


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_students_row_is_of_its_saved_weights(
    finished: tuple[RunDir, dict[str, Any]],
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
    name: str,
) -> None:
    run, scores = finished
    caches = {split: TargetCache.open(sealed_cache, split, EVAL) for split in ("train", "test")}
    student = build_student(StudentOptions(model=MODEL), dim=16, input_px=PX, seed=5)
    load_weights(student, run.load_weights(name), where="test")
    shards, cpu = find_shards([str(shards_dir)]), torch.device("cpu")
    train_, test = (
        student_features(student, eval_batches(cache, shards, input_px=PX), cpu)
        for cache in caches.values()
    )
    anchors, spec = caches["test"].anchors("shapes-plain"), small_recipe(recipe_file).probes
    for probe_name, values in scores[name].items():
        subject = Subject(test, train_, anchors=anchors)
        assert values == PROBES[probe_name].run(subject, getattr(spec, probe_name)).scores
    predicted_N = (test.embedding_ND @ anchors.embeddings_AD.T).argmax(axis=1)
    assert scores[name]["zeroshot"]["top1"] == (predicted_N == test.labels_N).mean()


def test_the_two_students_are_two(finished: tuple[RunDir, dict[str, Any]]) -> None:
    _, scores = finished
    objectives = [scores[name]["linear"]["objective"] for name in WEIGHTS]
    assert objectives[0] != objectives[1]


def test_chance_is_the_share_of_the_commonest_test_class(
    finished: tuple[RunDir, dict[str, Any]],
) -> None:
    _, scores = finished
    assert scores["chance"] == {
        "linear": {"accuracy": pytest.approx(1 / 3)},
        "zeroshot": {"top1": pytest.approx(1 / 3)},
    }


def test_scoring_again_gives_the_same_and_touches_only_the_scores(
    finished: tuple[RunDir, dict[str, Any]],
) -> None:
    run, scores = finished
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    assert probe(run.path) == scores
    after = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert changed == {"probe.json", "probe-details.json"}


def test_a_recipe_may_run_some_probes_only(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(recipe_file, "probes.run=[zeroshot]", "training.epochs=1")
    train(recipe, sealed_cache, shards_dir, tmp_path / "run")
    scores = probe(tmp_path / "run")
    assert all(list(probes) == ["zeroshot"] for probes in scores.values())


def test_captions_of_the_test_split_are_retrieved_by_where_there_are_any(
    captioned_cache: Path, captioned_shards: Path, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(recipe_file, "probes.run=[retrieval]", "training.epochs=1")
    train(recipe, captioned_cache, captioned_shards, tmp_path / "run")
    scores = probe(tmp_path / "run")
    for encoder in ("teacher", *WEIGHTS):
        found = scores[encoder]["retrieval"]
        assert 0 <= found["text_to_image_r1"] <= found["text_to_image_r10"] <= 1
        assert "class_p5" in found
    assert scores["teacher"] != scores["student"]


def test_skipped_images_count_for_nobody(recipe_file: Path, tmp_path: Path) -> None:
    """Not for chance either: every row is scored on the same images."""
    write_shards(labelled_samples(12, seed=1), tmp_path / "shards", "train", per_shard=20)
    samples = labelled_samples(8, seed=2)  # 3, 3 and 2 of the classes
    for key in (0, 3):
        extension = next(iter(samples[key][1]))
        samples[key][1][extension] = samples[key][1][extension][:60]  # leaves 1, 3 and 2
    write_shards(samples, tmp_path / "shards", "test", per_shard=20)
    run = trained(tmp_path, tmp_path / "shards", recipe_file, "max_skip_fraction=0.5")
    scores = probe(run.path)
    assert scores["chance"]["zeroshot"]["top1"] == 3 / 6
    assert (6 * scores["teacher"]["zeroshot"]["top1"]).is_integer()


def test_an_image_in_both_splits_is_warned_of(
    recipe_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = labelled_samples(12, seed=1)
    write_shards(samples, tmp_path / "shards", "train", per_shard=20)
    own = labelled_samples(4, seed=2)
    write_shards([*own, ("other", samples[7][1])], tmp_path / "shards", "test", per_shard=20)
    run = trained(tmp_path, tmp_path / "shards", recipe_file)
    with caplog.at_level(logging.WARNING):
        probe(run.path)
    assert "1 of 5 test images are train images too" in caplog.text


def test_no_image_in_both_splits_is_no_warning(
    finished: tuple[RunDir, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    probe(finished[0].path)
    assert "train images too" not in caplog.text


class TestRefusals:
    def test_a_run_that_is_not_finished(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        train(small_recipe(recipe_file), sealed_cache, shards_dir, tmp_path / "run")
        (tmp_path / "run" / "student.safetensors").unlink()
        with pytest.raises(RunError, match=r"not finished: run train-student with --resume"):
            probe(tmp_path / "run")

    def test_no_run_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="holds no run"):
            probe(tmp_path)

    def test_weights_of_another_student(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        train(small_recipe(recipe_file), sealed_cache, shards_dir, tmp_path / "run")
        other = build_student(StudentOptions(model="test_vit"), dim=16, input_px=PX, seed=0)
        RunDir(tmp_path / "run").save_weights({name: other.state_dict() for name in WEIGHTS})
        with pytest.raises(StudentError, match="are not this student's"):
            probe(tmp_path / "run")

    def test_a_cache_without_test_rows(self, recipe_file: Path, tmp_path: Path) -> None:
        write_shards(labelled_samples(9, seed=1), tmp_path / "shards", "train", per_shard=20)
        run = trained(tmp_path, tmp_path / "shards", recipe_file)
        with pytest.raises(CacheError, match="test"):
            probe(run.path)

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_images_without_labels(self, recipe_file: Path, tmp_path: Path, split: str) -> None:
        for name, seed in (("train", 1), ("test", 2)):
            samples = labelled_samples(9, seed=seed)
            if name == split:
                for _, members in samples:
                    del members["cls"]
            write_shards(samples, tmp_path / "shards", name, per_shard=20)
        run = trained(tmp_path, tmp_path / "shards", recipe_file)
        with pytest.raises(ProbeError, match=rf"no {split} sample has a label"):
            probe(run.path)

    def test_test_labels_outside_the_prompts(self, recipe_file: Path, tmp_path: Path) -> None:
        write_shards(labelled_samples(9, seed=1), tmp_path / "shards", "train", per_shard=20)
        samples = labelled_samples(9, seed=2)
        samples[3][1]["cls"] = b"7"
        write_shards(samples, tmp_path / "shards", "test", per_shard=20)
        run = trained(tmp_path, tmp_path / "shards", recipe_file)
        with pytest.raises(ProbeError, match="label 7, prompt set shapes-plain has 3 classes"):
            probe(run.path)


def unit(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return values / np.linalg.norm(values, axis=1, keepdims=True)
