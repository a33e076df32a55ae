"""Evaluations of frozen features: run(subject, options) -> result."""

from collections.abc import Mapping

from pipeline.options import options
from pipeline.probes import fewshot, linear, zeroshot
from pipeline.probes.choices import LinearOptions
from pipeline.probes.contract import Probe
from pipeline.probes.fewshot import FewshotOptions
from pipeline.probes.zeroshot import ZeroshotOptions

PROBES: Mapping[str, Probe] = {
    "linear": Probe(linear.run, "accuracy", frozenset({"train"})),
    "zeroshot": Probe(zeroshot.run, "top1", frozenset({"anchors"})),
    "fewshot": Probe(fewshot.run, "accuracy", frozenset({"train"})),
}


@options
class ProbeOptions:
    """Which probes a recipe runs, and how."""

    run: tuple[str, ...] = ("linear", "zeroshot")
    linear: LinearOptions = LinearOptions()
    zeroshot: ZeroshotOptions = ZeroshotOptions()
    fewshot: FewshotOptions = FewshotOptions()

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError(f"run is empty; valid: {', '.join(PROBES)}")
        if unknown := set(self.run) - set(PROBES):
            raise ValueError(f"unknown probes {sorted(unknown)}; valid: {', '.join(PROBES)}")
