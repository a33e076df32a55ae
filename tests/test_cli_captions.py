"""The captions commands: what they print, and how they exit."""

import json
import shutil
from pathlib import Path

from tests.conftest import Invoke
from tests.shared.encoders import make_text_encoder
from tests.test_cli import fails


def test_captions_are_added_listed_shown_and_removed(
    beamclip: Invoke, captioned_copy: Path, captioned_shards: Path
) -> None:
    given = (captioned_copy, "--shards", captioned_shards, "--device", "cpu")
    again = beamclip("captions", "add", *given)
    assert again.code == 0, again.err
    assert again.out.startswith("there: test: 46 captions of 11 samples of test, ")
    assert "; 1 samples without" in again.out
    added = beamclip("captions", "add", *given, "--split", "train", "--name", "mine", "--json")
    assert added.code == 0, added.err
    said = json.loads(added.out)
    assert (said["added"], said["name"], said["split"], said["samples"]) == (
        *(True, "mine", "train"),
        24,
    )
    listed = beamclip("captions", "list", captioned_copy)
    assert [line.split(":")[0] for line in listed.out.splitlines()] == ["mine", "test"]
    as_json = json.loads(beamclip("captions", "list", captioned_copy, "--json").out)
    assert as_json["captions"][1]["captions"] == 46
    shown = beamclip("captions", "show", captioned_copy, "mine")
    assert "example: Square 0 in words of kind 0." in shown.out
    assert json.loads(beamclip("captions", "show", captioned_copy, "mine", "--json").out)["tokens"]
    assert beamclip("captions", "remove", captioned_copy, "mine").out == "mine: removed\n"
    assert beamclip("captions", "remove", captioned_copy, "test").code == 0
    assert beamclip("captions", "list", captioned_copy).out == "no captions\n"
    assert beamclip("cache", "verify", captioned_copy, "--full").code == 0


def test_what_the_user_can_mend_exits_1(
    beamclip: Invoke, captioned_copy: Path, shards_dir: Path, tmp_path: Path
) -> None:
    given = ("--shards", shards_dir, "--device", "cpu")
    fails(beamclip("captions", "add", captioned_copy, *given), 1, "test-000001.bytes")
    fails(beamclip("captions", "add", tmp_path / "none", *given), 1, "no cache in")
    fails(beamclip("captions", "show", captioned_copy, "tset"), 1, "did you mean 'test'")
    fails(beamclip("captions", "remove", captioned_copy, "tset"), 1, "did you mean 'test'")
    fails(beamclip("captions", "list", tmp_path / "none"), 1, "no cache in")
    fails(beamclip("captions", "add", captioned_copy), 2, "--shards")


def test_a_text_encoder_embeds_what_the_teacher_cannot_read(
    beamclip: Invoke, vision_cache: Path, captioned_shards: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(vision_cache, tmp_path / "cache"))
    bert = make_text_encoder(tmp_path / "bert")
    given = ("captions", "add", cache, "--shards", captioned_shards, "--device", "cpu")
    named = ("--text-encoder", bert, "--text-layers", 2, "--pooling", "cls", "--max-tokens", 12)
    added = beamclip(*given, *named, "--json")
    assert added.code == 0, added.err
    said = json.loads(added.out)
    found = said["encoder"]
    assert said["added"]
    assert (found["model"], found["layers"], found["pooling"]) == (str(bert), 2, "cls")
    assert "bert (2 layers, cls)" in beamclip("captions", "show", cache, "test").out
    again = beamclip(*given, *named)
    assert again.out.startswith("there: test: ")
    fails(beamclip(*given, *named[:2], "--max-tokens", 12), 1, "encoder.pooling")
    fails(beamclip(*given, "--pooling", "cls"), 2, "name it")
    fails(beamclip(*given, "--text-encoder", bert, "--max-tokens", 1), 2, "max_tokens is at least")
    assert beamclip("cache", "verify", cache, "--full").code == 0
