"""Says how long training took, and what that cost."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Price:
    """What an hour costs, of all machines that train together: at least 0, in a currency."""

    per_hour: float
    currency: str = "USD"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.per_hour) and self.per_hour >= 0):
            raise ValueError(f"a price per hour is a number, at least 0, not {self.per_hour}")
        if not self.currency.strip():
            raise ValueError("the currency of a price is empty: expected a word, as USD")

    def of(self, hours: float) -> float:
        """Return what so many hours cost."""
        return hours * self.per_hour

    def words(self, hours: float) -> str:
        """Say what so many hours cost, to a hundredth, as in 1.41 USD at 0.74 USD an hour."""
        cost = self.of(hours)
        amount = "under 0.01" if 0 < cost < 0.01 else f"{cost:.2f}"
        return f"{amount} {self.currency} at {self.per_hour:g} {self.currency} an hour"


def price_of(origin: Mapping[str, Any]) -> Price | None:
    """Return the price that a run's run.json records, or None."""
    found = origin.get("price")
    return None if found is None else Price(float(found["per_hour"]), str(found["currency"]))


def training_hours(lines: Iterable[Mapping[str, Any]], batch_size: int) -> float | None:
    """Add up the epochs of metrics.jsonl: hours of training steps, or None where nothing says.

    Of a line without seconds, by an older release, from its steps, the samples of each (batch_size)
    and its images per second. Opening the data, held-out scoring and checkpoints are not in it, nor
    steps that were lost with a killed process; students of one stream each have the time of all.
    """
    seconds, before = 0.0, 0
    for line in (lines := list(lines)):
        found = _seconds(line, before, batch_size)
        if found is None:
            return None
        seconds, before = seconds + found, int(line["step"])
    return seconds / 3600 if lines else None


def span(hours: float) -> str:
    """Return hours as seconds, minutes or hours, whichever reads best."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def _seconds(line: Mapping[str, Any], before: int, batch_size: int) -> float | None:
    if "step" not in line:
        return None
    if "seconds" in line:
        return float(line["seconds"])
    rate = float(line.get("images_per_second") or 0)
    return (int(line["step"]) - before) * batch_size / rate if rate > 0 else None
