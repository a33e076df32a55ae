"""Locations: what may be read, what it weighs, and what is said when it cannot be had."""

import subprocess
import sys
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import ShardError
from pipeline.shards import find_shards, read_samples, sha256_of
from tests.buckets import Bucket
from tests.tars import SMALL, contents, put, read, shard_at, tar_bytes

TAR = tar_bytes([(f"{i:03d}.jpg", bytes([i]) * (1 << 20)) for i in range(13)])  # over 3 blocks


def read_whole(location: str) -> bytes:
    with storage.opened(location) as file:
        return b"".join(iter(lambda: file.read(777_777), b""))


@pytest.mark.parametrize(
    ("location", "store"),
    [
        ("train-0.tar", None),
        ("/data/train-0.tar", None),
        ("./s3:x.tar", None),
        ("s3://bucket/train-0.tar", "s3"),
        ("S3://bucket/train-0.tar", "s3"),
        ("https://host/x.tar?a=b", "https"),
        ("pipe:cat x", "pipe"),
    ],
)
def test_a_url_begins_with_its_scheme(location: str, store: str | None) -> None:
    assert storage.store_of(location) == store


@pytest.mark.parametrize("store", storage.STORES)
def test_every_store_wants_permission(store: str) -> None:
    location = f"{store}://host/train-0.tar"
    with pytest.raises(ShardError, match=f"--allow {store}"):
        storage.check_allowed(location, set(storage.STORES) - {store})
    storage.check_allowed(location, {store})


@pytest.mark.parametrize(
    "location",
    [
        "pipe:cat x.tar",
        "pipe://cat x.tar",
        "ssh://host/x.tar",
        "sftp://host/x.tar",
        "git://x.tar",
        "local://x.tar",
        "memory://x.tar",
        "simplecache::s3://bucket/x.tar",
        "s3://bucket/x.tar::file:///etc/passwd",
        "s3:bucket/x.tar",
        "http:x.tar",
    ],
)
def test_no_permission_covers_commands_chains_and_other_schemes(location: str) -> None:
    with pytest.raises(ShardError, match="no URL of a known store"):
        storage.check_allowed(location, {*storage.STORES, "pipe", "ssh", "git", "local"})


def test_file_urls_are_answered_with_the_path() -> None:
    with pytest.raises(ShardError, match=r"write '/data/train-0\.tar' instead"):
        storage.check_allowed("file:///data/train-0.tar", storage.STORES)


def test_a_signature_is_never_shown() -> None:
    assert storage.shown("https://host/train-0.tar?X-Amz-Signature=1") == "https://host/train-0.tar"
    assert storage.file_name("https://host/a/train-0.tar?X-Amz-Signature=a/b") == "train-0.tar"
    assert storage.shown("a?b.tar") == "a?b.tar"
    assert storage.file_name("a#b?.tar") == "a#b?.tar"


def test_an_object_has_the_bytes_size_and_change_of_its_file(bucket: Bucket) -> None:
    bucket.put("train-0.tar", TAR)
    location = f"s3://{bucket.name}/train-0.tar"
    first = storage.status(location)
    assert (first.size_bytes, first.mtime_ns) == (len(TAR), None)
    assert storage.status(location) == first
    assert read_whole(location) == TAR
    assert storage.first_bytes(location, 512) == TAR[:512]
    bucket.put("train-0.tar", TAR[::-1])
    changed = storage.status(location)
    assert changed.size_bytes == first.size_bytes
    assert changed.etag != first.etag


def test_an_objects_samples_are_its_files(bucket: Bucket, tmp_path: Path) -> None:
    local = put(tmp_path, TAR, "train-0.tar")
    bucket.put("a/train-0.tar", TAR)
    (remote,) = find_shards([f"s3://{bucket.name}/a/train-0.tar"], allow={"s3"})
    assert (remote.split, remote.name, remote.size_bytes) == ("train", "0", local.size_bytes)
    assert set(remote.version) == {"etag"}
    digest = sha256()
    assert contents(list(read_samples(remote, digest))) == contents(read(local))
    assert digest.hexdigest() == sha256(TAR).hexdigest() == sha256_of(remote) == sha256_of(local)


def test_folders_globs_braces_and_lists_of_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("train-000000.tar", "train-000001.tar", "test-000000.tar"):
        bucket.put(f"a/{name}", tar_bytes(SMALL))
    bucket.put("a/classes.txt", b"cat\n")
    bucket.put("b/other.tar", tar_bytes(SMALL))
    root = f"s3://{bucket.name}"
    (tmp_path / "list.txt").write_text(
        f"\ufeff# shards\r\n{root}/a/train-{{000000..000001}}.tar\r\n{root}/a/test-*.tar\r\n"
    )
    for patterns in (
        [f"{root}/a"],
        [f"{root}/a/"],
        [f"{root}/a/*.tar"],
        [f"{root}/a/train-{{000000..000001}}.tar", f"{root}/a/test-000000.tar"],
        [f"{root}/a/{{train,test}}-*.tar"],
        [f"@{tmp_path}/list.txt"],
    ):
        found = [f"{s.split}-{s.name}" for s in find_shards(patterns, allow={"s3"})]
        assert found == ["train-000000", "train-000001", "test-000000"], patterns
    (shard,) = find_shards([f"val={root}/b/*.tar"], allow={"s3"})
    assert (shard.split, shard.name) == ("val", "other")


def test_a_shard_that_is_replaced_between_two_looks_is_seen_at_once(bucket: Bucket) -> None:
    """No listing is remembered."""
    patterns = [f"s3://{bucket.name}/*.tar"]
    bucket.put("train-0.tar", TAR)
    (first,) = find_shards(patterns, allow={"s3"})
    bucket.put("train-0.tar", TAR[:1024] + TAR[1024:][::-1])
    (second,) = find_shards(patterns, allow={"s3"})
    assert first.etag != second.etag
    with pytest.raises(ShardError, match="changed while it was read"):
        list(read_samples(first))


def test_every_missing_or_foreign_object_is_listed_at_once(bucket: Bucket) -> None:
    root = f"s3://{bucket.name}"
    bucket.put("train-0.tar", TAR)
    bucket.put("train-1.tar", b"")
    bucket.put("train-2.tar", b"<!DOCTYPE html>" * 100)
    bucket.put("train-4.tar.gz", b"\x1f\x8b")
    with pytest.raises(ShardError) as caught:
        find_shards(
            [
                *(f"{root}/train-{{0..3}}.tar", f"{root}/none-*.tar", f"{root}/train-4.tar.gz"),
                "s3://no-such-bucket/train-0.tar",
            ],
            allow={"s3"},
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 of 7 shards:"
    for name, words in (
        ("train-1.tar", "empty file"),
        ("train-2.tar", "not a tar; it begins"),
        ("train-3.tar", "No such object"),
        ("none-*.tar", "No such object"),
        ("train-4.tar.gz", "unpack"),
        ("no-such-bucket/train-0.tar", "No such object"),
    ):
        assert any(name in line and words in line for line in lines), (name, lines)


def test_an_empty_folder_of_a_bucket_is_named(bucket: Bucket) -> None:
    with pytest.raises(ShardError, match=f"s3://{bucket.name}/empty: No such object"):
        find_shards([f"s3://{bucket.name}/empty"], allow={"s3"})


def test_stage_two_is_told_to_copy_the_shards_near(bucket: Bucket) -> None:
    bucket.put("train-0.tar", TAR)
    (shard,) = find_shards([f"s3://{bucket.name}/train-0.tar"], allow={"s3"})
    with pytest.raises(ShardError, match="copy the shards near"):
        _ = shard.path


def test_a_missing_package_is_named() -> None:
    code = """
import sys
import tracemalloc

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("s3fs", "gcsfs"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from pipeline.errors import ShardError
from pipeline.shards import find_shards

for store in ("s3", "gs"):
    try:
        find_shards([f"{store}://bucket/train-0.tar"], allow={store})
    except ShardError as error:
        print(error)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    s3, gs = done.stdout.splitlines()
    assert "install s3fs: pip install 'beamclip[s3]'" in s3
    assert "install gcsfs: pip install 'gcsfs'" in gs


def test_a_file_of_a_folder_lies_beside(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("a/classes.txt", b"cat\n")
    beside = storage.beside(f"s3://{bucket.name}/a/train-0.tar", "classes.txt")
    assert storage.read_if_there(beside) == b"cat\n"
    other = storage.beside(f"s3://{bucket.name}/b/train-0.tar", "classes.txt")
    assert storage.read_if_there(other) is None
    (tmp_path / "classes.txt").write_bytes(b"dog\n")
    local = storage.beside(str(tmp_path / "train-0.tar"), "classes.txt")
    assert storage.read_if_there(local) == b"dog\n"
    assert storage.read_if_there(storage.beside("train-0.tar", "no-such.txt")) is None


def test_a_shard_that_grew_while_it_was_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "train-0.tar"
    path.write_bytes(TAR)
    samples = read_samples(shard_at(path))
    next(samples)
    with open(path, "ab") as file:
        file.write(bytes(1024))
    with pytest.raises(ShardError, match="changed while it was read"):
        list(samples)


def test_an_object_is_read_ahead_in_bounded_memory(bucket: Bucket) -> None:
    size = 96 << 20
    bucket.put("train-0.tar", bytes(size))
    location, found = f"s3://{bucket.name}/train-0.tar", 0
    storage.status(location)  # loads what is loaded once
    tracemalloc.start()
    try:
        with storage.opened(location) as file:
            while piece := file.read(1 << 20):
                found += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == size
    assert peak < size / 3
