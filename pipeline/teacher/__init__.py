"""Frozen teachers: loads them exactly as named; embeds images, and texts where they read any."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.teacher.clip import OpenClipTeacher, check_open_clip, load_open_clip
from pipeline.teacher.contract import (
    HF_HUB,
    LOCAL_DIR,
    OPEN_CLIP,
    TIMM,
    Preprocess,
    Teacher,
    TeacherOptions,
)
from pipeline.teacher.vision import check_timm, load_timm

if TYPE_CHECKING:
    import torch

__all__ = [
    "HF_HUB",
    "LOCAL_DIR",
    "TEACHERS",
    "OpenClipTeacher",
    "Preprocess",
    "Teacher",
    "TeacherOptions",
    "check_teacher",
    "load_teacher",
]

TEACHERS: dict[str, Callable[[TeacherOptions, "torch.device"], Teacher]] = {
    OPEN_CLIP: load_open_clip,
    TIMM: load_timm,
}
_CHECKS: dict[str, Callable[[TeacherOptions], None]] = {
    OPEN_CLIP: check_open_clip,
    TIMM: check_timm,
}


def load_teacher(spec: TeacherOptions, device: "torch.device") -> Teacher:
    """Load the teacher that `spec` names; raises TeacherError."""
    return TEACHERS[spec.kind](spec, device)


def check_teacher(spec: TeacherOptions) -> None:
    """Raise TeacherError for what can be told in a moment, before anything heavy is imported."""
    _CHECKS[spec.kind](spec)
