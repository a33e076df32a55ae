"""Evaluations of frozen features: run(subject, options) -> result."""

from collections.abc import Mapping

from pipeline.options import options
from pipeline.probes import agreement, fewshot, knn, linear, retrieval, zeroshot
from pipeline.probes.agreement import AgreementOptions
from pipeline.probes.choices import LinearOptions
from pipeline.probes.contract import Probe
from pipeline.probes.fewshot import FewshotOptions
from pipeline.probes.knn import KnnOptions
from pipeline.probes.retrieval import RetrievalOptions
from pipeline.probes.zeroshot import ZeroshotOptions

PROBES: Mapping[str, Probe] = {
    "linear": Probe(linear.run, "accuracy", frozenset({"train"})),
    "zeroshot": Probe(zeroshot.run, "top1", frozenset({"anchors"})),
    "knn": Probe(knn.run, "accuracy", frozenset({"train"})),
    "retrieval": Probe(
        retrieval.run,
        "class_p5",
        also=("image_to_text_r1", "text_to_image_r1"),
        one_of=frozenset({"anchors", "captions"}),
        by_chance=False,
    ),
    "agreement": Probe(
        agreement.run, "agreement", frozenset({"teacher", "anchors"}), by_chance=False
    ),
    "fewshot": Probe(fewshot.run, "accuracy", frozenset({"train"})),
}


@options
class ProbeOptions:
    """Which probes a recipe runs, and how."""

    run: tuple[str, ...] = ("linear", "zeroshot")
    linear: LinearOptions = LinearOptions()
    zeroshot: ZeroshotOptions = ZeroshotOptions()
    knn: KnnOptions = KnnOptions()
    retrieval: RetrievalOptions = RetrievalOptions()
    agreement: AgreementOptions = AgreementOptions()
    fewshot: FewshotOptions = FewshotOptions()

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError(f"run is empty; valid: {', '.join(PROBES)}")
        if unknown := set(self.run) - set(PROBES):
            raise ValueError(f"unknown probes {sorted(unknown)}; valid: {', '.join(PROBES)}")
