"""Where jobs may run: addresses that are trusted, options that contradict each other."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import HERE, Place, connected, is_loopback, memory_bytes, scheduler_address
from pipeline.errors import ClusterError


def test_work_is_done_here_unless_a_place_is_named() -> None:
    assert HERE.is_here
    assert not Place(workers=1).is_here
    assert Place(scheduler="tcp://127.0.0.1:1").is_running_cluster
    assert Place(scheduler_file=Path("s.json")).is_running_cluster


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"scheduler": "a:1", "workers": 2}, "leave --workers out"),
        ({"scheduler": "a:1", "scheduler_file": Path("s.json")}, "give one"),
        ({"memory_limit": "1GiB"}, "of the processes of --workers"),
        ({"memory_limit": "1GiB", "scheduler": "a:1"}, "dask worker --memory-limit"),
        ({"insecure": True, "workers": 2}, "--insecure is about --scheduler"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        Place(**options)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:8786",
        "tcp://127.8.9.1:8786",
        "tcp://[::1]:8786",
        "tcp://localhost:8786",
        "tls://192.0.2.1:8786",
        "wss://scheduler.invalid:8786",
    ],
)
def test_loopback_and_encrypted_addresses_are_used_as_they_are(address: str) -> None:
    assert scheduler_address(Place(scheduler=address)) == address


def test_an_address_without_a_scheme_is_tcp() -> None:
    assert scheduler_address(Place(scheduler="127.0.0.1:8786")) == "tcp://127.0.0.1:8786"


@pytest.mark.parametrize(
    "address",
    ["192.0.2.1:8786", "tcp://192.0.2.1:8786", "ws://192.0.2.1:1", "tcp://nowhere.invalid:8786"],
)
def test_a_plain_remote_address_is_refused_with_the_reason_unless_insecure(address: str) -> None:
    with pytest.raises(ClusterError, match="Whoever reaches a scheduler runs code"):
        scheduler_address(Place(scheduler=address))
    assert scheduler_address(Place(scheduler=address, insecure=True)).endswith(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "tcp://:8786", "inproc://1/2", "tcp://a:b"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="HOST:PORT"):
        scheduler_address(Place(scheduler=address, insecure=True))


def test_a_host_is_loopback_only_if_all_its_addresses_are() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.0.2.1")
    assert not is_loopback("nowhere.invalid")


def test_a_scheduler_file_is_read_and_its_address_judged_the_same(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    place = Place(scheduler_file=file)
    with pytest.raises(ClusterError, match=r"scheduler\.json: No such file"):
        scheduler_address(place)
    file.write_text("{}")
    with pytest.raises(ClusterError, match="holds no address"):
        scheduler_address(place)
    file.write_text(json.dumps({"address": "tcp://192.0.2.1:8786"}))
    with pytest.raises(ClusterError, match="neither encrypted nor on this machine"):
        scheduler_address(place)
    file.write_text(json.dumps({"address": "tcp://127.0.0.1:8786"}))
    assert scheduler_address(place) == "tcp://127.0.0.1:8786"


def test_memory_is_told_in_sizes() -> None:
    assert memory_bytes(None) == 0
    assert memory_bytes("8GiB") == 8 * 2**30
    assert memory_bytes("500MB") == 500_000_000
    for wrong in ("much", "0", "8", "-1GB", ""):
        with pytest.raises(ClusterError, match="expected a size, such as 8GiB"):
            memory_bytes(wrong)


def test_a_local_cluster_leaves_this_process_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nannies set the number of threads for their workers in the process that starts them."""
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with connected(Place(workers=1), most=1, threads=2) as client:
        assert client.submit(os.environ.get, "MKL_NUM_THREADS").result() == "2"
    assert dict(os.environ) == before
