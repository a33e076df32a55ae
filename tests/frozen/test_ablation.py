"""The ablation's folder and command; what it loads, and what it must not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.frozen.ablation import TOLD, WEIGHTS, load_pair, run_frozen
from pipeline.frozen.features import open_splits
from pipeline.frozen.options import FrozenOptions
from pipeline.frozen.scores import score_pair
from tests.conftest import Invoke
from tests.test_architecture import reach
from tests.trees import tree_stamps

SHORT = FrozenOptions(epochs=2, batch_size=64, width=32)
ENCODERS = {"timm", "transformers", "open_clip", "tokenizers", "webdataset", "PIL", "torchvision"}


def test_a_folder_says_what_it_was_made_from_and_scores_as_it_says(
    colour_cache: Path, colour_texts: Path, tmp_path: Path
) -> None:
    before = tree_stamps(colour_cache)
    told = run_frozen(colour_cache, tmp_path / "frozen", SHORT)
    assert tree_stamps(colour_cache) == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "scratch"] == ["frozen"]
    assert sorted(path.name for path in (tmp_path / "frozen").iterdir()) == [TOLD, WEIGHTS]
    model, said = load_pair(tmp_path / "frozen")
    assert said == told
    _, test = open_splits(colour_cache, "train", "test")
    assert score_pair(model, test) == told["scores"]["frozen"]
    assert "not the document's" in told["what"]
    assert told["text_encoder"]["model"] == str(colour_texts)
    assert told["teacher"]["model"] == "vit_tiny_patch16_224"
    assert told["cache"]["digests"]["test"] == test.cache.digest
    assert (told["captions"]["train"]["captions"], told["captions"]["test"]["images"]) == (160, 20)
    assert told["test_images_in_train"] == 0
    assert len(told["losses"]) == 2
    assert 0 < told["hours"] < 0.1


def test_equal_seeds_leave_equal_weights(colour_cache: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_frozen(colour_cache, tmp_path / name, SHORT)
    one, two = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_folder_that_is_there_is_left_alone(colour_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is there already: name another --to"):
        run_frozen(colour_cache, tmp_path, SHORT)


def test_a_folder_that_is_not_whole_is_told(colour_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no model of `beamclip frozen`"):
        load_pair(tmp_path)
    run_frozen(colour_cache, tmp_path / "frozen", SHORT)
    file = tmp_path / "frozen" / TOLD
    told = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**told, "options": {**told["options"], "width": 16}}))
    with pytest.raises(RunError, match=r"is not of frozen\.json"):
        load_pair(tmp_path / "frozen")
    file.write_text(json.dumps({**told, "version": 9}))
    with pytest.raises(RunError, match="expected beamclip-frozen version 1"):
        load_pair(tmp_path / "frozen")


def test_no_encoder_no_image_and_no_shard_is_reached_or_loaded(
    colour_cache: Path, tmp_path: Path
) -> None:
    ours = {"teacher", "teacher.clip", "teacher.vision", "shared.texts", "shared.reader"}
    ours |= {"shared.images", "students", "shards", "batches", "cache.writer", "frozen.texts"}
    assert reach("frozen.ablation").isdisjoint(ours)
    code = """
import sys
from pipeline.cli import main
main(sys.argv[1:], standalone_mode=False)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
    given = ["frozen", "--cache", str(colour_cache), "--to", str(tmp_path / "to"), "--epochs", "1"]
    command = [sys.executable, "-c", code, *given]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *table, loaded = result.stdout.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["frozen", "chance"]
    assert "torch" in loaded.split()
    assert ENCODERS.isdisjoint(loaded.split())


def test_the_command_says_that_it_is_an_ablation_and_prints_what_it_wrote(
    beamclip: Invoke, colour_cache: Path, tmp_path: Path
) -> None:
    said = " ".join(beamclip("frozen", "--help").out.split())
    assert "an ablation, not the document's model" in said
    given = ("--cache", colour_cache, "--to", tmp_path / "to", "--epochs", 2, "--width", 16)
    found = beamclip("frozen", *given, "--batch-size", 40, "--seed", 5, "--json")
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert told.pop("folder") == str(tmp_path / "to")
    assert told == json.loads((tmp_path / "to" / TOLD).read_text(encoding="utf-8"))
    options = told["options"]
    assert (options["epochs"], options["width"], options["batch_size"], options["seed"]) == (
        *(2, 16),
        *(40, 5),
    )


def test_what_the_user_can_mend_is_told(
    beamclip: Invoke, plain_cache: Path, tmp_path: Path
) -> None:
    given = ("frozen", "--to", tmp_path / "to", "--cache")
    found = beamclip(*given, plain_cache)
    assert found.code == 1
    assert "texts without embeddings" in found.err
    found = beamclip(*given, plain_cache, "--width", 0)
    assert found.code == 2
    assert "width" in found.err
    assert "no cache in" in beamclip(*given, tmp_path / "none").err
    assert not (tmp_path / "to").exists()
