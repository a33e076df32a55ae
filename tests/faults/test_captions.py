"""Adding captions is stopped anywhere, or meets bad texts: a set is there whole or not at all."""

import shutil
import signal
from pathlib import Path

import pytest

from pipeline.cache.reader import TargetCache
from pipeline.cache.writer import mend_parent_group
from pipeline.shards import write_shards
from tests.faults.commands import beamclip
from tests.faults.law import check_law
from tests.inputs import build, captioned_samples
from tests.trees import cache_digests, tree_stamps


@pytest.mark.parametrize(
    "fault", ["before-parent:1", "before-attributes:1", "before-rename:1", "after-rename:1"]
)
def test_killed_while_adding_and_run_again_gives_the_same_captions(
    captioned_copy: Path, captioned_cache: Path, captioned_shards: Path, fault: str
) -> None:
    shutil.rmtree(captioned_copy / "captions")
    before = tree_stamps(captioned_copy)
    words = ("captions", "add", captioned_copy, "--shards", captioned_shards, "--device", "cpu")
    killed = beamclip(*words, environment={"BEAMCLIP_FAULT_POINT": fault})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    check_law(captioned_copy, exit_code=0)  # sealed as ever
    opened = TargetCache.open(captioned_copy, "test")
    assert len(opened) == 12
    rerun = beamclip(*words)
    assert rerun.returncode == 0, rerun.stderr
    assert ("there:" if fault == "after-rename:1" else "added:") in rerun.stdout
    after = tree_stamps(captioned_copy)
    assert {name: after[name] for name in before} == before
    assert cache_digests(captioned_copy) == cache_digests(captioned_cache)
    assert not list(captioned_copy.glob(".tmp/*"))
    check_law(captioned_copy, exit_code=0)


def test_texts_meant_to_harm_are_counted_and_nothing_is_run_or_held(
    tmp_path: Path, recipe_file: Path
) -> None:
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
    pairs = captioned_samples(7, seed=2)
    texts = [
        {"json": evil, "pkl": evil, "txt": b"fine"},
        {"json": b'{"a":' * 100_000},
        {"json": b"9" * 100_000},
        {"json": b'{"captions": [' + b'"a", ' * (1 << 18) + b'"a"]}'},
        {"txt": bytes(200 << 20)},
        {"txt": b"../../x", "json": b'{"captions": ["\\u0000", "a\\ud800"]}'},
        {"txt": b"<|endoftext|>"},
    ]
    for (_, members), own in zip(pairs, texts, strict=True):
        members.pop("txt", None)
        members.pop("json", None)
        members |= own
    write_shards(pairs, tmp_path / "shards", "test", per_shard=99)
    cache = build(tmp_path / "cache", tmp_path / "shards", recipe_file)
    words = ("captions", "add", cache, "--shards", tmp_path / "shards", "--device", "cpu")
    done = beamclip(*words, memory_bytes=1500 << 20)
    assert done.returncode == 0, done.stderr
    assert TargetCache.open(cache, "test").captions("test").texts == ("fine", "\0")
    assert "2 captions of 2 samples of test" in done.stdout
    assert "left out 3 (bad-json), left out 1 (no-text)" in done.stdout
    assert "left out 2 (too-many-bytes)" in done.stdout
    assert not (tmp_path / "owned").exists()


def test_a_folder_of_no_captions_is_no_fault(captioned_copy: Path) -> None:
    shutil.rmtree(captioned_copy / "captions")
    mend_parent_group(captioned_copy, "captions")
    assert check_law(captioned_copy, exit_code=0).whole
