"""A teacher loads exactly as named, or not at all."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pipeline.cache.reader import read_anchors
from pipeline.errors import TeacherError
from pipeline.prompt_file import load_prompts
from pipeline.schedule import EvalSchedule
from pipeline.teacher import TEACHERS, Teacher, TeacherOptions, check_teacher, load_teacher
from pipeline.views import render_views
from tests.inputs import encode, make_teacher, square

CPU = torch.device("cpu")


def options(folder: Path, **changes: object) -> TeacherOptions:
    return TeacherOptions(model=f"local-dir:{folder}", **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path) -> Teacher:
    return load_teacher(options(teacher_dir), CPU)


@pytest.fixture
def folder(teacher_dir: Path, tmp_path: Path) -> Path:
    """A copy of the teacher's folder that a test may damage."""
    return Path(shutil.copytree(teacher_dir, tmp_path / "teacher"))


def edit_config(folder: Path, section: str, **changes: object) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config[section] |= changes
    path.write_text(json.dumps(config), encoding="utf-8")


def test_every_kind_of_teacher_has_an_entry() -> None:
    assert set(TEACHERS) == {"open_clip", "timm"}


def test_images_embed_as_open_clip_embeds_them(teacher: Teacher, teacher_dir: Path) -> None:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{teacher_dir}")
    model.eval()
    pixels = square(1, seed=5)
    with torch.inference_mode():
        image = preprocess(Image.fromarray(pixels))[None]
        wanted = model.encode_image(image, normalize=True)[0]
    params = EvalSchedule().params("x", 0, pixels.shape[1], pixels.shape[0])
    views = render_views(encode(pixels), [params], teacher.preprocess.size)
    found = teacher.embed_images(views)
    assert found.dtype == torch.float32
    assert torch.linalg.norm(found[0]) == pytest.approx(1, abs=1e-6)
    assert float(found[0] @ wanted) > 1 - 1e-6


def test_how_views_lie_in_memory_changes_no_bit(teacher: Teacher) -> None:
    size = teacher.preprocess.size
    views = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)
    expected = teacher.embed_images(views)
    for layout in (torch.channels_last, torch.contiguous_format):
        assert torch.equal(teacher.embed_images(views.contiguous(memory_format=layout)), expected)


def test_anchors_are_open_clips_own_zero_shot_classifier(
    teacher_dir: Path, sealed_cache: Path, recipe_file: Path
) -> None:
    model = open_clip.create_model_from_pretrained(
        f"local-dir:{teacher_dir}", return_transform=False
    ).eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{teacher_dir}")
    prompts = load_prompts(str(recipe_file.with_name("shapes-prompts.yaml")))
    templates = [lambda c, t=t: t.format(label=c) for t in prompts.prompt_sets["plain"].templates]
    names = [item.name for item in prompts.classes]
    with torch.inference_mode():
        wanted_DC = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    found = read_anchors(sealed_cache, "shapes-plain").embeddings_AD
    np.testing.assert_allclose(found, wanted_DC.T.numpy(), atol=1e-6)


def test_a_loaded_teacher_is_frozen_and_in_evaluation_mode(teacher: Teacher) -> None:
    model = teacher._model  # type: ignore[attr-defined]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_fingerprint_tells_weights_and_preprocessing(
    teacher: Teacher, folder: Path, tmp_path: Path
) -> None:
    first = teacher.fingerprint()
    again = load_teacher(options(folder), CPU).fingerprint()
    assert {**again, "model": None} == {**first, "model": None}
    other = load_teacher(options(make_teacher(tmp_path / "other", seed=1)), CPU).fingerprint()
    assert other["weights_sha256"] != first["weights_sha256"]
    edit_config(folder, "preprocess_cfg", mean=[0.4, 0.4, 0.4])
    edited = load_teacher(options(folder), CPU).fingerprint()
    assert edited["preprocess"] != first["preprocess"]
    edit_config(folder, "model_cfg", quick_gelu=True)
    assert load_teacher(options(folder), CPU).fingerprint()["architecture"]["quick_gelu"]


def test_tokens_are_counted_uncut(teacher: Teacher) -> None:
    assert teacher.max_tokens == 32
    assert teacher.count_tokens("a photo") == 4
    assert teacher.count_tokens("very " * 100) == 102


def test_half_precision_still_gives_normalised_float32(teacher_dir: Path) -> None:
    teacher = load_teacher(options(teacher_dir, precision="bf16"), CPU)
    found = teacher.embed_images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert found.dtype == torch.float32
    torch.testing.assert_close(torch.linalg.norm(found, dim=1), torch.ones(2))


def test_a_folder_without_weights_is_never_random(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(TeacherError, match="random teacher is never used"):
        load_teacher(options(folder), CPU)


def test_a_missing_folder_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"open_clip_config\.json and \.safetensors"):
        check_teacher(options(tmp_path / "nowhere"))


@pytest.mark.parametrize("field", ["mean", "std", "size", "interpolation", "resize_mode"])
def test_a_preprocessing_field_left_out_is_an_error(folder: Path, field: str) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["preprocess_cfg"][field]
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(TeacherError, match=f"lacks {field}"):
        check_teacher(options(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_cfg": {}}', "null"])
def test_a_damaged_configuration_is_an_error(folder: Path, text: str) -> None:
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(TeacherError, match=r"open_clip_config\.json"):
        check_teacher(options(folder))


def test_truncated_weights_are_an_error(folder: Path) -> None:
    path = folder / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TeacherError, match="cannot load teacher"):
        load_teacher(options(folder), CPU)


def test_weights_of_another_architecture_are_an_error(folder: Path) -> None:
    edit_config(folder, "model_cfg", embed_dim=24)
    with pytest.raises(TeacherError, match="cannot load teacher"):
        load_teacher(options(folder), CPU)


class Payload:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_weights_are_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(TeacherError):
        load_teacher(options(folder), CPU)
    assert not (tmp_path / "ran").exists()


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(TeacherError, match="did you mean 'ViT-B-16-quickgelu'"):
        load_teacher(TeacherOptions(model="ViT-B-16-quikgelu", pretrained="openai"), CPU)


def test_an_unknown_tag_names_the_nearest() -> None:
    with pytest.raises(TeacherError, match="did you mean 'openai'"):
        load_teacher(TeacherOptions(model="RN50", pretrained="openia"), CPU)


def test_a_name_without_a_tag_is_never_random() -> None:
    with pytest.raises(TeacherError, match="needs `pretrained`, one of: openai"):
        load_teacher(TeacherOptions(model="RN50"), CPU)


def test_a_bare_weights_file_is_refused(teacher_dir: Path) -> None:
    file = str(teacher_dir / "open_clip_model.safetensors")
    with pytest.raises(TeacherError, match="says nothing of its preprocessing"):
        load_teacher(TeacherOptions(model="RN50", pretrained=file), CPU)


def test_an_unreachable_hub_is_told_within_seconds_of_loading(tmp_path: Path) -> None:
    """The hub's address leads nowhere; without a local copy of the weights that is an error."""
    code = """
import sys, time, torch
import pipeline.hub
import pipeline.teacher as t
from pipeline.errors import TeacherError
pipeline.hub._HUB = ("127.0.0.1", 9)  # the discard port: refused at once
import open_clip
began = time.monotonic()
try:
    t.load_teacher(t.TeacherOptions(model="RN50", pretrained="openai"), torch.device("cpu"))
except TeacherError as error:
    print(time.monotonic() - began, error)
"""
    hidden = {"HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "HF_ENDPOINT"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    assert "cannot load teacher RN50 (openai)" in result.stdout, result.stderr
    assert float(result.stdout.split()[0]) < 15  # with its retries the hub client took 46 s


def test_the_tokenizer_of_an_unknown_model_is_never_guessed(folder: Path) -> None:
    edit_config(folder, "model_cfg", text_cfg={"hf_tokenizer_name": "no/such-tokenizer"})
    with pytest.raises(TeacherError, match="cannot load teacher"):
        load_teacher(options(folder), CPU)


def test_a_tag_beside_a_folder_is_refused_not_ignored(teacher_dir: Path) -> None:
    with pytest.raises(ValueError, match="brings its own weights"):
        options(teacher_dir, pretrained="openai")


def test_a_model_in_training_mode_never_embeds(teacher_dir: Path) -> None:
    teacher = load_teacher(options(teacher_dir), CPU)
    model = teacher._model  # type: ignore[attr-defined]
    views = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    model.visual.transformer.train()  # a part is enough
    with pytest.raises(TeacherError, match="in training mode"):
        teacher.embed_images(views)
    with pytest.raises(TeacherError, match="in training mode"):
        teacher.embed_texts(["a"])
    model.eval()
    assert teacher.embed_images(views).shape == (2, 16)
