"""A teacher's folder: what open_clip would ignore, fit or replace is an error."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TeacherError
from pipeline.teacher import load_teacher
from pipeline.teacher.folder import check_code, check_shapes, read_config
from tests.teacher.test_clip import CPU, Payload, edit_config, options

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def folder(teacher_dir: Path, tmp_path: Path) -> Path:
    """A copy of the teacher's folder that a test may damage."""
    return Path(shutil.copytree(teacher_dir, tmp_path / "teacher"))


def edit_model(folder: Path, section: str, **changes: object) -> None:
    """Change a section of model_cfg, keeping what else it says."""
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    edit_config(folder, "model_cfg", **{section: config["model_cfg"][section] | changes})


def test_a_whole_folder_is_read(folder: Path) -> None:
    assert read_config(folder)["model_cfg"]["embed_dim"] == 16


@pytest.mark.parametrize(
    ("section", "changes"),
    [("vision_cfg", {"image_size": 48}), ("text_cfg", {"context_length": 16})],
    ids=str,
)
def test_weights_of_another_size_are_never_fitted(
    folder: Path, section: str, changes: dict[str, Any]
) -> None:
    edit_model(folder, section, **changes)
    if section == "vision_cfg":
        edit_config(folder, "preprocess_cfg", size=48)
    with pytest.raises(TeacherError, match="trained with another image size or text length"):
        load_teacher(options(folder), CPU)


def test_shapes_are_compared_by_name(folder: Path) -> None:
    check_shapes(folder, {"visual.proj": (32, 16), "not-there": (3, 4)})
    with pytest.raises(TeacherError, match=r"visual\.proj of shape \(32, 17\)"):
        check_shapes(folder, {"visual.proj": (32, 17)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 48}, "make them agree"),
        ({"size": [32, 48]}, "square input"),
        ({"mode": "L"}, "expected RGB"),
        ({"std": [0, 0.5, 0.5]}, "positive stds"),
        ({"std": [float("nan")] * 3}, "positive stds"),
        ({"mean": [0.5]}, "3 means"),
        ({"mean": 0.5}, "cannot load teacher"),
        ({"interpolation": "random"}, "bicubic or bilinear"),
    ],
    ids=str,
)
def test_preprocessing_that_is_not_what_the_model_takes_is_an_error(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    edit_config(folder, "preprocess_cfg", **changes)
    with pytest.raises(TeacherError, match=words):
        load_teacher(options(folder), CPU)


def test_a_pickle_is_never_opened_though_open_clip_would_prefer_it(
    folder: Path, tmp_path: Path
) -> None:
    payload = pickle.dumps(Payload(tmp_path / "ran"))
    for name in ("open_clip_pytorch_model.bin", "model.pth", "x.pt", "x.pkl"):
        (folder / name).write_bytes(payload)
    load_teacher(options(folder), CPU)
    (folder / WEIGHTS).rename(folder / "model.safetensors")
    with pytest.raises(TeacherError, match=r"holds model\.safetensors, open_clip_pytorch_model"):
        load_teacher(options(folder), CPU)
    assert not (tmp_path / "ran").exists()


def test_several_weights_are_not_guessed_among(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "a.safetensors")
    read_config(folder)
    (folder / WEIGHTS).rename(folder / "b.safetensors")
    with pytest.raises(TeacherError, match=r"a\.safetensors, b\.safetensors: name the ones"):
        read_config(folder)
    (folder / "a.safetensors").unlink()
    read_config(folder)


@pytest.mark.parametrize("section", ["tokenizer_kwargs", "hf_model_config"])
def test_code_that_comes_with_a_model_is_never_run(folder: Path, section: str) -> None:
    edit_model(folder, "text_cfg", **{section: {"trust_remote_code": True}})
    with pytest.raises(TeacherError, match="asks to run code of its own"):
        load_teacher(options(folder), CPU)
    check_code({"text_cfg": {section: {"trust_remote_code": False}}}, "x")
    check_code({}, "x")
