"""What training took and cost is told at its end, and kept in the run."""

import json
from pathlib import Path

import pytest

from pipeline.price import Price, price_of, training_hours
from pipeline.rundir import RunDir
from tests.conftest import Invoke
from tests.runs import MODEL


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (1.9, "1.41 USD at 0.74 USD an hour"),
        (0.001, "under 0.01 USD at 0.74 USD an hour"),
        (0, "0.00 USD at 0.74 USD an hour"),
    ],
)
def test_money_is_told_to_a_hundredth(hours: float, words: str) -> None:
    assert Price(0.74).words(hours) == words


@pytest.mark.parametrize("per_hour", [-0.1, float("nan"), float("inf")])
def test_a_price_is_a_number_of_a_currency(per_hour: float) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Price(per_hour)
    with pytest.raises(ValueError, match="currency"):
        Price(1, " ")


def test_lines_of_an_older_release_are_reckoned_beside_those_with_seconds() -> None:
    old = {"step": 10, "images_per_second": 20.0}
    new = {"step": 20, "images_per_second": 1.0, "seconds": 7.0}
    assert training_hours([old, new], 8) == pytest.approx((10 * 8 / 20 + 7) / 3600)
    assert training_hours([], 8) is None
    assert training_hours([{"step": 10}, new], 8) is None


def test_the_price_of_a_run_is_recorded_told_and_may_change(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path, beamclip: Invoke
) -> None:
    """Nor does another price, or none, keep a run from being taken up again."""
    run = RunDir(tmp_path / "run")
    asked = (
        *("train-student", "--cache", sealed_cache, "--shards", shards_dir, "--model", MODEL),
        *("--recipe", recipe_file, "--run", run.path, "--resume"),
    )
    done = beamclip(*asked, "--price-per-hour", 3600, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    seconds = sum(line["seconds"] for line in run.read_metrics())
    assert found["hours"] == pytest.approx(seconds / 3600)
    assert found["cost"] == pytest.approx(seconds)
    before = run.read_origin()
    assert found["price"] == before["price"] == {"per_hour": 3600, "currency": "USD"}

    assert beamclip(*asked).out.rstrip().endswith(" USD at 3600 USD an hour")
    assert run.read_origin() == before
    again = beamclip(*asked, "--price-per-hour", 0, "--currency", "EUR")
    assert again.out.rstrip().endswith(" s, 0.00 EUR at 0 EUR an hour")
    after = run.read_origin()
    assert price_of(after) == Price(0, "EUR")
    assert {**after, "price": before["price"]} == before


def test_without_a_price_hours_alone_are_told(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path, beamclip: Invoke
) -> None:
    asked = (
        *("train-student", "--cache", sealed_cache, "--shards", shards_dir, "--model", MODEL),
        *("--recipe", recipe_file, "--set", "training.epochs=1", "--run", tmp_path / "run"),
    )
    assert beamclip(*asked, "--currency", "EUR").code == 2
    assert beamclip(*asked, "--price-per-hour", -1).code == 2
    assert not (tmp_path / "run").exists()
    done = beamclip(*asked, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["hours"] > 0
    assert not {"price", "cost"} & found.keys()
    assert "price" not in RunDir(tmp_path / "run").read_origin()
