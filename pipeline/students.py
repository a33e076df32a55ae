"""Students: a small backbone and a linear projection to the teacher's space.

Shape letters: B batch, S side in pixels, F feature dimension, D teacher dimension.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones import adopt, check_tag, config_of, timm_model, timm_weights
from pipeline.checkpoints import file_sha256, find_weights, read_tensors, tensors_sha256
from pipeline.contracts import StudentOutputs
from pipeline.errors import StudentError
from pipeline.options import nearest, options
from pipeline.shared.contract import SharedOptions
from pipeline.shared.images import cut_tensors
from pipeline.shared.student import SharedStudent, build_shared
from pipeline.stems import shrink_stem

Stem = Literal["imagenet", "small"]
SCRATCH, TIMM = "scratch", "timm"
SHARED = "shared"  # the model of images and texts


@options
class StudentOptions:
    """Which student, how large it sees, and what its backbone starts from.

    The document starts ResNet-50 from SimCLR's or SwAV's weights, ResNet-18 from random ones.
    """

    # An entry of STUDENTS, any timm name (with init: timm also name.tag), or shared, the second
    # document's model of images and texts.
    model: str = "rn18"
    input_px: int | None = None  # side of its input; by default the teacher's
    stem: Stem = "imagenet"  # small: stride 1 and no max-pool, for images of tens of pixels
    # Random weights; timm: pretrained ones; else a file or folder of weights. Of model shared the
    # image encoder's, or those of a whole run of it, to be tuned further.
    init: str = SCRATCH
    shared: SharedOptions = SharedOptions()  # of model shared alone

    def __post_init__(self) -> None:
        if not self.init:
            raise ValueError("init is scratch, timm, or the path of weights, not empty")
        if self.input_px is not None and self.input_px < 1:
            raise ValueError(f"input_px is at least 1, not {self.input_px}")


class Student(nn.Module):
    """A backbone that gives F features, and a linear map to the teacher's D dimensions."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        dim: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.backbone, self.num_features = backbone, num_features
        self.memory_format = torch.contiguous_format  # of the pixels that the backbone gets
        self.started_from: dict[str, Any] | None = None  # its first weights, if given: init_student
        # Without a bias, as open_clip's own projections of timm towers are.
        self.projection = nn.Linear(num_features, dim, bias=False)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None] * 255, persistent=False)

    def features(self, views_B3SS: Tensor) -> Tensor:
        """Return float32 [B,F] features of uint8 views, as the backbone gives them."""
        pixels_B3SS = (views_B3SS - self.mean) / self.std
        pixels_B3SS = pixels_B3SS.contiguous(memory_format=self.memory_format)
        features_BF: Tensor = self.backbone(pixels_B3SS).float()
        return features_BF

    def forward(self, views_B3SS: Tensor) -> StudentOutputs:
        """Embed uint8 [B,3,S,S] views."""
        features_BF = self.features(views_B3SS)
        embedding_BD = F.normalize(self.projection(features_BF).float(), dim=-1)
        return StudentOutputs(features_BF=features_BF, embedding_BD=embedding_BD)


AnyStudent = Student | SharedStudent


def reads_texts(spec: StudentOptions) -> bool:
    """Tell whether a student has a text encoder."""
    return spec.model == SHARED


def build_student(
    spec: StudentOptions, *, dim: int, input_px: int, seed: int, text_folder: Path | None = None
) -> AnyStudent:
    """Build a student with weights drawn from `seed`, whatever its init is; raises StudentError.

    dim: the teacher's dimension D. input_px: side of the views that it will see. text_folder: what
    a run keeps of the text encoder of a model of images and texts, in place of its name.
    """
    if reads_texts(spec):
        name, _, tag = spec.shared.image.partition(".")
        if tag and spec.init == SCRATCH:
            raise StudentError(
                f"image encoder {spec.shared.image!r} names pretrained weights ({tag}), but "
                f"student.init is {SCRATCH}: say {name!r}, or student.init={TIMM}"
            )
        return build_shared(spec.shared, input_px=input_px, seed=seed, text_folder=text_folder)
    return build_image_student(spec, dim=dim, input_px=input_px, seed=seed)


def build_image_student(spec: StudentOptions, *, dim: int, input_px: int, seed: int) -> Student:
    """Build a student that sees images alone; see `build_student`."""
    import timm

    name, _, tag = spec.model.partition(".")
    if tag and spec.init != TIMM:
        raise StudentError(
            f"student {spec.model!r} names pretrained weights ({tag}), but student.init is "
            f"{spec.init}: say {name!r}, or student.init={TIMM}"
        )
    build = STUDENTS.get(name)
    if build is None:
        if not timm.is_model(name):
            names = [*STUDENTS, SHARED, *timm.list_models()]
            close = nearest(name, names)
            hint = close if "did you mean" in close else "see timm.list_models()"
            raise StudentError(f"no student {name!r}, nor a timm model of that name: {hint}")
        build = partial(_timm_student, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(dim, input_px, spec.stem, tag)


def init_student(
    student: AnyStudent, spec: StudentOptions, *, input_px: int
) -> dict[str, Any] | None:
    """Put the weights that `spec.init` names into the backbone; raises StudentError.

    The rest stays as it was drawn. Returns what the weights are (source, sha256, how many tensors
    were used, are missing, are left over), or None for a start from scratch; the student keeps it
    as `started_from`. A download that cannot be had is an error; random weights never take its
    place. A text encoder has its own weights from the start, which are told of too.
    """
    found: dict[str, Any] = {}
    if spec.init == TIMM:
        name, tensors = timm_weights(student.backbone, input_px)
        found = {"source": f"timm {name}", "sha256": tensors_sha256(tensors)}
        found |= _start(student, spec, tensors, f"timm's {name}")
    elif spec.init != SCRATCH:
        path = find_weights(Path(spec.init), said="scratch, timm, ")
        found = {"source": str(path.resolve()), "sha256": file_sha256(path)}
        found |= _start(student, spec, read_tensors(path), str(path))
    if isinstance(student, SharedStudent) and student.text.started_from is not None:
        found["text"] = student.text.started_from
    student.started_from = found or None
    return student.started_from


def _start(
    student: AnyStudent, spec: StudentOptions, tensors: Mapping[str, Tensor], where: str
) -> dict[str, Any]:
    if not isinstance(student, SharedStudent):
        return adopt(student.backbone, tensors, where)
    if student.state_dict().keys() <= tensors.keys():  # a run's, whole
        load_weights(student, tensors, where=where)
        return {"prefix": "", "used": len(tensors), "missing": 0, "left_over": 0}
    return adopt(student.backbone, cut_tensors(tensors, spec.shared.image_layers), where)


def load_weights(student: AnyStudent, weights: Mapping[str, Tensor], *, where: object) -> None:
    """Put saved weights into a student; raises StudentError if they are of another one."""
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:  # lists every name and shape that does not fit
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3])[:300]
        raise StudentError(
            f"the weights in {where} are not this student's ({reason}): name another --run"
        ) from None


def _timm_student(name: str, dim: int, input_px: int, stem: Stem, tag: str) -> Student:
    if tag:
        check_tag(name, tag)
        name = f"{name}.{tag}"
    try:
        backbone = timm_model(name, input_px, num_classes=0)
        if stem == "small":
            shrink_stem(backbone, name)
        num_features = _count_features(backbone, input_px)
    except StudentError:
        raise
    except Exception as error:  # an architecture refuses a size in its own way
        raise StudentError(
            f"student {name} does not work at {input_px} px ({type(error).__name__}: {error}): "
            "choose another student.input_px or another model"
        ) from None
    config = config_of(backbone)
    return Student(backbone, num_features, dim, config["mean"], config["std"])


def _count_features(backbone: nn.Module, input_px: int) -> int:
    """Return F by asking: architectures name their last dimension differently."""
    with torch.inference_mode():
        features = backbone.eval()(torch.zeros(1, 3, input_px, input_px))
    backbone.train()
    if features.ndim != 2:
        raise ValueError(f"expected features [B,F], found shape {tuple(features.shape)}")
    return int(features.shape[1])


# Short names; any other timm name works as it is.
STUDENTS: dict[str, Callable[[int, int, Stem, str], Student]] = {
    "rn18": partial(_timm_student, "resnet18"),
    "rn50": partial(_timm_student, "resnet50"),
    "mnv3": partial(_timm_student, "mobilenetv3_large_100"),
    "effb0": partial(_timm_student, "efficientnet_b0"),
    "vitti": partial(_timm_student, "vit_tiny_patch16_224"),
}
