"""What the linear probe's options may say; apart from what they govern, which loads torch."""

from typing import Literal

from pipeline.options import options

Part = Literal["backbone", "embedding"]
Normalise = Literal["l2", "standardise", "none"]
Precision = Literal["mixed", "float64", "float32"]
Device = Literal["auto", "cpu", "cuda"]


@options
class LinearOptions:
    """The document's probe (BeamCLIP, section 4.1): L-BFGS, C = 30.

    C: C * sum(loss) + |W|^2 / 2 is minimised, biases free, as by scikit-learn; so C goes with
    1 / norm^2 of the features: 30 on features of norm 1 is CLIP's 0.316 on features of norm 10.
    "search" chooses it by the val split, or by a tenth of train where there is none.
    features: what is scored; "both" gives the embedding's accuracy beside the backbone's.
    normalise: rows to length 1; or features to the mean 0 and deviation 1 of the train rows.
    precision: "mixed" does in float32 what float32 can, and the rest in float64.
    """

    C: float | Literal["search"] = 30.0
    features: Literal["both", "backbone", "embedding"] = "both"
    max_iter: int = 1000
    normalise: Normalise = "l2"
    precision: Precision = "mixed"
    device: Device = "auto"

    def __post_init__(self) -> None:
        if self.C != "search" and self.C <= 0:
            raise ValueError(f"C is above 0, not {self.C}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter is at least 1, not {self.max_iter}")
