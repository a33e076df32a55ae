"""Scores of a run: student, raw student, teacher and chance, under the same probes."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pipeline import probing
from pipeline.batches import eval_batches
from pipeline.cache.layout import caption_names
from pipeline.cache.reader import TargetCache
from pipeline.errors import (
    CacheError,
    CacheMismatchError,
    ProbeError,
    RunError,
    ShardError,
    StudentError,
)
from pipeline.features import student_features, teacher_features
from pipeline.probes import PROBES
from pipeline.probes.contract import Need, Probe, Result, Subject
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


def test_details_lie_beside_the_scores(finished: tuple[RunDir, dict[str, Any]]) -> None:
    run, scores = finished
    details = json.loads((run.path / "probe-details.json").read_text(encoding="utf-8"))
    assert list(details) == [name for name in scores if name != "chance"]
    assert all(list(probes) == ["linear", "zeroshot"] for probes in details.values())


class TestAgain:
    """A run's features are kept: what decided them may be gone, and must not have changed."""

    def test_without_the_shards_gives_the_same(
        self, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        shards = Path(shutil.copytree(shards_dir, tmp_path / "shards"))
        run = trained(tmp_path, shards, recipe_file)
        scores = probe(run.path)
        shutil.rmtree(shards)
        assert probe(run.path) == scores
        shutil.rmtree(run.path / "features")
        with pytest.raises(ShardError, match="No such file"):
            probe(run.path)

    def test_with_other_weights_in_the_run_scores_those(
        self, finished: tuple[RunDir, dict[str, Any]], tmp_path: Path
    ) -> None:
        before = finished[1]
        assert before["student"] != before["student_raw"]
        run = RunDir(Path(shutil.copytree(finished[0].path, tmp_path / "run")))
        raw = run.load_weights("student_raw")
        run.save_weights({"student": raw, "student_raw": raw})
        after = probe(run.path)
        assert after["student"] == after["student_raw"] == before["student_raw"]

    def test_with_a_cache_of_other_images_asks_for_them(
        self, finished: tuple[RunDir, dict[str, Any]], recipe_file: Path, tmp_path: Path
    ) -> None:
        run = RunDir(Path(shutil.copytree(finished[0].path, tmp_path / "run")))
        write_shards(labelled_samples(24, seed=7), tmp_path / "new", "train", per_shard=14)
        write_shards(labelled_samples(12, seed=8), tmp_path / "new", "test", per_shard=14)
        cache = build(tmp_path / "cache-of-new", tmp_path / "new", recipe_file)
        with pytest.raises((CacheMismatchError, ShardError), match="made from"):
            probe(run.path, cache)  # with the shards of the first

    def test_shards_that_are_named_are_held_against_the_cache_all_the_same(
        self, finished: tuple[RunDir, dict[str, Any]], tmp_path: Path
    ) -> None:
        run = finished[0]
        write_shards(labelled_samples(5, seed=7), tmp_path / "new", "train", per_shard=14)
        with pytest.raises(CacheMismatchError, match="made from other shards"):
            probing.probe(run.path, None, [str(tmp_path / "new")], workers=0, device="cpu")


class TestSubject:
    """What a probe is handed, as one that is registered for the test sees it."""

    @pytest.fixture
    def subjects(self, monkeypatch: pytest.MonkeyPatch) -> list[Subject]:
        return registered(monkeypatch, frozenset({"train", "captions", "teacher"}))

    def test_has_the_captions_of_the_test_rows_and_the_teacher(
        self,
        subjects: list[Subject],
        captioned_copy: Path,
        captioned_shards: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        recipe = small_recipe(recipe_file, "training.epochs=1", "probes.run=[zeroshot]")
        train(recipe, captioned_copy, captioned_shards, tmp_path / "run")
        probe(tmp_path / "run")
        (name,) = caption_names(captioned_copy)
        expected = TargetCache.open(captioned_copy, "test", EVAL).captions(name)
        assert len(subjects) == 3  # teacher, student, student_raw
        for subject in subjects:
            assert subject.captions is not None
            assert subject.teacher is not None
            assert np.array_equal(subject.captions.rows_K, expected.rows_K)
            assert np.array_equal(subject.teacher.rows_N, subject.test.rows_N)
            assert subject.val is None
        details = json.loads((tmp_path / "run" / "probe-details.json").read_text("utf-8"))
        assert details["student"] == {"zeroshot": {"rows": 11}}

    def test_of_two_sets_of_captions_one_is_named(
        self,
        subjects: list[Subject],
        captioned_copy: Path,
        captioned_shards: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        recipe = small_recipe(recipe_file, "training.epochs=1", "probes.run=[zeroshot]")
        train(recipe, captioned_copy, captioned_shards, tmp_path / "run")
        (name,) = caption_names(captioned_copy)
        folder = captioned_copy / "captions"
        shutil.copytree(folder / name, folder / "zweite")
        with pytest.raises(ProbeError, match=rf"one set of captions .*{name}, zweite: --captions"):
            probe(tmp_path / "run")
        named = {"captions": "zweite", "workers": 0, "device": "cpu"}
        probing.probe(tmp_path / "run", None, (), **named)  # type: ignore[arg-type]
        assert subjects[0].captions is not None
        assert subjects[0].captions.name == "zweite"

    def test_without_captions_the_probe_is_left_out_unless_it_was_asked_for(
        self,
        subjects: list[Subject],
        finished: tuple[RunDir, dict[str, Any]],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        run = Path(shutil.copytree(finished[0].path, tmp_path / "run"))
        scores = probe(run)
        assert not subjects
        assert all(list(probes) == ["linear"] for probes in scores.values())
        assert "left out: the zeroshot probe needs captions of the test samples" in caplog.text
        asked = {"probes": ["linear", "zeroshot"], "workers": 0, "device": "cpu"}
        with pytest.raises(ProbeError, match="zeroshot probe needs captions"):
            probing.probe(run, None, (), **asked)  # type: ignore[arg-type]

    def test_has_the_val_split_that_the_cache_has(
        self,
        monkeypatch: pytest.MonkeyPatch,
        grown_copy: Path,
        more_shards: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        seen = registered(monkeypatch, frozenset({"train"}))
        recipe = small_recipe(recipe_file, "training.epochs=1", "probes.run=[zeroshot]")
        train(recipe, grown_copy, more_shards, tmp_path / "run")
        probe(tmp_path / "run")
        assert len(seen) == 3
        for subject in seen:
            assert subject.val is not None
            assert subject.val.labels_N.tolist() == [row % 3 for row in range(5)]


def registered(monkeypatch: pytest.MonkeyPatch, needs: frozenset[Need]) -> list[Subject]:
    """Register a probe in the place of one; return the list of what it will be handed."""
    seen: list[Subject] = []

    def run(subject: Subject, spec: object) -> Result:
        seen.append(subject)
        return Result({"top1": 0.5}, {"rows": len(subject.test.rows_N)})

    monkeypatch.setitem(PROBES, "zeroshot", Probe(run, "top1", needs))  # type: ignore[misc]
    return seen


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
