"""Stage two trains what recipe, cache and shards agree on, and refuses the rest."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import probing, stage_two
from pipeline.cache.reader import TargetCache
from pipeline.errors import (
    BeamclipError,
    CacheError,
    CacheMismatchError,
    DataError,
    ProbeError,
    RecipeError,
    RunError,
    StudentError,
)
from pipeline.prompts import load_sets, sampled
from pipeline.recipe import recipe_from
from pipeline.rundir import RunDir
from pipeline.shards import find_shards, shards_at, write_shards
from pipeline.students import StudentOptions, build_student
from pipeline.texts import add_anchors
from tests.inputs import build, labelled_samples, make_teacher
from tests.runs import MODEL, alone, held_elsewhere, probe, small_recipe, train
from tests.trees import tree_digests


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
) -> Path:
    """A finished run; read it, never change it."""
    folder = tmp_path_factory.mktemp("stage-two")
    with alone(folder / "scratch"):
        train(small_recipe(recipe_file), sealed_cache, shards_dir, folder / "run")
    return folder / "run"


@pytest.fixture
def run_copy(tmp_path: Path, finished: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run-copy"))


class TestRun:
    def test_leaves_its_recipe_its_origin_its_metrics_and_both_weights(
        self, finished: Path, sealed_cache: Path, recipe_file: Path
    ) -> None:
        assert {path.name for path in finished.iterdir()} == {
            ".lock",
            "recipe.yaml",
            "run.json",
            "metrics.jsonl",
            "checkpoint-000000003.pt",
            "checkpoint-000000006.pt",
            "student.safetensors",
            "student_raw.safetensors",
        }
        run = RunDir(finished)
        assert recipe_from(run.read_recipe(), where="test") == small_recipe(recipe_file)
        origin = run.read_origin()
        assert origin["cache_path"] == str(sealed_cache.resolve())
        assert origin["cache"]["digest"] == TargetCache.open(sealed_cache).digest
        assert origin["cache"]["generation"] == 0
        assert (origin["dim"], origin["input_px"]) == (16, 32)
        assert {"torch", "timm"} <= origin["made_with"]["versions"].keys()

    def test_is_the_same_bytes_twice_and_with_worker_processes(
        self,
        finished: Path,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        torch.rand(3)  # nothing global may matter
        train(small_recipe(recipe_file), sealed_cache, shards_dir, tmp_path / "run", workers=2)
        for name in ("student.safetensors", "student_raw.safetensors", "recipe.yaml"):
            assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()

    def test_of_another_seed_is_another(
        self,
        finished: Path,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        recipe = small_recipe(recipe_file, "training.seed=1")
        train(recipe, sealed_cache, shards_dir, tmp_path / "run")
        one, other = (RunDir(p).load_weights("student") for p in (finished, tmp_path / "run"))
        assert not torch.equal(one["projection.weight"], other["projection.weight"])

    def test_takes_the_teachers_size_unless_the_recipe_says_another(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        recipe = small_recipe(recipe_file, "student.input_px=48", "training.epochs=1")
        train(recipe, sealed_cache, shards_dir, tmp_path / "run")
        assert RunDir(tmp_path / "run").read_origin()["input_px"] == 48
        assert probe(tmp_path / "run")["student"]

    def test_is_trained_on_the_anchors_not_on_the_zero_shot_prompts(
        self,
        finished: Path,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        weights = [RunDir(finished).load_weights("student")]
        for override in ("prompts.zeroshot=context", "prompts.anchors=plain"):
            run = tmp_path / override
            train(small_recipe(recipe_file, override), sealed_cache, shards_dir, run)
            weights.append(RunDir(run).load_weights("student"))
        first, same, other = (w["projection.weight"] for w in weights)
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    def test_may_use_fewer_views_than_the_cache_has(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        train(small_recipe(recipe_file, "views=1"), sealed_cache, shards_dir, tmp_path / "run")

    def test_of_another_architecture_leaves_every_byte_of_the_cache_as_it_was(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        before = tree_digests(sealed_cache, ".")
        assert before
        for model in ("mobilenetv3_small_050", "test_vit"):
            recipe = small_recipe(recipe_file, f"student.model={model}", "training.epochs=1")
            train(recipe, sealed_cache, shards_dir, tmp_path / model)
            scores = probe(tmp_path / model)
            assert scores["student"].keys() == scores["teacher"].keys()
        assert tree_digests(sealed_cache, ".") == before


class TestRefusals:
    @pytest.mark.parametrize(
        ("override", "field"),
        [
            ("schedule.crop_scale=[0.5, 1.0]", "schedule.crop_scale.0: cache has 0.7, asked for"),
            ("schedule.seed=3", "schedule.seed: cache has 0, asked for 3"),
            ("schedule.name=other", "schedule.name: cache has 'mild', asked for 'other'"),
            ("views=3", "views: cache has 2, asked for 3"),
            ("decode.max_pixels=99", "decode.max_pixels: cache has 50000000, asked for 99"),
            ("teacher.model=ViT-B-32", "teacher.model: cache has 'local-dir:', asked for 'ViT-B"),
            ("teacher.precision=bf16", "teacher.precision: cache has 'fp32', asked for 'bf16'"),
        ],
    )
    def test_a_cache_of_something_else_with_a_diff_that_names_the_field(
        self,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
        override: str,
        field: str,
    ) -> None:
        with pytest.raises(CacheMismatchError) as caught:
            train(small_recipe(recipe_file, override), sealed_cache, shards_dir, tmp_path / "run")
        assert field in str(caught.value)
        assert len(caught.value.differences) == 1
        assert not (tmp_path / "run").exists()

    def test_edited_prompts_against_cached_anchors(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        edited = self.edit(recipe_file, tmp_path, lambda p: p["classes"].reverse())
        with pytest.raises(CacheMismatchError, match=r"shapes-context.*other prompts") as caught:
            train(small_recipe(edited), sealed_cache, shards_dir, tmp_path / "run")
        assert "class_names.0: cache has 'red square', asked for 'blue square'" in str(caught.value)

    def test_edited_prompts_of_the_zero_shot_probe_too(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        def edit(prompts: dict[str, Any]) -> None:
            prompts["prompt_sets"]["plain"][1] = "A sketch of a {label}."

        edited = self.edit(recipe_file, tmp_path, edit)
        with pytest.raises(CacheMismatchError, match="shapes-plain"):
            train(small_recipe(edited), sealed_cache, shards_dir, tmp_path / "run")

    def test_a_prompt_set_that_the_cache_does_not_have(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        def edit(prompts: dict[str, Any]) -> None:
            prompts["prompt_sets"]["plane"] = ["A {label}."]

        recipe = small_recipe(self.edit(recipe_file, tmp_path, edit), "prompts.anchors=plane")
        with pytest.raises(CacheError, match=r"no anchors 'shapes-plane': did you mean 'shapes-"):
            train(recipe, sealed_cache, shards_dir, tmp_path / "run")

    def test_labels_that_the_prompts_do_not_name(
        self, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        """Caching accepts them: only stage two gives a label a meaning."""
        two_classes = self.edit(recipe_file, tmp_path, lambda p: p["classes"].pop())
        cache = build(tmp_path / "cache", shards_dir, two_classes)
        with pytest.raises(DataError, match=r"label 2, prompt set shapes-plain names 2 classes"):
            train(small_recipe(two_classes), cache, shards_dir, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_an_unsealed_cache(
        self, cache_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        shutil.rmtree(cache_copy / "index")
        with pytest.raises(CacheError, match="not sealed"):
            train(small_recipe(recipe_file), cache_copy, shards_dir, tmp_path / "run")

    def test_no_cache_at_all(self, shards_dir: Path, recipe_file: Path, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match="no cache in"):
            train(small_recipe(recipe_file), tmp_path / "none", shards_dir, tmp_path / "run")

    def test_shards_of_another_cache(
        self, sealed_cache: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        write_shards(labelled_samples(24, seed=7), tmp_path / "other", "train", per_shard=14)
        with pytest.raises(BeamclipError, match=r"other shards|not the image"):
            train(small_recipe(recipe_file), sealed_cache, tmp_path / "other", tmp_path / "run")

    def test_a_student_that_is_none_before_the_run_is_begun(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        recipe = small_recipe(recipe_file, "student.model=resnet9999")
        with pytest.raises(StudentError, match="no student 'resnet9999'"):
            train(recipe, sealed_cache, shards_dir, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_damaged_target_before_it_is_learned_from(
        self, cache_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        chunks = sorted((cache_copy / "units").glob("train-000001.mild*/targets/c/0/1/*"))
        chunks[0].write_bytes(chunks[0].read_bytes()[:-4] + b"\0\0\0\0")
        with pytest.raises(CacheError, match=r"train-000001\.mild"):
            train(small_recipe(recipe_file), cache_copy, shards_dir, tmp_path / "run")

    @staticmethod
    def edit(recipe_file: Path, folder: Path, change: Any) -> Path:
        """Copy recipe and prompt file into `folder`, with the prompts changed."""
        prompts = recipe_file.parent / "shapes-prompts.yaml"
        content = yaml.safe_load(prompts.read_text(encoding="utf-8"))
        change(content)
        own = folder / "own-prompts.yaml"
        own.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        recipe = recipe_file.read_text(encoding="utf-8").replace(str(prompts), str(own))
        (folder / "own.yaml").write_text(recipe, encoding="utf-8")
        return folder / "own.yaml"


class TestFolder:
    def test_is_not_begun_twice(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, run_copy: Path
    ) -> None:
        with pytest.raises(RunError, match="already holds a run"):
            train(small_recipe(recipe_file), sealed_cache, shards_dir, run_copy)

    def test_is_not_taken_up_by_another_recipe(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, run_copy: Path
    ) -> None:
        before = tree_digests(run_copy, ".")
        recipe = small_recipe(recipe_file, "training.epochs=3", "losses.ism.weight=1")
        with pytest.raises(RunError) as caught:
            train(recipe, sealed_cache, shards_dir, run_copy, resume=True)
        assert "training.epochs: run has 2, asked for 3" in str(caught.value)
        assert "losses.ism.weight: run has 10.0, asked for 1.0" in str(caught.value)
        assert tree_digests(run_copy, ".") == before

    @pytest.mark.parametrize("complete", [True, False])
    def test_is_not_taken_up_with_another_cache(
        self, recipe_file: Path, run_copy: Path, tmp_path: Path, complete: bool
    ) -> None:
        if not complete:
            (run_copy / "student.safetensors").unlink()
        write_shards(labelled_samples(24, seed=7), tmp_path / "other", "train", per_shard=14)
        cache = build(tmp_path / "other-cache", tmp_path / "other", recipe_file)
        with pytest.raises(RunError, match="digest: run has"):
            train(small_recipe(recipe_file), cache, tmp_path / "other", run_copy, resume=True)

    def test_is_not_taken_up_with_anchors_of_other_prompts_under_the_same_name(
        self, cache_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        own = TestRefusals.edit(recipe_file, tmp_path, lambda p: None)
        train(small_recipe(own), cache_copy, shards_dir, tmp_path / "run")
        (tmp_path / "run" / "student.safetensors").unlink()
        prompts = tmp_path / "own-prompts.yaml"
        text = prompts.read_text(encoding="utf-8").replace("A photo of", "A picture of")
        prompts.write_text(text, encoding="utf-8")
        shutil.rmtree(cache_copy / "anchors")
        build(cache_copy, shards_dir, own)
        with pytest.raises(RunError, match="anchors: run has"):
            train(small_recipe(own), cache_copy, shards_dir, tmp_path / "run", resume=True)

    def test_of_a_finished_run_is_left_alone_at_once(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, run_copy: Path
    ) -> None:
        before = {path: path.stat().st_mtime_ns for path in run_copy.iterdir()}
        metrics = train(small_recipe(recipe_file), sealed_cache, shards_dir, run_copy, resume=True)
        last = (run_copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        assert metrics == json.loads(last)
        assert {path: path.stat().st_mtime_ns for path in run_copy.iterdir()} == before

    def test_of_a_finished_run_needs_no_checkpoint_any_more(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, run_copy: Path
    ) -> None:
        for checkpoint in run_copy.glob("checkpoint-*"):
            checkpoint.unlink()
        train(small_recipe(recipe_file), sealed_cache, shards_dir, run_copy, resume=True)
        assert probe(run_copy)["student"]

    def test_being_trained_by_another_process_is_refused(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, run_copy: Path
    ) -> None:
        recipe = small_recipe(recipe_file)
        with held_elsewhere(run_copy / ".lock"), pytest.raises(RunError, match="another process"):
            train(recipe, sealed_cache, shards_dir, run_copy, resume=True)

    def test_is_not_made_for_a_device_that_is_not_there(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        shards, run = find_shards([str(shards_dir)]), tmp_path / "run"
        with pytest.raises(BeamclipError, match="expected auto, cpu"):
            stage_two.train(
                small_recipe(recipe_file),
                [sealed_cache],
                shards,
                run,
                resume=False,
                device="warp",
            )
        assert not run.exists()


class TestProbe:
    def test_works_after_the_cache_has_moved_if_told_where_it_is(
        self, cache_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        train(small_recipe(recipe_file), cache_copy, shards_dir, tmp_path / "run")
        expected = probe(tmp_path / "run")
        moved = cache_copy.rename(tmp_path / "moved")
        assert probe(tmp_path / "run", moved) == expected
        with pytest.raises(CacheError, match=rf"no cache in {cache_copy}"):
            probe(tmp_path / "run")

    def test_works_in_a_folder_whose_name_reads_like_a_pattern(
        self, shards_dir: Path, sealed_cache: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        odd = shutil.copytree(shards_dir, tmp_path / "a{0..1}b [x]")
        paths = sorted((shard.split, shard.path) for shard in find_shards([str(shards_dir)]))
        shards = shards_at([(split, odd / path.name) for split, path in paths])
        recipe = small_recipe(recipe_file, "training.epochs=1")
        run = tmp_path / "run"
        stage_two.train(recipe, [sealed_cache], shards, run, resume=False, device="cpu")
        assert probe(run)["student"]

    def test_works_after_the_run_has_moved(self, run_copy: Path, finished: Path) -> None:
        assert probe(run_copy) == probe(finished)

    def test_takes_other_shards_of_the_same_content(
        self, finished: Path, shards_dir: Path, tmp_path: Path
    ) -> None:
        shards = shutil.copytree(shards_dir, tmp_path / "shards")
        scores = probing.probe(finished, None, [str(shards)], workers=2, device="cpu")
        assert scores == probe(finished)

    def test_on_other_images_of_the_same_teacher_is_welcome(
        self, finished: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        for split, seed in (("train", 21), ("test", 22)):
            write_shards(labelled_samples(9, seed=seed), tmp_path / "new", split, per_shard=9)
        cache = build(tmp_path / "new-cache", tmp_path / "new", recipe_file)
        scores = probing.probe(finished, cache, [str(tmp_path / "new")], workers=0, device="cpu")
        assert scores["student"]

    def test_with_a_cache_of_another_teacher_of_the_same_size_is_refused(
        self, finished: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        other = make_teacher(tmp_path / "other-teacher", seed=1)
        cache = build(
            tmp_path / "other", shards_dir, recipe_file, f"teacher.model=local-dir:{other}"
        )
        with pytest.raises(CacheMismatchError, match="of another teacher than the run's") as caught:
            probe(finished, cache)
        assert [field for field, _, _ in caught.value.differences] == ["weights_sha256"]

    def test_of_a_recipe_that_this_version_does_not_know_is_an_error(self, run_copy: Path) -> None:
        text = (run_copy / "recipe.yaml").read_text(encoding="utf-8")
        (run_copy / "recipe.yaml").write_text(text + "futuristic: 1\n", encoding="utf-8")
        with pytest.raises(RecipeError, match="futuristic"):
            probe(run_copy)


def test_rebuilding_a_student_gives_its_averaged_weights(finished: Path, recipe_file: Path) -> None:
    student = stage_two.rebuild_student(RunDir(finished), small_recipe(recipe_file))
    assert student.backbone.default_cfg["architecture"] == MODEL
    for name, value in RunDir(finished).load_weights("student").items():
        assert torch.equal(student.state_dict()[name], value), name


class TestGrownCache:
    def test_by_views_trains_the_same_student_from_the_views_it_had(
        self,
        finished: Path,
        cache_copy: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        build(cache_copy, shards_dir, recipe_file, "views=4", extend=True)
        train(small_recipe(recipe_file), cache_copy, shards_dir, tmp_path / "run")
        assert RunDir(tmp_path / "run").read_origin()["cache"]["generation"] == 1
        for name in ("student.safetensors", "student_raw.safetensors"):
            assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()

    def test_takes_a_run_up_by_the_generation_that_it_was_begun_with(
        self,
        finished: Path,
        run_copy: Path,
        grown_cache: Path,
        more_shards: Path,
        recipe_file: Path,
    ) -> None:
        for name in ("student.safetensors", "student_raw.safetensors", "checkpoint-000000006.pt"):
            (run_copy / name).unlink()
        train(small_recipe(recipe_file), grown_cache, more_shards, run_copy, resume=True)
        for name in ("student.safetensors", "student_raw.safetensors"):
            assert (run_copy / name).read_bytes() == (finished / name).read_bytes()

    def test_scores_a_run_by_the_generation_that_it_was_trained_on(
        self, run_copy: Path, sealed_cache: Path, grown_cache: Path
    ) -> None:
        assert probe(run_copy, grown_cache) == probe(run_copy, sealed_cache)

    def test_trains_by_the_newest_generation_or_the_one_asked_for(
        self, grown_copy: Path, more_shards: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        recipe = small_recipe(recipe_file, "training.epochs=1")
        train(recipe, grown_copy, more_shards, tmp_path / "newest")
        shutil.rmtree(grown_copy / "index" / "000001")
        with pytest.raises(CacheError, match=r"generation 1 .* is not sealed.*--generation 0"):
            train(recipe, grown_copy, more_shards, tmp_path / "unsealed")
        train(recipe, grown_copy, more_shards, tmp_path / "asked", generation=0)
        generations = [
            RunDir(tmp_path / name).read_origin()["cache"]["generation"]
            for name in ("newest", "asked")
        ]
        assert generations == [1, 0]

    def test_has_no_more_views_in_a_former_generation_than_that_had(
        self, grown_cache: Path, more_shards: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        recipe = small_recipe(recipe_file, "views=4")
        with pytest.raises(CacheMismatchError, match="views: cache has 2, asked for 4"):
            train(recipe, grown_cache, more_shards, tmp_path / "run", generation=0)


def test_prompts_that_take_open_clip_are_not_needed_once_they_are_cached(
    cache_copy: Path,
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    content = {
        "dataset": "cranes",
        "names_from": "open_clip",
        "classes": [{"wnid": wnid} for wnid in ("n02012849", "n03126707", "n01440764")],
        "prompt_sets": {"plain": ["A {label}."], "cpa": ["A photo of a {label}."]},
    }
    file = tmp_path / "cranes.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    add_anchors(cache_copy, load_sets(str(file)), device="cpu")
    chosen = (f"prompts.file={file}", "prompts.anchors=cpa", "prompts.zeroshot=plain")
    recipe = small_recipe(recipe_file, *chosen, "training.epochs=1")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    train(recipe, cache_copy, shards_dir, tmp_path / "run")
    assert "not held against their prompt file" in caplog.text
    sets = RunDir(tmp_path / "run").read_origin()["prompt_sets"]
    assert sets == {"anchors": "cranes-cpa", "zeroshot": "cranes-plain"}


def test_any_set_of_the_cache_may_be_named_for_training_and_for_probing(
    cache_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    [whole] = load_sets(str(recipe_file.with_name("shapes-prompts.yaml")), ["plain"])
    part = sampled(whole, 2, seed=0)
    add_anchors(cache_copy, [part], device="cpu")
    recipe = small_recipe(recipe_file, f"prompts.anchors={part.name}", "training.epochs=1")
    train(recipe, cache_copy, shards_dir, tmp_path / "run")
    assert RunDir(tmp_path / "run").read_origin()["prompt_sets"]["anchors"] == part.name
    one = probe(tmp_path / "run")["teacher"]["zeroshot"]
    chosen = {"probes": ["zeroshot"], "zeroshot": "shapes-context", "workers": 0, "device": "cpu"}
    other = probing.probe(tmp_path / "run", None, (), **chosen)["teacher"]["zeroshot"]
    assert one.keys() == other.keys()
    with pytest.raises(ProbeError, match="does not hold one anchor for each label"):
        probing.probe(tmp_path / "run", None, (), **{**chosen, "zeroshot": part.name})
    for override in (f"prompts.zeroshot={part.name}", "prompts.zeroshot=shapes-plan"):
        with pytest.raises(BeamclipError, match=r"zero-shot|did you mean"):
            train(small_recipe(recipe_file, override), cache_copy, shards_dir, tmp_path / "no")
    assert not (tmp_path / "no").exists()


class TestInit:
    """A run that starts from given weights says which, and is taken up again with no other."""

    @pytest.fixture
    def weights(self, tmp_path: Path) -> Path:
        return self.save(tmp_path / "init.pth", seed=5)

    @staticmethod
    def save(path: Path, *, seed: int) -> Path:
        student = build_student(StudentOptions(model=MODEL), dim=16, input_px=32, seed=seed)
        torch.save({"state_dict": student.backbone.state_dict()}, path)
        return path

    def test_is_told_by_content_and_changes_the_student(
        self,
        finished: Path,
        weights: Path,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        recipe = small_recipe(recipe_file, f"student.init={weights}")
        train(recipe, sealed_cache, shards_dir, tmp_path / "run")
        init = RunDir(tmp_path / "run").read_origin()["init"]
        assert init["source"] == str(weights)
        assert init["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert (init["prefix"], init["missing"], init["left_over"]) == ("state_dict.", 0, 0)
        assert RunDir(finished).read_origin()["init"] is None
        one, other = (RunDir(p).load_weights("student_raw") for p in (finished, tmp_path / "run"))
        assert not torch.equal(one["backbone.bn1.weight"], other["backbone.bn1.weight"])

    def test_of_another_content_is_refused_on_resuming(
        self,
        weights: Path,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        recipe = small_recipe(recipe_file, f"student.init={weights}")
        train(recipe, sealed_cache, shards_dir, tmp_path / "run")
        (tmp_path / "run" / "student.safetensors").unlink()  # as if it had not been finished
        train(recipe, sealed_cache, shards_dir, tmp_path / "run", resume=True)
        (tmp_path / "run" / "student.safetensors").unlink()
        self.save(weights, seed=6)
        with pytest.raises(RunError, match=r"init\.sha256: run has '.*', asked for '"):
            train(recipe, sealed_cache, shards_dir, tmp_path / "run", resume=True)

    def test_is_not_needed_by_what_is_finished(
        self,
        weights: Path,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        recipe = small_recipe(recipe_file, f"student.init={weights}")
        train(recipe, sealed_cache, shards_dir, tmp_path / "run")
        weights.unlink()
        train(recipe, sealed_cache, shards_dir, tmp_path / "run", resume=True)
        assert probe(tmp_path / "run")["student"]

    def test_that_does_not_fit_leaves_no_run_behind(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        recipe = small_recipe(recipe_file, f"student.init={tmp_path}/nowhere.pth")
        with pytest.raises(StudentError, match="no such file or folder"):
            train(recipe, sealed_cache, shards_dir, tmp_path / "run")
        assert not (tmp_path / "run").exists()
