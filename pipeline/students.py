"""Students: a small backbone and a linear projection to the teacher's space.

Shape letters: B batch, S side in pixels, F feature dimension, D teacher dimension.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.contracts import StudentOutputs
from pipeline.errors import StudentError
from pipeline.options import nearest, options


@options
class StudentOptions:
    """Which student, and how large it sees."""

    model: str = "rn18"  # an entry of STUDENTS, or any timm name
    input_px: int | None = None  # side of its input; by default the teacher's

    def __post_init__(self) -> None:
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
        # Without a bias, as open_clip's own projections of timm towers are.
        self.projection = nn.Linear(num_features, dim, bias=False)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None] * 255, persistent=False)

    def forward(self, views_B3SS: Tensor) -> StudentOutputs:
        """Embed uint8 [B,3,S,S] views."""
        pixels_B3SS = (views_B3SS - self.mean) / self.std
        pixels_B3SS = pixels_B3SS.contiguous(memory_format=self.memory_format)
        features_BF = self.backbone(pixels_B3SS).float()
        embedding_BD = F.normalize(self.projection(features_BF).float(), dim=-1)
        return StudentOutputs(features_BF=features_BF, embedding_BD=embedding_BD)


def build_student(spec: StudentOptions, *, dim: int, input_px: int, seed: int) -> Student:
    """Build a student with weights drawn from `seed`; raises StudentError.

    dim: the teacher's dimension D. input_px: side of the views that it will see.
    """
    import timm

    if "." in spec.model:
        name, _, tag = spec.model.partition(".")
        raise StudentError(
            f"student {spec.model!r} names pretrained weights ({tag}); students start from random "
            f"ones: say {name!r}"
        )
    build = STUDENTS.get(spec.model)
    if build is None:
        if not timm.is_model(spec.model):
            names = [*STUDENTS, *timm.list_models()]
            close = nearest(spec.model, names)
            hint = close if "did you mean" in close else "see timm.list_models()"
            raise StudentError(f"no student {spec.model!r}, nor a timm model of that name: {hint}")
        build = partial(_timm_student, spec.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(dim, input_px)


def load_weights(student: Student, weights: Mapping[str, Tensor], *, where: object) -> None:
    """Put saved weights into a student; raises StudentError if they are of another one."""
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:  # lists every name and shape that does not fit
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3])[:300]
        raise StudentError(
            f"the weights in {where} are not this student's ({reason}): name another --run"
        ) from None


def _timm_student(name: str, dim: int, input_px: int) -> Student:
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    size: dict[str, Any] = {}
    if config is not None and config.fixed_input_size:
        size["img_size"] = input_px
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's notes on renamed models
            backbone = timm.create_model(name, pretrained=False, num_classes=0, **size)
        num_features = _count_features(backbone, input_px)
    except Exception as error:  # an architecture refuses a size in its own way
        raise StudentError(
            f"student {name} does not work at {input_px} px ({type(error).__name__}: {error}): "
            "choose another student.input_px or another model"
        ) from None
    mean, std = backbone.default_cfg["mean"], backbone.default_cfg["std"]
    return Student(backbone, num_features, dim, mean, std)


def _count_features(backbone: nn.Module, input_px: int) -> int:
    """Return F by asking: architectures name their last dimension differently."""
    with torch.inference_mode():
        features = backbone.eval()(torch.zeros(1, 3, input_px, input_px))
    backbone.train()
    if features.ndim != 2:
        raise ValueError(f"expected features [B,F], found shape {tuple(features.shape)}")
    return int(features.shape[1])


# Short names; any other timm name works as it is.
STUDENTS: dict[str, Callable[[int, int], Student]] = {
    "rn18": partial(_timm_student, "resnet18"),
    "rn50": partial(_timm_student, "resnet50"),
}
