"""Costs follow from what the run recorded and what lies on disk."""

import dataclasses
from pathlib import Path

import pytest

from pipeline.audit.info import cache_info
from pipeline.report.collect import RunFacts
from pipeline.report.cost import cost_of, fingerprint_of, folder_bytes, size, span


def test_hours_are_images_over_images_per_second(facts: list[RunFacts]) -> None:
    lines = (
        {"step": 10, "images_per_second": 8.0, "data_wait_share": 0.1},
        {"step": 30, "images_per_second": 4.0, "data_wait_share": 0.3},
    )
    cost = cost_of(dataclasses.replace(facts[0], epochs=lines))  # batches of 8
    assert cost.hours == pytest.approx((10 * 8 / 8 + 20 * 8 / 4) / 3600)
    assert (cost.images_per_second, cost.data_wait_share) == (6.0, pytest.approx(0.2))
    assert cost.weights_bytes == (facts[0].path / "student.safetensors").stat().st_size


def test_bytes_of_a_cache_are_those_of_its_files(facts: list[RunFacts], sealed_cache: Path) -> None:
    files = sum(path.stat().st_size for path in sealed_cache.rglob("*") if path.is_file())
    assert cost_of(facts[0]).cache_bytes == files
    assert files > cache_info(sealed_cache).bytes["all"]
    assert folder_bytes(Path("/nowhere")) is None


def test_the_fingerprint_is_the_caches_or_none(facts: list[RunFacts]) -> None:
    assert len(fingerprint_of(facts[0]) or "") >= 16
    gone = dataclasses.replace(facts[0], origin={**facts[0].origin, "cache_path": "/nowhere"})
    assert fingerprint_of(gone) is None


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_900, "1000 kB")]
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("hours", "text"), [(2.5, "2.5 h"), (0.5, "30.0 min"), (0.01, "36 s"), (None, "\N{EN DASH}")]
)
def test_spans_read_well(hours: float | None, text: str) -> None:
    assert span(hours) == text
