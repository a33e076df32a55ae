"""Evaluations of frozen features: run(train, test, anchors, options) -> scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cache.reader import Anchors
from pipeline.contracts import Features
from pipeline.options import options
from pipeline.probes import linear, zeroshot
from pipeline.probes.linear import LinearOptions
from pipeline.probes.zeroshot import ZeroshotOptions


@dataclass(frozen=True)
class Probe:
    """One evaluation; `headline` is the score of it that tables show and chance is told for.

    learns: whether it looks at the train features.
    """

    run: Callable[[Features, Features, Anchors, Any], dict[str, float]]
    headline: str
    learns: bool = True


PROBES: Mapping[str, Probe] = {
    "linear": Probe(linear.run, "accuracy"),
    "zeroshot": Probe(zeroshot.run, "top1", learns=False),
}


@options
class ProbeOptions:
    """Which probes a recipe runs, and how."""

    run: tuple[str, ...] = tuple(PROBES)
    linear: LinearOptions = LinearOptions()
    zeroshot: ZeroshotOptions = ZeroshotOptions()

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError(f"run is empty; valid: {', '.join(PROBES)}")
        if unknown := set(self.run) - set(PROBES):
            raise ValueError(f"unknown probes {sorted(unknown)}; valid: {', '.join(PROBES)}")
