"""The probe command: three forms of it, what each refuses, where its results go."""

import json
from pathlib import Path

import pytest
import timm
import torch

from tests.conftest import Invoke, Outcome
from tests.runs import alone, small_recipe, train


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
) -> Path:
    folder = tmp_path_factory.mktemp("cli-probe")
    with alone(folder / "scratch"):
        recipe = small_recipe(recipe_file, "training.epochs=1")
        train(recipe, sealed_cache, shards_dir, folder / "run")
    return folder / "run"


def done(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def test_what_is_scored_is_told_apart_from_the_scores(
    beamclip: Invoke, run: Path, sealed_cache: Path
) -> None:
    outcome = done(beamclip("probe", "--run", run, "--json"))
    assert f"{sealed_cache}: 24 train, 12 test samples; 3 classes in test" in outcome.err
    assert json.loads(outcome.out) == json.loads((run / "probe.json").read_text(encoding="utf-8"))


def test_a_runs_probes_take_other_options(beamclip: Invoke, run: Path) -> None:
    words = ("probe", "--run", run, "--probes", "linear", "--json", "--set")
    scores = json.loads(done(beamclip(*words, "probes.linear.C=2")).out)
    assert scores["student"]["linear"]["C"] == 2
    wrong = beamclip(*words, "training.epochs=2")
    assert wrong.code == 1
    assert "unknown key 'training'" in wrong.err


def test_on_other_datasets(beamclip: Invoke, run: Path, shards_dir: Path) -> None:
    words = ("probe", "--run", run, "--on", f"a={shards_dir}", "--on", f"b={shards_dir}")
    outcome = done(beamclip(*words))
    assert [line for line in outcome.out.splitlines() if line in ("a", "b")] == ["a", "b"]
    assert "student, raw" in outcome.out
    found = json.loads(done(beamclip(*words, "--json")).out)
    assert found == json.loads((run / "transfer.json").read_text(encoding="utf-8"))
    assert found["a"] == found["b"]


def test_any_encoder_with_its_texts(
    beamclip: Invoke, teacher_dir: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    words = ("probe", "--encoder", f"local-dir:{teacher_dir}", "--shards", shards_dir)
    prompts = ("--prompts", recipe_file.parent / "shapes-prompts.yaml", "--prompt-set", "plain")
    out = ("--out", tmp_path / "scores.json", "--json")
    by_file = json.loads(done(beamclip(*words, *prompts, *out)).out)
    assert by_file == json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert (tmp_path / "scores-details.json").exists()
    assert list(by_file[f"local-dir:{teacher_dir}"]) == ["linear", "zeroshot"]
    by_recipe = done(beamclip(*words, "--recipe", recipe_file, "--json")).out
    assert json.loads(by_recipe) == by_file
    table = done(beamclip(*words, *prompts)).out
    assert table.splitlines()[1].startswith(f"local-dir:{teacher_dir} ")


def test_weights_of_a_model(beamclip: Invoke, shards_dir: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    words = ("probe", "--encoder", weights, "--shards", shards_dir, "--probes", "linear", "--json")
    scores = json.loads(done(beamclip(*words, "--model", "test_resnet@32")).out)
    assert scores[str(weights)]["linear"]["accuracy"] > 0.5
    assert "give --model" in beamclip(*words).err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --run RUN, or --encoder E"),
        (("--run", "r", "--encoder", "e"), "give --run RUN, or --encoder E"),
        (("--encoder", "e"), "give --shards PATTERN"),
        (("--encoder", "e", "--shards", "s", "--on", "a=b"), "--on has no place beside"),
        (("--run", "r", "--model", "rn50"), "--model has no place beside --run"),
        (("--run", "r", "--on", "a=b", "--shards", "s"), "--shards has no place beside --on"),
        (("--run", "r", "--on", "shards"), "expected NAME=PATTERN"),
    ],
)
def test_words_that_do_not_go_together_are_a_usage_error(
    beamclip: Invoke, words: tuple[str, ...], message: str
) -> None:
    outcome = beamclip("probe", *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_half_of_a_prompt_set_is_a_usage_error(
    beamclip: Invoke, teacher_dir: Path, shards_dir: Path
) -> None:
    words = ("probe", "--encoder", teacher_dir, "--shards", shards_dir, "--prompts", "digits")
    assert "--prompts and --prompt-set say together" in beamclip(*words).err
