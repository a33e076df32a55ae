"""The contract of a teacher, and the options that name one.

Shape letters: B batch, A texts, D teacher dimension, S side in pixels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.options import options

if TYPE_CHECKING:
    from torch import Tensor

LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
OPEN_CLIP, TIMM = "open_clip", "timm"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Of a timm model: the class token before and after the last norm, what a classifier is given, what
# the model's own classifier says.
FeaturePoint = Literal["cls_pre_norm", "cls_post_norm", "pooled", "logits"]


@options
class TeacherOptions:
    """Which teacher, and in which batches: all that decides its numbers.

    On a CPU, vectors depend on the batch shape and the number of threads in their last bits, so
    both belong to a recipe.
    """

    model: str  # an open_clip name, "local-dir:FOLDER" or "hf-hub:OWNER/NAME"; of kind timm: a name
    pretrained: str | None = None  # an open_clip tag, for a name; of kind timm: a tag or a path
    kind: Literal["open_clip", "timm"] = "open_clip"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: int = 64
    threads: int = 1
    # Of kind timm alone, which sees images and reads no text:
    feature_point: FeaturePoint = "pooled"
    # Of logits the k greatest alone, less a number that leaves the least of them 1, and 0 for the
    # other classes, which take no disk: `kd_kl` with a top_k of no more sees no difference.
    top_k: int | None = None
    input_px: int | None = None  # side of its input; by default timm's own for the model
    stem: Literal["imagenet", "small"] = "imagenet"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.threads < 1:
            raise ValueError("batch_size and threads are at least 1")
        if self.input_px is not None and self.input_px < 1:
            raise ValueError(f"input_px is at least 1, not {self.input_px}")
        if self.top_k is not None and (self.top_k < 1 or self.feature_point != "logits"):
            raise ValueError("top_k is at least 1, and of feature_point logits alone")
        if self.kind == TIMM:
            if self.pretrained is None:
                raise ValueError(
                    f"{self.model} needs pretrained: a tag of timm's, or the path of weights; a "
                    "random teacher is never used"
                )
            return
        if self.pretrained is not None and self.model.startswith((LOCAL_DIR, HF_HUB)):
            raise ValueError(f"{self.model} brings its own weights: pretrained has no place")
        if (self.feature_point, self.input_px, self.stem) != ("pooled", None, "imagenet"):
            raise ValueError("feature_point, input_px and stem are of kind timm alone")

    @property
    def reads_text(self) -> bool:
        """Whether the teacher has a text tower, whose embeddings lie in the images' space."""
        return self.kind == OPEN_CLIP


@options
class Preprocess:
    """How pixels become a teacher's input. size is the side in pixels of its square input."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: Literal["shortest", "longest", "squash"]


class Teacher(Protocol):
    """What stage one asks of a teacher; of one that reads no text, max_tokens is 0."""

    preprocess: Preprocess
    dim: int
    logit_scale: float | None
    logit_bias: float | None
    max_tokens: int

    def encode_images(self, views_B3SS: "Tensor") -> "Tensor":
        """Return its vectors of uint8 [B,3,S,S] views of any layout: float32 [B,D], on its device.

        As the network gives them, not normalised. On a GPU it may return before they are computed.
        """

    def embed_images(self, views_B3SS: "Tensor") -> "Tensor":
        """Return the same vectors, normalised."""
        from torch.nn.functional import normalize

        return normalize(self.encode_images(views_B3SS), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Embed texts: float32 [A,D], normalised, on the CPU; TeacherError if it reads none."""

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, uncut, marks of start and end included."""

    def fingerprint(self) -> dict[str, Any]:
        """Return all that tells this teacher from another, as plain values."""
