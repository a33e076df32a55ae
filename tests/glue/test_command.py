"""beamclip glue: nine tasks from files to a table."""

import json
from pathlib import Path

import pytest

from tests.conftest import Invoke
from tests.glue.files import NAMES, write_task

QUICK = (
    *("--device", "cpu", "--set", "epochs=1", "--set", "batch_size=16"),
    *("--set", "learning_rate=0.001"),
)


@pytest.fixture(scope="module")
def glue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("glue")
    for name in NAMES:
        write_task(root, name, train=16, dev=10)
    with open(root / "QQP/train.tsv", "a") as file:
        file.write("half a line\n")
    return root


def test_all_tasks_are_scored_and_written(
    beamclip: Invoke, bert: Path, glue_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "glue.json"
    words = ("glue", "--text", bert, "--data", glue_dir, "--out", out, "--json", *QUICK)
    done = beamclip(*words)
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert results == json.loads(out.read_text(encoding="utf-8"))
    assert list(results["scores"]) == NAMES
    assert set(results["scores"]["mnli"]) == {
        "accuracy",
        "accuracy_matched",
        "accuracy_mismatched",
    }
    assert results["counts"]["qqp"]["train"]["broken"] == 1
    assert results["counts"]["qqp"]["train"]["examples"] == 16
    assert set(results["counts"]["mnli"]) == {"train", "dev_matched", "dev_mismatched"}
    assert results["options"]["epochs"] == 1
    assert results["text"]["name"] == str(bert)
    heads = [next(iter(found.values())) for found in results["scores"].values()]
    assert results["mean"] == pytest.approx(sum(heads) / 9)
    assert "mnli: 16 examples, 1 steps" in done.err
    assert "Loading" not in done.err


def test_a_task_alone_scores_as_among_others_and_needs_no_other_files(
    beamclip: Invoke, bert: Path, glue_dir: Path, tmp_path: Path
) -> None:
    write_task(tmp_path, "rte", train=16, dev=10)
    write_task(tmp_path, "stsb", train=16, dev=10)
    words = ("glue", "--text", bert, "--data", tmp_path, "--json", *QUICK)
    both = json.loads(beamclip(*words, "--tasks", "rte,STS-B").out)
    alone = json.loads(beamclip(*words, "--tasks", "stsb").out)
    assert list(both["scores"]) == ["rte", "stsb"]
    assert both["scores"]["stsb"] == alone["scores"]["stsb"]


def test_the_table_has_every_score(beamclip: Invoke, bert: Path, glue_dir: Path) -> None:
    done = beamclip("glue", "--text", bert, "--data", glue_dir, "--tasks", "cola,qqp", *QUICK)
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["task", "score", "dev", "same", "answer", "examples", "broken"]
    assert [line[0] for line in lines[1:]] == ["cola", "accuracy", "qqp", "accuracy", "mean"]
    assert lines[3][1] == "f1"
    assert lines[3][-2:] == ["16", "1"]


def test_what_is_missing_is_told_before_an_encoder_is_loaded(
    beamclip: Invoke, tmp_path: Path
) -> None:
    write_task(tmp_path, "rte")
    words = ("glue", "--text", "no-such/encoder", "--data", tmp_path)
    outcome = beamclip(*words)
    assert outcome.code == 1
    assert "lacks 17 files of what was asked (cola, sst2, " in outcome.err
    assert "mnli, qnli, rte, wnli): CoLA/train.tsv, CoLA/dev.tsv, SST-2" in outcome.err
    encoder = beamclip(*words, "--tasks", "rte")
    assert encoder.code == 1
    assert "cannot load text encoder no-such/encoder: " in encoder.err


def test_wrong_words_name_the_nearest(beamclip: Invoke, bert: Path, glue_dir: Path) -> None:
    words = ("glue", "--text", bert, "--data", glue_dir)
    task = beamclip(*words, "--tasks", "rte,colla")
    assert task.code == 1
    assert "no GLUE task 'colla': did you mean 'cola'?" in task.err
    option = beamclip(*words, "--set", "epoch=1")
    assert option.code == 1
    assert "did you mean 'epochs'" in option.err
    assert beamclip("glue", "--data", glue_dir).code == 2
