"""Shards in an object store: the same cache as from files, or an error that names the object."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.reader import read_manifest
from tests.buckets import Bucket
from tests.faults.commands import beamclip, teacher_cache
from tests.faults.law import check_law
from tests.tars import tar_bytes


def test_shards_in_a_bucket_give_the_cache_that_files_give(
    tmp_path: Path, bucket: Bucket, shards_dir: Path, recipe_file: Path, sealed_cache: Path
) -> None:
    bucket.put_folder(shards_dir, "shapes")
    cache, url = tmp_path / "cache", f"s3://{bucket.name}/shapes"

    refused = teacher_cache(cache, url, recipe_file)
    assert refused.returncode == 1
    assert "--allow s3" in refused.stderr
    assert not cache.exists()

    train = f"{url}/train-{{000000..000001}}.tar"
    done = teacher_cache(cache, train, recipe_file, "--shards", f"{url}/test-*.tar", *ALLOW)
    assert done.returncode == 0, done.stderr
    law = check_law(cache, exit_code=0, tars=shards_dir.glob("*.tar"))
    assert law.arrays == check_law(sealed_cache).arrays
    for split in read_manifest(cache)["splits"].values():
        for shard in split["shards"]:
            assert set(shard) == {"name", "bytes", "etag"}

    again = teacher_cache(cache, url, recipe_file, "--json", *ALLOW)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["made"] == 0
    # Copied near, they are the same shards: their time says nothing, their sha256 does.
    local = teacher_cache(cache, shards_dir, recipe_file, "--json")
    assert local.returncode == 0, local.stderr
    assert json.loads(local.stdout)["made"] == 0

    replaced = bytearray((shards_dir / "train-000001.tar").read_bytes())
    replaced[700] ^= 1
    bucket.put("shapes/train-000001.tar", bytes(replaced))
    changed = teacher_cache(cache, url, recipe_file, *ALLOW)
    assert changed.returncode == 1
    assert "splits.train.shards.000001.sha256: cache has " in changed.stderr
    assert check_law(cache, exit_code=changed.returncode).arrays == law.arrays

    bucket.delete("shapes/train-000001.tar")
    missing = teacher_cache(cache, train, recipe_file, *ALLOW)
    assert missing.returncode == 1
    assert f"{url}/train-000001.tar: No such object" in missing.stderr
    assert check_law(cache, exit_code=missing.returncode).arrays == law.arrays


ALLOW = ("--allow", "s3")


def test_stage_two_is_told_to_copy_the_shards_near(
    tmp_path: Path, bucket: Bucket, shards_dir: Path, recipe_file: Path, sealed_cache: Path
) -> None:
    bucket.put_folder(shards_dir, "a")
    shared = ("--cache", sealed_cache, "--shards", f"s3://{bucket.name}/a", "--run", tmp_path / "r")
    done = beamclip("train-student", "--recipe", recipe_file, *shared)
    assert done.returncode == 1
    assert "copy the shards near and give their paths" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_dask_workers_read_from_a_bucket(
    tmp_path: Path, bucket: Bucket, shards_dir: Path, recipe_file: Path, sealed_cache: Path
) -> None:
    bucket.put_folder(shards_dir, "a")
    command = [Path(sys.executable).with_name("beamclip"), "teacher-cache", "--workers", "2"]
    command += ["--cache", tmp_path / "cache", "--shards", f"s3://{bucket.name}/a", *ALLOW]
    command += ["--recipe", recipe_file, "--device", "cpu"]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert check_law(tmp_path / "cache", exit_code=0).arrays == check_law(sealed_cache).arrays


def test_classes_in_another_order_are_refused_in_a_bucket_too(
    tmp_path: Path, bucket: Bucket, shards_dir: Path, recipe_file: Path
) -> None:
    bucket.put_folder(shards_dir, "a")
    bucket.put("a/classes.txt", b"blue square\ngreen square\nred square\n")
    done = teacher_cache(tmp_path / "cache", f"s3://{bucket.name}/a", recipe_file, *ALLOW)
    assert done.returncode == 1
    assert f"s3://{bucket.name}/a/classes.txt have the same classes in another order" in done.stderr
    assert check_law(tmp_path / "cache", exit_code=1).published == set()


@contextmanager
def web_server(folder: Path, faults: dict[str, str]) -> Iterator[str]:
    """Serve a folder; `faults` by file name spoils what is sent of all but the beginning."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = folder / self.path.strip("/").partition("?")[0]
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            first, _, last = asked.partition("-")
            part = content[int(first or 0) : int(last) + 1 if last else None]
            fault = faults.get(path.name) if with_body and len(part) > 512 else None
            if fault == "500":
                self.send_error(500)
                return
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{len(content)}"')
            if asked:
                end = int(first) + len(part) - 1
                self.send_header("Content-Range", f"bytes {first}-{end}/{len(content)}")
            self.end_headers()
            if with_body:
                self.wfile.write(part[: len(part) // 2] if fault == "cut" else part)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_a_server_that_fails_while_it_is_read_costs_that_unit_alone(
    tmp_path: Path, shards_dir: Path, recipe_file: Path, sealed_cache: Path, fault: str
) -> None:
    cache, faults = tmp_path / "cache", {"train-000001.tar": fault}
    with web_server(shards_dir, faults) as address:
        names = "{train-000000,train-000001,test-000000}.tar?signature=secret"
        arguments = (cache, f"{address}/{names}", recipe_file, "--allow", "http")
        done = teacher_cache(*arguments)
        assert done.returncode == 3, done.stderr
        assert f"{address}/train-000001.tar: reading stopped" in done.stderr
        assert "secret" not in done.stderr
        law = check_law(cache, exit_code=done.returncode)
        assert law.missing == {"train-000001.eval.v0-0", "train-000001.mild.v0-1"}
        faults.clear()
        again = teacher_cache(*arguments)
        assert again.returncode == 0, again.stderr
    assert check_law(cache, exit_code=0).arrays == check_law(sealed_cache).arrays


def test_a_page_in_place_of_a_shard_is_told_before_any_model_is_loaded(
    tmp_path: Path, recipe_file: Path
) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "train-0.tar").write_bytes(b"<html>log in first</html>" * 100)
    (tmp_path / "web" / "train-1.tar").write_bytes(tar_bytes([("a.jpg", b"x")]))
    with web_server(tmp_path / "web", {}) as address:
        done = teacher_cache(
            *(tmp_path / "cache", f"{address}/train-{{0..2}}.tar", recipe_file, "--allow", "http"),
            *("--set", "teacher.model=local-dir:/nowhere"),
        )
    assert done.returncode == 1
    assert "2 of 3 shards" in done.stderr
    assert "train-0.tar: not a tar; it begins b'<html>" in done.stderr
    assert "train-2.tar: No such object" in done.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_store_that_is_gone_is_an_error_in_bounded_time(
    tmp_path: Path, bucket: Bucket, recipe_file: Path
) -> None:
    gone = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}  # discard: nobody listens there
    url = f"s3://{bucket.name}/train-0.tar"
    done = teacher_cache(tmp_path / "cache", url, recipe_file, *ALLOW, environment=gone)
    assert done.returncode == 1
    assert f"{url}: EndpointConnectionError" in done.stderr
    assert "Traceback" not in done.stderr
