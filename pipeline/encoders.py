"""Opens any frozen image encoder by a name, with its own preprocessing, to be probed.

Shape letters: B batch, S side of a view in pixels, F feature dimension, D embedding dimension.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.cache.reader import Anchors
from pipeline.decode import DecodePolicy
from pipeline.errors import ProbeError, StudentError, TeacherError
from pipeline.features import Encode, student_identity
from pipeline.labelled import EvalView
from pipeline.own_texts import OwnTexts
from pipeline.prompts import PromptSet
from pipeline.reading import kept_text
from pipeline.recipe import recipe_from
from pipeline.recipe_cache import known_teacher
from pipeline.rundir import WEIGHTS, RunDir
from pipeline.schedule import EvalSchedule
from pipeline.shared.reader import text_reader
from pipeline.shared.student import SharedStudent
from pipeline.stage_two import rebuild_student
from pipeline.students import (
    STUDENTS,
    TIMM,
    Stem,
    StudentOptions,
    build_image_student,
    init_student,
    load_weights,
)
from pipeline.teacher import HF_HUB, LOCAL_DIR, OpenClipTeacher, TeacherOptions, load_teacher
from pipeline.teacher.folder import CONFIG
from pipeline.texts import embed_anchors

OPEN_CLIP, TIMM_NAME = "open_clip:", "timm:"
_ALIAS_PX = 224  # what the architectures behind STUDENTS were made for
ReadPrompts = Callable[[PromptSet], Anchors]


@dataclass(frozen=True)
class Encoder:
    """A frozen image encoder.

    view: its own preprocessing. encode: uint8 views -> features before its projection (where it has
    none, what it gives), and its output, normalised. identity: plain values that tell its numbers
    from another's. space: the teacher (by `known_teacher`) in whose space its output lies. read:
    class prompts -> their anchors in the space of its output, by a text encoder of its own.
    """

    view: EvalView
    encode: Encode
    identity: Mapping[str, Any]
    space: Mapping[str, Any] | None = None
    read: ReadPrompts | None = None


@dataclass(frozen=True)
class PlainOptions:
    """What a plain checkpoint does not say: architecture, stem, side of its input in pixels.

    With input_px, an image is resized to it whole; else timm's configuration of the architecture
    says how much of its margin is cut.
    """

    model: str | None = None
    stem: Stem = "imagenet"
    input_px: int | None = None


def open_encoder(name: str, plain: PlainOptions, device: torch.device) -> Encoder:
    """Open an encoder; raises ProbeError, TeacherError, StudentError or RunError.

    name: `open_clip:NAME/TAG`, `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, `timm:NAME[.TAG]`, or a
    path: a run's folder, an open_clip folder, or weights of `plain.model` in any form that
    `pipeline.fitting` knows. open_clip is imported only for its own models.
    """
    if name.startswith((OPEN_CLIP, LOCAL_DIR, HF_HUB)):
        return _open_clip(name, device)
    if name.startswith(TIMM_NAME):
        return _plain(name.removeprefix(TIMM_NAME), TIMM, plain, device)
    path = Path(name)
    if (path / CONFIG).is_file():
        return _open_clip(f"{LOCAL_DIR}{path}", device)
    if RunDir(path).is_begun():
        return run_encoder(RunDir(path), "student", device)
    if not path.exists():
        raise ProbeError(
            f"no encoder {name!r}: expected open_clip:NAME/TAG, local-dir:FOLDER, timm:NAME, or "
            "the path of a run, of an open_clip folder or of weights"
        )
    if plain.model is None:
        raise ProbeError(
            f"{name} holds weights, and does not say of what: give --model, as in --model rn50"
        )
    return _plain(plain.model, name, plain, device)


def run_encoder(run: RunDir, weights: str, device: torch.device) -> Encoder:
    """Open a finished run's student by one of rundir.WEIGHTS; raises RunError, StudentError."""
    recipe = recipe_from(run.read_recipe(), where=f"{run.path}/recipe.yaml")
    origin = run.read_origin()
    student = rebuild_student(run, recipe)
    load_weights(student, run.load_weights(weights), where=run.path / WEIGHTS[weights])
    preprocess = origin["teacher"]["preprocess"]
    schedule = EvalSchedule(
        resize_mode=preprocess["resize_mode"], interpolation=preprocess["interpolation"]
    )
    view = EvalView(origin["input_px"], schedule, recipe.decode)
    student.to(device).eval()

    def encode(views_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        outputs = student(views_B3SS.to(device))
        return outputs.features_BF, outputs.embedding_BD

    identity = student_identity(student)
    if not isinstance(student, SharedStudent):
        return Encoder(view, encode, identity, space=origin["teacher"])
    reader = text_reader(recipe.student.shared, kept_text(run.path))
    read = partial(OwnTexts(reader, None, device).anchors_of, student)
    return Encoder(view, encode, identity, read=read)  # in a space of its own


def _open_clip(name: str, device: torch.device) -> Encoder:
    model, tag = name, None
    if name.startswith(OPEN_CLIP):
        model, slash, tag_name = name.removeprefix(OPEN_CLIP).rpartition("/")
        model, tag = (model, tag_name) if slash else (tag_name, None)
    teacher = load_teacher(TeacherOptions(model=model, pretrained=tag), device)
    assert isinstance(teacher, OpenClipTeacher)
    fingerprint = teacher.fingerprint()  # of all weights: before the projection is taken off
    identity = {"teacher": {**fingerprint, "model": None, "pretrained": None}}
    told = {**identity, "batch": {"threads": teacher.spec.threads}}
    project = _take_projection(teacher.image_tower)
    wanted = teacher.preprocess
    schedule = EvalSchedule(resize_mode=wanted.resize_mode, interpolation=wanted.interpolation)

    def encode(views_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        features_BF = teacher.encode_images(views_B3SS)
        if features_BF.ndim != 2:
            raise TeacherError(f"{name}: expected features [B,F], found {tuple(features_BF.shape)}")
        return features_BF.float(), F.normalize(project(features_BF).float(), dim=-1)

    return Encoder(
        EvalView(wanted.size, schedule, DecodePolicy()),
        encode,
        identity,
        space=known_teacher({"teacher": fingerprint}),
        read=partial(embed_anchors, teacher, told),
    )


def _take_projection(tower: Any) -> Callable[[Tensor], Tensor]:
    """Take the last linear map off an open_clip image tower and return it.

    Of a ViT its `proj`; of a timm tower what its head ends in. CLIP's ResNets have none apart from
    their attention pooling, whose output is what CLIP's own linear probes were fitted on (Radford
    et al. 2021, A.3).
    """
    if isinstance(getattr(tower, "proj", None), nn.Parameter):
        matrix_FD = tower.proj
        tower.proj = None
        return lambda features_BF: features_BF @ matrix_FD
    head = getattr(tower, "head", None)
    if hasattr(tower, "trunk") and isinstance(head, nn.Sequential):
        for name in ("proj", "mlp"):
            if isinstance(last := getattr(head, name, None), nn.Module):
                setattr(head, name, nn.Identity().eval())
                return last
    return lambda features_BF: features_BF


def _plain(model: str, init: str, plain: PlainOptions, device: torch.device) -> Encoder:
    """Open a timm backbone with timm's weights, or with those of a file; no projection."""
    spec = StudentOptions(model=model, init=init, stem=plain.stem)
    size = plain.input_px or _own_px(model)
    student = build_image_student(spec, dim=1, input_px=size, seed=0)
    init_student(student, spec, input_px=size)
    student.to(device).eval()
    own = getattr(student.backbone, "default_cfg", None) or {}
    view = timm_view(own, model, size, whole=plain.input_px is not None)

    def encode(views_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        features_BF = student.features(views_B3SS.to(device))
        return features_BF, F.normalize(features_BF, dim=-1)

    return Encoder(view, encode, student_identity(student))


def _own_px(model: str) -> int:
    """Return the side of the input that timm's configuration of a model names."""
    import timm

    config = None if model in STUDENTS else timm.get_pretrained_cfg(model, allow_unregistered=True)
    return _ALIAS_PX if config is None else int(config.input_size[-1])


def timm_view(own: Mapping[str, Any], model: str, size: int, *, whole: bool = False) -> EvalView:
    """Return timm's own evaluation transform as a view; raises StudentError for what is not one.

    own: timm's configuration of the model. size: side of its input. whole: cut no margin.
    """
    from timm.data import resolve_data_config

    config = resolve_data_config({}, pretrained_cfg=dict(own))
    mode, interpolation = config["crop_mode"], config["interpolation"]
    if mode not in ("center", "squash") or interpolation not in ("bicubic", "bilinear"):
        raise StudentError(
            f"{model}: expected timm's crop_mode center or squash, bicubic or bilinear; found "
            f"{mode}, {interpolation}"
        )
    schedule = EvalSchedule(
        resize_mode="squash" if mode == "squash" else "shortest",
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
    )
    resized_px = size if whole else math.floor(size / config["crop_pct"])
    return EvalView(size, schedule, DecodePolicy(), resized_px)
