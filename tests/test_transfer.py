"""Any encoder, and a run on other datasets, scored on labelled shards by the probes of a run."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cache.reader import TargetCache
from pipeline.contracts import TokenBatch
from pipeline.decode import DecodePolicy
from pipeline.encoders import PlainOptions
from pipeline.errors import CacheMismatchError, DataError, ProbeError, ShardError
from pipeline.evaluate import Scores
from pipeline.features import teacher_features
from pipeline.labelled import EvalView, read_splits, rendered_rows
from pipeline.probes import PROBES, ProbeOptions
from pipeline.probes.contract import Probe, Subject
from pipeline.prompt_file import load_prompts
from pipeline.prompts import load_sets
from pipeline.recipe import load_recipe, recipe_from
from pipeline.rundir import WEIGHTS, RunDir
from pipeline.schedule import EVAL, EvalSchedule
from pipeline.shards import find_shards, write_shards
from pipeline.shared.reader import TextReader, text_reader
from pipeline.shared.student import SharedStudent
from pipeline.stage_two import rebuild_student
from pipeline.texts import add_anchors
from pipeline.transfer import Texts, own_prompts, probe_encoders, probe_on
from tests.conftest import Invoke
from tests.inputs import PROMPTS, build, labelled_samples, make_teacher
from tests.runs import alone, probe, small_recipe, train

SPEC, NO_TEXTS = ProbeOptions(), Texts()
LABELS = np.arange(10) % 3  # of the other test images


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
) -> Path:
    """A trained run, not yet scored."""
    folder = tmp_path_factory.mktemp("transfer")
    with alone(folder / "scratch"):
        recipe = small_recipe(recipe_file, "training.epochs=1")
        train(recipe, sealed_cache, shards_dir, folder / "run")
    return folder / "run"


@pytest.fixture
def run_copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def shared_run(
    tmp_path_factory: pytest.TempPathFactory,
    vision_cache: Path,
    captioned_shards: Path,
    shared_recipe: Path,
) -> Path:
    """A trained run of a model of images and texts, not yet scored."""
    folder = tmp_path_factory.mktemp("transfer")
    with alone(folder / "scratch"):
        recipe = load_recipe(str(shared_recipe))
        train(recipe, vision_cache, captioned_shards, folder / "shared")
    return folder / "shared"


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    write_shards(labelled_samples(21, seed=31), folder, "train", per_shard=8)
    write_shards(labelled_samples(10, seed=32), folder, "test", per_shard=8)
    return folder


def scored(
    encoder: Path | str,
    shards: Path,
    texts: Texts = NO_TEXTS,
    spec: ProbeOptions = SPEC,
    **more: Any,
) -> Scores:
    options: dict[str, Any] = {"asked": False, "plain": PlainOptions(), "device": "cpu", **more}
    found, _ = probe_encoders(
        [str(encoder)], find_shards([str(shards)]), spec, texts=texts, **options
    )
    return found


def prompts_of(recipe_file: Path, shards: Path) -> Texts:
    file = recipe_file.parent / "shapes-prompts.yaml"
    return Texts(prompts=own_prompts(str(file), "plain", find_shards([str(shards)])))


class TestEncoders:
    def test_the_teacher_gets_the_row_that_its_cache_gives(
        self, run_copy: Path, teacher_dir: Path, shards_dir: Path, recipe_file: Path
    ) -> None:
        cached = probe(run_copy)
        name = f"local-dir:{teacher_dir}"
        found = scored(name, shards_dir, prompts_of(recipe_file, shards_dir))
        assert found["chance"] == cached["chance"]
        linear, of_cache = found[name]["linear"], cached["teacher"]["linear"]
        # Targets are float16 in the cache, so a row near a border may fall to its other side.
        assert abs(linear["embedding_accuracy"] - of_cache["embedding_accuracy"]) <= 1 / 12
        zeroshot = found[name]["zeroshot"]["top1"]
        assert abs(zeroshot - cached["teacher"]["zeroshot"]["top1"]) <= 1 / 12

    def test_the_teachers_features_are_the_cached_targets_to_their_float16(
        self, teacher_dir: Path, shards_dir: Path, sealed_cache: Path, tmp_path: Path
    ) -> None:
        scored(teacher_dir, shards_dir, keep=tmp_path / "keep")
        kept = {len(f["rows_N"]): f for f in map(np.load, (tmp_path / "keep").iterdir())}
        for split, rows in (("train", 24), ("test", 12)):
            cached = teacher_features(TargetCache.open(sealed_cache, split, EVAL))
            np.testing.assert_allclose(kept[rows]["embedding_ND"], cached.embedding_ND, atol=1e-3)
            assert np.array_equal(kept[rows]["labels_N"], cached.labels_N)
            assert np.array_equal(kept[rows]["rows_N"], cached.rows_N)

    def test_a_run_gets_the_row_that_the_run_gets(
        self, run_copy: Path, shards_dir: Path, sealed_cache: Path
    ) -> None:
        found = scored(run_copy, shards_dir, Texts(cache=sealed_cache))
        assert found[str(run_copy)] == probe(run_copy)["student"]

    def test_a_cache_gives_its_own_teacher_anchors_and_nobody_else(
        self, teacher_dir: Path, shards_dir: Path, sealed_cache: Path, tmp_path: Path
    ) -> None:
        only = ProbeOptions(run=("zeroshot",))
        texts = Texts(cache=sealed_cache)
        found = scored(teacher_dir, shards_dir, texts, only)[str(teacher_dir)]
        cache = TargetCache.open(sealed_cache, "test", EVAL)
        subject = Subject(teacher_features(cache), anchors=cache.anchors("shapes-plain"))
        expected = PROBES["zeroshot"].run(subject, SPEC.zeroshot).scores
        assert abs(found["zeroshot"]["top1"] - expected["top1"]) <= 1 / 12
        with pytest.raises(ProbeError, match="does not embed into that of"):
            scored(make_teacher(tmp_path / "b", seed=1), shards_dir, texts, only)

    def test_zero_shot_without_texts_is_refused_by_name_and_else_left_out(
        self, teacher_dir: Path, shards_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        found = scored(teacher_dir, shards_dir)
        assert list(found[str(teacher_dir)]) == list(found["chance"]) == ["linear"]
        assert "left out: the zeroshot probe needs a prompt set" in caplog.text
        with pytest.raises(ProbeError, match=r"zeroshot probe needs a prompt set .* --prompts"):
            scored(teacher_dir, shards_dir, asked=True)

    def test_several_are_rows_of_one_table(
        self, run: Path, teacher_dir: Path, shards_dir: Path
    ) -> None:
        names = [str(run), str(teacher_dir)]
        scores, details = probe_encoders(
            names,
            find_shards([str(shards_dir)]),
            ProbeOptions(run=("linear",)),
            asked=True,
            texts=Texts(),
            plain=PlainOptions(),
            device="cpu",
        )
        assert list(scores) == [*names, "chance"]
        assert list(details) == names
        assert scores[names[0]] != scores[names[1]]

    def test_what_is_kept_saves_reading_images_again_and_is_never_stale(
        self, teacher_dir: Path, shards_dir: Path, other_shards: Path, tmp_path: Path
    ) -> None:
        keep = tmp_path / "keep"
        first = scored(teacher_dir, shards_dir, keep=keep)
        files = {path: path.stat().st_mtime_ns for path in keep.iterdir()}
        assert len(files) == 2  # train and test
        assert scored(teacher_dir, shards_dir, keep=keep) == first
        assert {path: path.stat().st_mtime_ns for path in keep.iterdir()} == files
        moved = Path(shutil.copytree(shards_dir, tmp_path / "shards"))
        for path in other_shards.glob("test-*"):  # other images under the names of the first
            shutil.copy(path, moved / path.name)
        changed = scored(teacher_dir, moved, keep=keep)
        assert changed == scored(teacher_dir, moved)
        assert len(list(keep.iterdir())) == 3


class TestOtherDatasets:
    def test_are_scored_as_an_encoder_on_them_is(self, run_copy: Path, other_shards: Path) -> None:
        found = probe_on(run_copy, {"other": [str(other_shards)]}, device="cpu")
        assert list(found) == ["other"]
        assert list(found["other"]) == ["student", "student_raw", "chance"]
        expected = scored(run_copy, other_shards)[str(run_copy)]
        assert found["other"]["student"] == expected
        assert list(expected) == ["linear"]

    def test_are_scored_zero_shot_by_the_anchors_that_were_added_for_them(
        self,
        run_copy: Path,
        cache_copy: Path,
        other_shards: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        datasets = {"squares": [str(other_shards)]}
        asked = {"cache_path": cache_copy, "probes": ["zeroshot"], "device": "cpu"}
        with pytest.raises(ProbeError, match=r"has none of squares: `beamclip anchors add"):
            probe_on(run_copy, datasets, **asked)  # type: ignore[arg-type]
        text = PROMPTS.replace("dataset: shapes", "dataset: squares")
        (tmp_path / "squares.yaml").write_text(text, encoding="utf-8")
        add_anchors(cache_copy, load_sets(str(tmp_path / "squares.yaml")))
        found = probe_on(run_copy, datasets, **asked)  # type: ignore[arg-type]
        anchors = TargetCache.open(cache_copy, "test", EVAL).anchors("squares-plain")
        shares = {
            float(((kept["embedding_ND"] @ anchors.embeddings_AD.T).argmax(1) == LABELS).mean())
            for kept in map(np.load, (run_copy / "features").iterdir())
        }
        assert {row["zeroshot"]["top1"] for row in list(found["squares"].values())[:2]} == shares

    def test_probes_that_need_the_runs_own_images_are_left_out(
        self,
        run_copy: Path,
        other_shards: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        teachers = Probe(PROBES["zeroshot"].run, "top1", frozenset({"teacher"}))
        monkeypatch.setitem(PROBES, "zeroshot", teachers)  # type: ignore[misc]
        datasets = {"other": [str(other_shards)]}
        found = probe_on(run_copy, datasets, device="cpu")["other"]
        assert all(list(probes) == ["linear"] for probes in found.values())
        assert "left out: the zeroshot probe needs the teacher's targets" in caplog.text
        with pytest.raises(ProbeError, match="the zeroshot probe needs the teacher's targets"):
            probe_on(run_copy, datasets, probes=["zeroshot"], device="cpu")

    def test_need_neither_the_cache_nor_the_runs_own_shards(
        self, run_copy: Path, other_shards: Path
    ) -> None:
        origin = json.loads((run_copy / "run.json").read_text(encoding="utf-8"))
        origin |= {"cache_path": "/nowhere", "shards": [["train", "/nowhere/train-0.tar"]]}
        (run_copy / "run.json").write_text(json.dumps(origin), encoding="utf-8")
        found = probe_on(run_copy, {"other": [str(other_shards)]}, device="cpu")
        assert found["other"]["student"]["linear"]

    def test_gather_in_transfer_json_beside_what_is_there(
        self, run_copy: Path, other_shards: Path, shards_dir: Path
    ) -> None:
        own = probe(run_copy)
        one = probe_on(run_copy, {"one": [str(other_shards)]}, device="cpu")
        two = probe_on(run_copy, {"two": [str(shards_dir)]}, device="cpu")
        read = {
            name: json.loads((run_copy / name).read_text(encoding="utf-8"))
            for name in ("transfer.json", "transfer-details.json", "probe.json")
        }
        assert read["transfer.json"] == {**one, **two}
        assert set(read["transfer-details.json"]["two"]["student"]) == {"linear"}
        assert read["probe.json"] == own

    def test_a_second_time_read_no_image_and_another_students_are_not_taken_for_them(
        self, run_copy: Path, other_shards: Path
    ) -> None:
        datasets = {"other": [str(other_shards)]}
        first = probe_on(run_copy, datasets, device="cpu")
        files = {path: path.stat().st_mtime_ns for path in (run_copy / "features").iterdir()}
        assert len(files) == 4
        assert probe_on(run_copy, datasets, device="cpu") == first
        assert {p: p.stat().st_mtime_ns for p in (run_copy / "features").iterdir()} == files
        raw = RunDir(run_copy).load_weights("student_raw")
        RunDir(run_copy).save_weights({"student": raw, "student_raw": raw})
        again = probe_on(run_copy, datasets, device="cpu")["other"]
        assert again["student"] == again["student_raw"] == first["other"]["student_raw"]

    def test_with_a_cache_of_another_teacher_are_refused(
        self, run_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        other = make_teacher(tmp_path / "teacher", seed=1)
        override = f"teacher.model=local-dir:{other}"
        cache = build(tmp_path / "other", shards_dir, recipe_file, override)
        with pytest.raises(CacheMismatchError, match="of another teacher than the run's"):
            probe_on(run_copy, {"x": [str(shards_dir)]}, cache_path=cache, device="cpu")


class TestRunsThatReadTexts:
    """Their class texts go through their own text encoder, into their own space."""

    @pytest.fixture
    def shared_copy(self, shared_run: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(shared_run, tmp_path / "run"))

    def confusion(self, run: Path) -> list[Any]:
        told = json.loads((run / "transfer-details.json").read_text(encoding="utf-8"))
        return [told["digits"][name]["zeroshot"]["confusion"] for name in WEIGHTS]

    def zeroshot(self, run: Path, shards: Path, **more: Any) -> Scores:
        asked: dict[str, Any] = {"probes": ["zeroshot"], "device": "cpu", **more}
        return probe_on(run, {"digits": [str(shards)]}, **asked)["digits"]

    def test_are_scored_on_a_known_dataset_by_its_prompt_file(
        self, shared_copy: Path, other_shards: Path
    ) -> None:
        found = self.zeroshot(shared_copy, other_shards)
        assert list(found) == ["student", "student_raw", "chance"]
        for name, zeroshot in self.expected(shared_copy, other_shards, "plain").items():
            assert found[name]["zeroshot"]["top1"] == zeroshot

    def expected(self, run: Path, shards: Path, prompts: str) -> dict[str, float]:
        """Return zero-shot accuracies of test, each text and image embedded by itself."""
        recipe = recipe_from(RunDir(run).read_recipe(), where="run")
        reader = text_reader(recipe.student.shared)
        (chosen,) = load_sets("digits", [prompts])
        split = read_splits(find_shards([str(shards)]), dataset="x")["test"]
        (batch,) = rendered_rows(split, EvalView(32, EvalSchedule(), DecodePolicy()))
        found = {}
        for name in WEIGHTS:
            student = rebuild_student(RunDir(run), recipe).eval()
            assert isinstance(student, SharedStudent)
            student.load_state_dict(RunDir(run).load_weights(name))
            with torch.inference_mode():
                image_ND = torch.cat(
                    [student(view[None]).embedding_BD for view in batch.views_B3SS]
                )
                mean_AD = [
                    torch.cat([student.embed_texts(read(reader, text)) for text in texts]).mean(0)
                    for texts in chosen.texts
                ]
            anchors_AD = torch.nn.functional.normalize(torch.stack(mean_AD), dim=-1)
            found[name] = float(((image_ND @ anchors_AD.T).argmax(1).numpy() == LABELS).mean())
        return found

    def test_see_each_image_once_and_read_texts_without_dropout(
        self, shared_copy: Path, other_shards: Path
    ) -> None:
        seen, modes = Counter[str](), set[bool]()

        def look(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
            seen[type(module).__name__] += len(given[0]) if given else 0
            modes.add(module.training)

        hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
        self.zeroshot(shared_copy, other_shards, probes=["zeroshot", "linear"])
        hook.remove()
        # By EMA and raw weights; a student sees one more, blank, as it is built.
        assert seen["PatchEmbed"] == 2 * (21 + 10 + 1)
        assert seen["TextEncoder"] == 2 * 10
        assert modes == {False}

    def test_take_the_set_of_the_recipe_if_the_file_has_it_else_the_plain_one(
        self, shared_copy: Path, other_shards: Path
    ) -> None:
        file = shared_copy / "recipe.yaml"
        told = file.read_text(encoding="utf-8")
        found = {}
        for name in ("plain", "cpa", "of-mine"):
            file.write_text(told.replace("zeroshot: plain", f"zeroshot: {name}"), encoding="utf-8")
            self.zeroshot(shared_copy, other_shards)
            found[name] = self.confusion(shared_copy)
        assert found["plain"] == found["of-mine"] != found["cpa"]
        for asked in ("digits-cpa", "cpa"):
            self.zeroshot(shared_copy, other_shards, zeroshot=asked)
            assert self.confusion(shared_copy) == found["cpa"]
        with pytest.raises(DataError, match=r"prompts for digits have no set 'cqa': did you mean"):
            self.zeroshot(shared_copy, other_shards, zeroshot="cqa")

    def test_are_refused_zero_shot_by_name_on_a_dataset_without_a_prompt_file(
        self, shared_copy: Path, other_shards: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        datasets = {"digitz": [str(other_shards)]}
        reason = "in the encoder's space: no prompt file 'digitz': did you mean 'digits'"
        found = probe_on(shared_copy, datasets, device="cpu")["digitz"]
        assert list(found["student"]) == ["linear"]
        assert reason in caplog.text
        with pytest.raises(ProbeError, match=reason):
            probe_on(shared_copy, datasets, probes=["zeroshot"], device="cpu")

    def test_need_no_cache_and_take_none(
        self, shared_copy: Path, other_shards: Path, vision_cache: Path
    ) -> None:
        first = self.zeroshot(shared_copy, other_shards)
        origin = json.loads((shared_copy / "run.json").read_text(encoding="utf-8"))
        origin["cache_path"] = "/nowhere"
        (shared_copy / "run.json").write_text(json.dumps(origin), encoding="utf-8")
        assert self.zeroshot(shared_copy, other_shards) == first
        with pytest.raises(ProbeError, match="in its own space: leave --cache out"):
            self.zeroshot(shared_copy, other_shards, cache_path=vision_cache)

    def test_of_another_class_order_are_refused_if_texts_are_read(
        self, shared_copy: Path, other_shards: Path, tmp_path: Path
    ) -> None:
        shards = Path(shutil.copytree(other_shards, tmp_path / "shards"))
        names = [item.name for item in load_prompts("digits").classes]
        (shards / "classes.txt").write_text("\n".join(names[::-1]), encoding="utf-8")
        with pytest.raises(DataError, match="have the same classes in another order"):
            self.zeroshot(shared_copy, shards)
        assert self.zeroshot(shared_copy, shards, probes=["linear"])["student"]["linear"]

    def test_as_an_encoder_read_the_prompts_that_are_given(
        self, shared_copy: Path, other_shards: Path, beamclip: Invoke
    ) -> None:
        words = ("probe", "--encoder", shared_copy, "--shards", other_shards, "--device", "cpu")
        done = beamclip(*words, "--prompts", "digits", "--prompt-set", "cpa", "--json")
        assert done.code == 0, done.err
        scores = json.loads(done.out)[str(shared_copy)]
        assert (
            scores["zeroshot"]["top1"] == self.expected(shared_copy, other_shards, "cpa")["student"]
        )
        on = self.zeroshot(shared_copy, other_shards, zeroshot="cpa")["student"]
        assert scores["zeroshot"] == on["zeroshot"]
        without = beamclip(*words, "--probes", "zeroshot")
        assert without.code == 1
        assert "in the encoder's space: give --prompts and --prompt-set, or" in without.err

    def test_are_told_of_class_texts_that_are_cut(
        self,
        shared_copy: Path,
        shards_dir: Path,
        shared_recipe: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        texts = prompts_of(shared_recipe, shards_dir)
        scored(shared_copy, shards_dir, texts, ProbeOptions(run=("zeroshot",)))
        assert "are cut" not in caplog.text
        long = "\n".join([PROMPTS.rstrip(), f"  long: ['{{label}}{' in words' * 20}']", ""])
        (tmp_path / "long.yaml").write_text(long, encoding="utf-8")
        shards = find_shards([str(shards_dir)])
        texts = Texts(prompts=own_prompts(str(tmp_path / "long.yaml"), "long", shards))
        scored(shared_copy, shards_dir, texts, ProbeOptions(run=("zeroshot",)))
        assert "shapes-long: 3 of 3 texts are longer than the 16 tokens that" in caplog.text


def read(reader: TextReader, text: str) -> TokenBatch:
    return reader.batch(reader.tokenise([text]))


class TestShards:
    def write(self, folder: Path, split: str, samples: list[Any]) -> None:
        write_shards(samples, folder, split, per_shard=20)

    def test_an_image_in_both_splits_is_warned_of(
        self, teacher_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        samples = labelled_samples(12, seed=1)
        self.write(tmp_path / "s", "train", samples)
        self.write(tmp_path / "s", "test", [*labelled_samples(4, seed=2), ("x", samples[7][1])])
        with caplog.at_level(logging.WARNING):
            scored(teacher_dir, tmp_path / "s")
        assert "1 of 5 test images are train images too" in caplog.text

    def test_what_cannot_be_used_counts_for_nobody_and_is_told_of(
        self, teacher_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        samples = labelled_samples(8, seed=2)  # 3, 3 and 2 of the classes
        for key in (0, 3):  # leaves 1, 3 and 2
            extension = next(iter(samples[key][1]))
            samples[key][1][extension] = samples[key][1][extension][:60]
        samples.append(("wordless", {"cls": b"1"}))
        samples.append(("odd", {**samples[1][1], "cls": b"one"}))
        self.write(tmp_path / "s", "train", labelled_samples(12, seed=1))
        self.write(tmp_path / "s", "test", samples)
        found = scored(teacher_dir, tmp_path / "s")
        assert found["chance"]["linear"]["accuracy"] == 3 / 6
        assert "4 of 10 test samples cannot be used, and count for nobody" in caplog.text

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_without_labels_are_refused(
        self, teacher_dir: Path, tmp_path: Path, split: str
    ) -> None:
        for name, seed in (("train", 1), ("test", 2)):
            samples = labelled_samples(9, seed=seed)
            for _, members in samples if name == split else []:
                del members["cls"]
            self.write(tmp_path / "s", name, samples)
        with pytest.raises(ProbeError, match=rf"no sample of its 9 {split} samples has an image a"):
            scored(teacher_dir, tmp_path / "s")

    def test_without_a_sample_are_refused(self, teacher_dir: Path, tmp_path: Path) -> None:
        self.write(tmp_path / "s", "train", labelled_samples(9, seed=1))
        (tmp_path / "s" / "test-0.tar").write_bytes(bytes(10240))
        with pytest.raises(ProbeError, match="its test shards hold no sample"):
            scored(teacher_dir, tmp_path / "s")

    def test_without_a_test_split_are_refused(self, teacher_dir: Path, tmp_path: Path) -> None:
        self.write(tmp_path / "s", "train", labelled_samples(9, seed=1))
        with pytest.raises(ProbeError, match=r"no test shards among train: name files test-"):
            scored(teacher_dir, tmp_path / "s")

    def test_without_a_train_split_only_serve_probes_that_do_not_learn(
        self, teacher_dir: Path, tmp_path: Path, recipe_file: Path
    ) -> None:
        self.write(tmp_path / "s", "test", labelled_samples(9, seed=1))
        texts = prompts_of(recipe_file, tmp_path / "s")
        assert list(scored(teacher_dir, tmp_path / "s", texts)[str(teacher_dir)]) == ["zeroshot"]
        with pytest.raises(ProbeError, match="the linear probe needs labelled train samples"):
            scored(teacher_dir, tmp_path / "s", texts, asked=True)

    def test_that_change_between_two_readings_are_an_error(self, tmp_path: Path) -> None:
        self.write(tmp_path / "s", "test", labelled_samples(9, seed=1))
        splits = read_splits(find_shards([str(tmp_path / "s")]), dataset="s")
        self.write(tmp_path / "s", "test", labelled_samples(9, seed=2))
        with pytest.raises(ShardError, match="changed while it was probed"):
            list(rendered_rows(splits["test"], EvalView(32, EvalSchedule(), DecodePolicy())))

    def test_are_rendered_alike_by_loaders(self, teacher_dir: Path, shards_dir: Path) -> None:
        assert scored(teacher_dir, shards_dir, workers=2) == scored(teacher_dir, shards_dir)
