"""Costs follow from what the run recorded and what lies on disk."""

import dataclasses
from pathlib import Path

import pytest

from pipeline.audit.info import cache_info
from pipeline.price import Price
from pipeline.report.collect import RunFacts
from pipeline.report.cost import (
    cost_markdown,
    cost_of,
    fingerprint_of,
    folder_bytes,
    size,
    span,
)


def test_hours_are_images_over_images_per_second(facts: list[RunFacts]) -> None:
    lines = (
        {"step": 10, "images_per_second": 8.0, "data_wait_share": 0.1},
        {"step": 30, "images_per_second": 4.0, "data_wait_share": 0.3},
    )
    cost = cost_of(dataclasses.replace(facts[0], epochs=lines))  # batches of 8
    assert cost.hours == pytest.approx((10 * 8 / 8 + 20 * 8 / 4) / 3600)
    assert (cost.images_per_second, cost.data_wait_share) == (6.0, pytest.approx(0.2))
    assert cost.weights_bytes == (facts[0].path / "student.safetensors").stat().st_size


def test_hours_are_those_that_were_taken_where_they_are_known(facts: list[RunFacts]) -> None:
    for run in facts:
        taken = sum(line["seconds"] for line in run.epochs)
        assert cost_of(run).hours == taken / 3600 > 0


def test_money_is_hours_times_a_price_the_runs_own_or_another(facts: list[RunFacts]) -> None:
    run = dataclasses.replace(facts[0], epochs=({"step": 9, "seconds": 5400.0},))
    assert cost_of(run).money is None
    priced = dataclasses.replace(
        run, origin={**run.origin, "price": {"per_hour": 0.74, "currency": "USD"}}
    )
    assert cost_of(priced).money == "1.11 USD at 0.74 USD an hour"
    for either in (run, priced):
        assert cost_of(either, Price(2, "EUR")).money == "3.00 EUR at 2 EUR an hour"
    assert cost_of(dataclasses.replace(priced, epochs=())).money is None


def test_the_markdown_table_has_a_line_for_each_run(facts: list[RunFacts]) -> None:
    price = Price(0.74)
    costs = [(facts[0], cost_of(facts[0])), (facts[1], cost_of(facts[1], price))]
    *_, first, second = cost_markdown(costs).splitlines()
    assert first.startswith("| whole | test_resnet | 2 | ")
    assert first.endswith(" | \N{EN DASH} |")
    assert second.startswith("| odd &lt;script>")
    assert second.endswith(" USD at 0.74 USD an hour |")


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
