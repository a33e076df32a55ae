"""The command line: messages that say what to do, exit codes, JSON."""

import json
from pathlib import Path

import pytest

from pipeline.shards import write_shards
from tests.conftest import Invoke
from tests.inputs import labelled_samples


def test_help_lists_the_stages(beamclip: Invoke) -> None:
    outcome = beamclip("--help")
    assert outcome.code == 0
    for command in ("data", "teacher", "teacher-cache", "pretrain", "train-student", "probe"):
        assert command in outcome.out


def test_the_whole_way_from_shards_to_scores(
    beamclip: Invoke, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    shared = ("--shards", shards_dir, "--recipe", recipe_file, "--json")
    made = beamclip("teacher-cache", "--cache", cache, *shared)
    assert made.code == 0, made.err
    report = json.loads(made.out)
    assert (report["units"], report["made"]) == (5, 5)
    assert report["counts"]["train"] == {"seen": 24, "skipped": 0, "reasons": {}}
    trained = beamclip("train-student", "--cache", cache, *shared, "--run", run)
    assert trained.code == 0, trained.err
    assert json.loads(trained.out)["epoch"] == 1
    probed = beamclip("probe", "--run", run, "--json")
    assert probed.code == 0, probed.err
    scores = json.loads(probed.out)
    assert set(scores) == {"teacher", "student", "student_raw", "chance"}
    assert scores == json.loads((run / "probe.json").read_text(encoding="utf-8"))
    table = beamclip("probe", "--run", run).out
    assert table.splitlines()[0].split() == ["zero-shot", "linear", "linear,", "embedding"]


def test_probes_can_be_chosen_after_training(
    beamclip: Invoke, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    shared = ("--cache", sealed_cache, "--shards", shards_dir, "--recipe", recipe_file)
    quick = ("--set", "training.epochs=1", "--model", "test_resnet")
    beamclip("train-student", *shared, *quick, "--run", tmp_path / "r")
    outcome = beamclip("probe", "--run", tmp_path / "r", "--probes", "zeroshot", "--json")
    assert all(set(probes) == {"zeroshot"} for probes in json.loads(outcome.out).values())
    wrong = beamclip("probe", "--run", tmp_path / "r", "--probes", "zeroshut")
    fails(wrong, 1, "unknown probes ['zeroshut']", "valid: linear, zeroshot")


def fails(outcome: object, code: int, *parts: str) -> None:
    assert outcome.code == code, (outcome.code, outcome.err)  # type: ignore[attr-defined]
    assert "Traceback" not in outcome.err  # type: ignore[attr-defined]
    for part in parts:
        assert part in outcome.err, outcome.err  # type: ignore[attr-defined]


def test_missing_shards_are_listed_and_exit_1(
    beamclip: Invoke, tmp_path: Path, recipe_file: Path
) -> None:
    outcome = beamclip(
        *("teacher-cache", "--cache", tmp_path / "c", "--recipe", recipe_file),
        *("--shards", f"{tmp_path}/train-{{000..002}}.tar"),
    )
    fails(outcome, 1, "3 of 3 shards", "train-000.tar", "train-002.tar", "No such file")


def test_a_wrong_recipe_key_names_the_nearest(
    beamclip: Invoke, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    outcome = beamclip(
        *("train-student", "--cache", sealed_cache, "--shards", shards_dir),
        *("--recipe", recipe_file, "--run", tmp_path / "r", "--set", "training.learning_rte=1"),
    )
    fails(outcome, 1, "unknown key 'training.learning_rte'", "did you mean 'learning_rate'")
    assert not (tmp_path / "r").exists()


def test_an_unknown_recipe_names_the_nearest(
    beamclip: Invoke, shards_dir: Path, tmp_path: Path
) -> None:
    outcome = beamclip(
        *("teacher-cache", "--cache", tmp_path / "c", "--shards", shards_dir, "--recipe", "digit")
    )
    fails(outcome, 1, "did you mean 'digits'")


def test_an_unknown_model_names_the_nearest(
    beamclip: Invoke, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    outcome = beamclip(
        *("train-student", "--cache", sealed_cache, "--shards", shards_dir),
        *("--recipe", recipe_file, "--run", tmp_path / "r", "--model", "resnet81"),
    )
    fails(outcome, 1, "no student 'resnet81'", "did you mean 'resnet")
    assert not (tmp_path / "r").exists()


def test_a_cache_of_another_recipe_is_refused_with_a_diff(
    beamclip: Invoke, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    shared = ("--cache", sealed_cache, "--shards", shards_dir, "--recipe", recipe_file)
    change = ("--set", "schedule.flip=0.25")
    training = beamclip("train-student", *shared, *change, "--run", tmp_path / "r")
    fails(training, 1, "schedule.flip: cache has 0.5, asked for 0.25")
    caching = beamclip("teacher-cache", *shared, *change)
    fails(caching, 1, "schedules.mild.flip: cache has 0.5, asked for 0.25", "new --cache")


def test_a_truncated_tar_exits_3_and_names_it(
    beamclip: Invoke, tmp_path: Path, recipe_file: Path
) -> None:
    write_shards(labelled_samples(20), tmp_path / "shards", "train", per_shard=10)
    path = tmp_path / "shards" / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    outcome = beamclip(
        *("teacher-cache", "--cache", tmp_path / "c", "--recipe", recipe_file),
        *("--shards", tmp_path / "shards"),
    )
    fails(outcome, 3, "2 of 4 units failed", "train-000001.tar", "fetch or write it again")
    training = beamclip(
        *("train-student", "--cache", tmp_path / "c", "--recipe", recipe_file),
        *("--shards", tmp_path / "shards", "--run", tmp_path / "r"),
    )
    fails(training, 1, "not sealed", "run teacher-cache again")


def test_a_corrupt_image_is_reported_by_its_reason(
    beamclip: Invoke, tmp_path: Path, recipe_file: Path
) -> None:
    pairs = labelled_samples(20)
    pairs[3] = ("00003", {"jpg": b"<html>not found</html>", "cls": b"0"})
    write_shards(pairs, tmp_path / "shards", "train", per_shard=20)
    outcome = beamclip(
        *("teacher-cache", "--cache", tmp_path / "c", "--recipe", recipe_file),
        *("--shards", tmp_path / "shards"),
    )
    assert outcome.code == 0, outcome.err
    assert "train: 20 samples, 1 skipped, undecodable 1" in outcome.out


def test_a_run_that_was_not_trained_says_so(beamclip: Invoke, tmp_path: Path) -> None:
    fails(beamclip("probe", "--run", tmp_path), 1, "holds no run")


def test_no_cache_says_how_to_make_one(
    beamclip: Invoke, tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    outcome = beamclip(
        *("train-student", "--cache", tmp_path / "none", "--shards", shards_dir),
        *("--recipe", recipe_file, "--run", tmp_path / "r"),
    )
    fails(outcome, 1, "no cache in", "beamclip teacher-cache")


def test_a_teacher_that_is_not_there_is_told_at_once(
    beamclip: Invoke, tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    outcome = beamclip(
        *("teacher-cache", "--cache", tmp_path / "c", "--shards", shards_dir),
        *("--recipe", recipe_file, "--set", "teacher.model=local-dir:/nowhere"),
    )
    fails(outcome, 1, "no teacher in /nowhere", "beamclip teacher tiny")


@pytest.mark.parametrize(
    "arguments", [("teacher-cache",), ("probe", "--nonsense"), ("no-such-command",)]
)
def test_wrong_usage_exits_2(beamclip: Invoke, arguments: tuple[str, ...]) -> None:
    fails(beamclip(*arguments), 2, "Usage:")


def test_a_device_that_is_not_there_says_so(
    beamclip: Invoke, tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    outcome = beamclip(
        *("teacher-cache", "--cache", tmp_path / "c", "--shards", shards_dir),
        *("--recipe", recipe_file, "--device", "warp"),
    )
    fails(outcome, 1, "expected auto, cpu, cuda or cuda:N")


def test_an_unwritable_place_is_named(
    beamclip: Invoke, tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = beamclip(
        *("teacher-cache", "--cache", tmp_path / "file" / "c", "--shards", shards_dir),
        *("--recipe", recipe_file),
    )
    fails(outcome, 1, str(tmp_path / "file"), "Not a directory")


def test_digits_come_as_shards(beamclip: Invoke, tmp_path: Path) -> None:
    outcome = beamclip("data", "digits", "--out", tmp_path / "digits", "--json")
    names = [Path(path).name for path in json.loads(outcome.out)["shards"]]
    assert names == [f"test-00000{i}.tar" for i in range(2)] + [
        f"train-00000{i}.tar" for i in range(5)
    ]
    again = beamclip("data", "digits", "--out", tmp_path / "digits")
    fails(again, 1, "already holds 7 shards")


def test_a_cache_grows_on_request_and_a_hint_says_how(
    beamclip: Invoke, cache_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    shared = ("--cache", cache_copy, "--shards", shards_dir, "--recipe", recipe_file)
    more = ("teacher-cache", *shared, "--views", "3")
    fails(beamclip(*more), 1, "--extend", "splits.train.views.mild: cache has 2, asked for 3")
    grown = beamclip(*more, "--extend", "--views-per-unit", "8", "--json")
    assert grown.code == 0, grown.err
    report = json.loads(grown.out)
    assert (report["generation"], report["newest_generation"]) == (1, 1)
    assert (report["units"], report["made"]) == (7, 2)
    former = beamclip("teacher-cache", *shared)
    assert former.code == 0, former.err
    assert "generation 0, as was asked for; the cache has grown to generation 1" in former.out
    trained = beamclip(
        *("train-student", *shared, "--run", tmp_path / "r", "--generation", "0"),
        *("--set", "training.epochs=1", "--model", "test_resnet"),
    )
    assert trained.code == 0, trained.err
    origin = json.loads((tmp_path / "r" / "run.json").read_text(encoding="utf-8"))
    assert origin["cache"]["generation"] == 0


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--scheduler", "127.0.0.1:1", "--workers", 2), "leave --workers out"),
        (("--scheduler", "127.0.0.1:1", "--scheduler-file", "s.json"), "both name a cluster"),
        (("--memory-limit", "1GiB"), "of the processes of --workers"),
        (("--insecure",), "name one"),
    ],
)
def test_options_of_place_that_would_be_ignored_are_usage_errors(
    beamclip: Invoke,
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    found: str,
) -> None:
    shared = ("--cache", tmp_path / "c", "--shards", shards_dir, "--recipe", recipe_file)
    fails(beamclip("teacher-cache", *shared, *options), 2, found)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--scheduler", "tcp://192.0.2.1:8786"), "Whoever reaches a scheduler runs code"),
        (("--scheduler-file", "/nowhere/s.json"), "/nowhere/s.json: No such file"),
        (("--workers", 2, "--memory-limit", "plenty"), "expected a size, such as 8GiB"),
    ],
)
def test_a_place_that_cannot_be_used_is_told_before_the_teacher_is_looked_for(
    beamclip: Invoke,
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    found: str,
) -> None:
    shared = ("--cache", tmp_path / "c", "--shards", shards_dir, "--recipe", recipe_file)
    nowhere = ("--set", "teacher.model=local-dir:/nowhere")
    fails(beamclip("teacher-cache", *shared, *nowhere, *options), 1, found)
    assert not (tmp_path / "c").exists()
