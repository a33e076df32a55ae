"""The law holds of what stage one leaves, and finds what breaks it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import zarr

from tests.faults.law import check_law, count_samples

UNIT = "train-000001.mild.v0-1"


def test_a_sealed_cache_is_lawful(sealed_cache: Path, shards_dir: Path) -> None:
    law = check_law(sealed_cache, exit_code=0, tars=shards_dir.glob("*.tar"))
    assert law.whole
    assert law.seen == {"train-000000": 14, "train-000001": 10, "test-000000": 12}
    assert set(law.skipped.values()) == {0}
    assert len(law.arrays) == len(law.published) == 5
    assert count_samples(shards_dir / "train-000000.tar") == 14


def test_a_partial_cache_is_lawful_but_no_success(cache_copy: Path, sealed_cache: Path) -> None:
    shutil.rmtree(cache_copy / "units" / UNIT)
    shutil.rmtree(cache_copy / "index")
    law = check_law(cache_copy, exit_code=3)
    assert law.missing == {UNIT}
    assert not law.sealed
    assert law.arrays.items() < check_law(sealed_cache).arrays.items()
    with pytest.raises(AssertionError, match="exit code 0, but lost"):
        check_law(cache_copy, exit_code=0)


def test_what_holds_nothing_is_lawful(tmp_path: Path) -> None:
    assert check_law(tmp_path / "none", exit_code=1).published == set()


def test_a_seal_over_a_missing_unit_breaks_the_law(cache_copy: Path) -> None:
    shutil.rmtree(cache_copy / "units" / UNIT)
    with pytest.raises(AssertionError, match="sealed, but"):
        check_law(cache_copy)


def test_a_unit_nobody_planned_breaks_the_law(cache_copy: Path) -> None:
    (cache_copy / "units" / UNIT).rename(cache_copy / "units" / "train-000009.mild.v0-1")
    with pytest.raises(AssertionError, match="no manifest plans"):
        check_law(cache_copy)


def test_a_lost_chunk_breaks_the_law(cache_copy: Path) -> None:
    (cache_copy / "units" / UNIT / "targets" / "c" / "0" / "1" / "0").unlink()
    with pytest.raises(AssertionError, match="digests"):
        check_law(cache_copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seen", 11), ("embedded", 9), ("skipped", 1)],
)
def test_counts_that_do_not_add_up_break_the_law(cache_copy: Path, field: str, value: int) -> None:
    edit(
        cache_copy / "units" / UNIT, lambda attributes: attributes["counts"].update({field: value})
    )
    with pytest.raises(AssertionError, match="counts"):
        check_law(cache_copy)


def test_view_ranges_of_different_files_break_the_law(cache_copy: Path) -> None:
    edit(
        cache_copy / "units" / UNIT, lambda attributes: attributes["shard"].update(sha256="0" * 64)
    )
    with pytest.raises(AssertionError, match="shard"):
        check_law(cache_copy)


def edit(unit: Path, change: Any) -> None:
    file = unit / "zarr.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    change(metadata["attributes"])
    file.write_text(json.dumps(metadata), encoding="utf-8")
    assert zarr.open_group(unit, mode="r").attrs["unit"]
