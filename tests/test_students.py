"""Any timm backbone becomes a student that speaks the teacher's language."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.checkpoints import file_sha256, tensors_sha256
from pipeline.errors import RecipeError, StudentError
from pipeline.options import parse
from pipeline.students import (
    STUDENTS,
    Student,
    StudentOptions,
    build_student,
    init_student,
    load_weights,
)
from tests.backbones import head, prefixed, torchvision_resnet

DIM, PX = 16, 32
NAMES = (
    *STUDENTS,
    "resnet10t",
    "mobilenetv3_small_050",
    "test_vit",  # a fixed input size, other than PX
    "test_resnet",
)
FAMILIES = {  # what the aliases stand for
    "rn18": "resnet18",
    "rn50": "resnet50",
    "mnv3": "mobilenetv3_large_100",
    "effb0": "efficientnet_b0",
    "vitti": "vit_tiny_patch16_224",
}


def build(
    model: str = "test_resnet", *, seed: int = 0, px: int = PX, dim: int = DIM, **options: Any
) -> Student:
    spec = StudentOptions(model=model, **options)
    return build_student(spec, dim=dim, input_px=px, seed=seed)


def start(init: str | Path, model: str = "test_resnet", **options: Any) -> tuple[Student, Any]:
    """Build a student and give it its first weights."""
    spec = StudentOptions(model=model, init=str(init), **options)
    student = build_student(spec, dim=DIM, input_px=PX, seed=0)
    return student, init_student(student, spec, input_px=PX)


def views(count: int = 4, px: int = PX) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, px, px), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_embeds_views_as_normalised_float32_in_the_teachers_dimension(name: str) -> None:
    outputs = build(name)(views())
    assert outputs.embedding_BD.shape == (4, DIM)
    assert outputs.embedding_BD.dtype == torch.float32
    norms = outputs.embedding_BD.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(4), rtol=0, atol=1e-6)
    assert outputs.features_BF.dtype == torch.float32
    assert outputs.features_BF.ndim == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_parameter_of(name: str) -> None:
    student = build(name)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    weights_BD = torch.randn(4, DIM, generator=torch.Generator().manual_seed(1))
    for _ in range(2):  # residual branches begin at zero, and let nothing through at first
        optimizer.zero_grad()
        (student(views()).embedding_BD * weights_BD).sum().backward()
        optimizer.step()
    without = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_deterministic_and_each_view_alone(name: str) -> None:
    student = build(name).eval()
    with torch.inference_mode():
        one, again = student(views()), student(views())
        assert torch.equal(one.embedding_BD, again.embedding_BD)
        alone_BD = student(views()[:1]).embedding_BD
    torch.testing.assert_close(alone_BD, one.embedding_BD[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_gives_the_same_embeddings(name: str) -> None:
    one, other = build(name, seed=1), build(name, seed=2)
    one(views())  # moves the batch statistics, which are part of the state
    load_weights(other, one.state_dict(), where="here")
    with torch.inference_mode():
        expected_BD = one.eval()(views()).embedding_BD
        assert torch.equal(other.eval()(views()).embedding_BD, expected_BD)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_stem_keeps_the_map_larger_or_is_an_error(name: str) -> None:
    if "vit" in name:
        with pytest.raises(StudentError, match=r"no small stem.*patches of 16 px"):
            build(name, stem="small")
        return

    def side(student: Student) -> int:
        with torch.inference_mode():
            return int(
                student.eval().backbone.forward_features(torch.zeros(1, 3, PX, PX)).shape[-1]
            )

    small = build(name, stem="small")
    assert side(small) >= 2 * side(build(name))
    outputs = small.train()(views())
    assert outputs.embedding_BD.shape == (4, DIM)
    outputs.embedding_BD.sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("alias", STUDENTS)
def test_an_alias_is_a_timm_model(alias: str) -> None:
    ours = build(alias).backbone.state_dict()
    size = {"img_size": PX} if "vit" in alias else {}
    theirs = timm.create_model(FAMILIES[alias], num_classes=0, **size).state_dict()
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in theirs.items()}


def test_the_imagenet_stem_is_the_default_and_changes_no_weight() -> None:
    one, other = build(), build(stem="imagenet")
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_small_stem_is_drawn_from_the_seed() -> None:
    one, same, other = (build("rn18", stem="small", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.backbone.conv1.weight, same.backbone.conv1.weight)
    assert not torch.equal(one.backbone.conv1.weight, other.backbone.conv1.weight)


@pytest.mark.parametrize(("name", "features"), [("rn18", 512), ("rn50", 2048)])
def test_features_are_the_backbones_own(name: str, features: int) -> None:
    student = build(name).eval()
    with torch.inference_mode():
        assert student(views()).features_BF.shape == (4, features)
    assert student.projection.weight.shape == (DIM, features)
    assert student.projection.bias is None


def test_embedding_is_the_normalised_projection_of_the_features() -> None:
    student = build().eval()
    with torch.inference_mode():
        outputs = student(views())
        projected_BD = outputs.features_BF @ student.projection.weight.T
    expected_BD = projected_BD / projected_BD.norm(dim=1, keepdim=True)
    torch.testing.assert_close(outputs.embedding_BD, expected_BD)


def test_pixels_are_normalised_with_the_backbones_own_statistics() -> None:
    student = build("rn18").eval()
    config = student.backbone.default_cfg
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    with torch.inference_mode():
        expected_BF = student.backbone((views() / 255 - mean) / std)
        torch.testing.assert_close(student(views()).features_BF, expected_BF, rtol=1e-4, atol=1e-5)


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    one, same, other = build(seed=1), build(seed=1), build(seed=2)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(one.projection.weight, other.projection.weight)
    assert not torch.equal(next(one.backbone.parameters()), next(other.backbone.parameters()))


def test_building_leaves_every_global_generator_alone() -> None:
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    build("vit_tiny_patch16_224")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)


def test_weights_do_not_depend_on_what_was_drawn_before() -> None:
    one = build()
    torch.rand(7)
    assert torch.equal(one.projection.weight, build().projection.weight)


def test_is_built_in_training_mode_with_untouched_batch_statistics() -> None:
    student = build()
    assert all(module.training for module in student.modules())
    assert student.backbone.bn1.num_batches_tracked.item() == 0
    assert torch.equal(
        student.backbone.bn1.running_mean, torch.zeros_like(student.backbone.bn1.bias)
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rn81", "did you mean 'rn18'"),
        ("resnet_18", "did you mean 'resnet18'"),
        ("mobilenet_v3_small_050", "did you mean 'mobilenetv3_small_050'"),
        ("zzzzzzzz", r"timm\.list_models\(\)"),
    ],
)
def test_an_unknown_model_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(StudentError, match=hint) as caught:
        build(name)
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "px"), [("inception_v3", 32), ("vit_tiny_patch16_224", 8)])
def test_a_size_that_an_architecture_refuses_is_an_error_that_says_so(name: str, px: int) -> None:
    with pytest.raises(StudentError, match=rf"{name} does not work at {px} px.*student\.input_px"):
        build(name, px=px)


@pytest.mark.parametrize("px", [0, -32])
def test_an_input_size_below_one_pixel_is_refused(px: int) -> None:
    with pytest.raises(RecipeError, match=f"input_px.*not {px}"):
        parse(StudentOptions, {"input_px": px}, where="test")


def test_a_student_sees_another_size_than_the_teacher() -> None:
    assert build(px=48)(views(px=48)).embedding_BD.shape == (4, DIM)


def test_saved_weights_load_into_the_same_architecture() -> None:
    one, other = build(seed=1), build(seed=2)
    load_weights(other, one.state_dict(), where="here")
    assert torch.equal(one.projection.weight, other.projection.weight)


@pytest.mark.parametrize("foreign", ["another model", "another dimension", "no tensors"])
def test_foreign_weights_are_refused(foreign: str) -> None:
    states = {
        "another model": lambda: build("mobilenetv3_small_050").state_dict(),
        "another dimension": lambda: build(dim=8).state_dict(),
        "no tensors": dict,
    }
    with pytest.raises(StudentError, match="weights in here are not this student's"):
        load_weights(build(), states[foreign](), where="here")


@pytest.mark.parametrize("model", ["resnet18.a1_in1k", "resnet18.nonsense"])
def test_a_tag_of_pretrained_weights_is_refused_not_ignored(model: str) -> None:
    with pytest.raises(StudentError, match=r"student\.init is scratch: say 'resnet18'"):
        build(model)


class TestInit:
    def test_from_scratch_there_is_nothing_to_tell(self) -> None:
        student, facts = start("scratch")
        assert facts is None
        assert torch.equal(student.projection.weight, build().projection.weight)

    @pytest.mark.parametrize("form", ["plain", "moco", "dino", "swav", "old", "safetensors"])
    def test_a_file_gives_the_backbone_and_leaves_the_projection(
        self, tmp_path: Path, form: str
    ) -> None:
        state = dict(build(seed=5).backbone.state_dict())
        save = {
            "plain": lambda p: torch.save(state, p),
            "moco": lambda p: torch.save(
                {"epoch": 200, "state_dict": prefixed("module.encoder_q.", state)}, p
            ),
            "dino": lambda p: torch.save(
                {"teacher": prefixed("backbone.", state) | prefixed("head.", head())}, p
            ),
            "swav": lambda p: torch.save(
                prefixed("module.", state) | prefixed("module.projection_head.", head()), p
            ),
            "old": lambda p: torch.save(state, p, _use_new_zipfile_serialization=False),
            "safetensors": lambda p: save_file(state, p),
        }
        path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
        save[form](path)
        student, facts = start(path)
        for name, value in student.backbone.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert torch.equal(student.projection.weight, build().projection.weight)
        assert facts["source"] == str(path)
        assert facts["sha256"] == file_sha256(path)
        assert (facts["used"], facts["missing"]) == (len(state), 0)
        assert facts["left_over"] == {"dino": 4, "swav": 4}.get(form, 0)

    def test_what_was_used_and_what_was_not_is_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        state = prefixed("module.", dict(build().backbone.state_dict()))
        torch.save(state | {"module.prototypes.weight": torch.ones(2)}, tmp_path / "w.pth")
        with caplog.at_level(logging.INFO):
            start(tmp_path / "w.pth")
        assert f"{len(state)} tensors, named module.*" in caplog.text
        assert "1 tensors are left over: module.prototypes.weight" in caplog.text

    def test_torchvisions_weights_start_an_rn18(self, tmp_path: Path) -> None:
        theirs = torchvision_resnet()
        torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
        student, facts = start(tmp_path / "resnet18.pth", "rn18")
        assert facts["left_over"] == 2
        theirs.fc = nn.Identity()
        pixels = views().float()
        with torch.inference_mode():
            expected_BF = theirs((pixels - student.mean) / student.std)
            features_BF = student.eval()(views()).features_BF
        torch.testing.assert_close(features_BF, expected_BF, rtol=1e-4, atol=1e-4)

    def test_a_folder_and_another_runs_student_serve_too(self, tmp_path: Path) -> None:
        other = build(seed=7)
        save_file(other.state_dict(), tmp_path / "student.safetensors")
        student, facts = start(tmp_path)
        assert torch.equal(student.backbone.bn1.weight, other.backbone.bn1.weight)
        assert facts["prefix"] == "backbone."
        assert not torch.equal(student.projection.weight, other.projection.weight)

    def test_weights_of_another_stem_name_the_option(self, tmp_path: Path) -> None:
        torch.save(build("rn18").backbone.state_dict(), tmp_path / "w.pth")
        with pytest.raises(
            StudentError, match=r"imagenet stem.*7x7.*3x3; set student\.stem=imagen"
        ):
            start(tmp_path / "w.pth", "rn18", stem="small")

    def test_a_foreign_architecture_is_refused_and_changes_nothing(self, tmp_path: Path) -> None:
        torch.save(build("test_vit").backbone.state_dict(), tmp_path / "w.pth")
        with pytest.raises(StudentError, match=r"w\.pth holds no weights of this backbone"):
            start(tmp_path / "w.pth")

    def test_a_path_that_is_not_there_says_what_init_may_be(self) -> None:
        with pytest.raises(StudentError, match="expected scratch, timm, a file"):
            start("Timm")

    def test_an_empty_init_is_refused(self) -> None:
        with pytest.raises(RecipeError, match="init is scratch, timm, or the path"):
            parse(StudentOptions, {"init": ""}, where="test")

    def test_a_tag_beside_a_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StudentError, match="names pretrained weights"):
            start(tmp_path, "resnet18.a1_in1k")


class TestTimm:
    def test_a_missing_download_is_an_error_within_seconds(self) -> None:
        began = time.monotonic()
        with pytest.raises(StudentError, match=r"cannot load timm's weights resnet18\.a1_in1k"):
            start("timm", "rn18")
        assert time.monotonic() - began < 15

    def test_a_tag_that_is_stated_is_the_one_that_is_asked_for(self) -> None:
        with pytest.raises(StudentError, match=r"timm's weights resnet18\.gluon_in1k"):
            start("timm", "resnet18.gluon_in1k")
        with pytest.raises(StudentError, match=r"timm's weights resnet18\.gluon_in1k"):
            start("timm", "rn18.gluon_in1k")

    def test_a_tag_that_timm_lacks_names_the_nearest(self) -> None:
        with pytest.raises(StudentError, match="no weights 'a1_in1' of resnet18: did you mean 'a1"):
            build("resnet18.a1_in1", init="timm")

    def test_weights_are_timms_own_from_the_hubs_local_cache(self, tmp_path: Path) -> None:
        """A cache as the hub's client leaves it; read in a process of its own, offline."""
        whole = timm.create_model("test_resnet", num_classes=1000)
        folder = tmp_path / "models--timm--test_resnet.r160_in1k"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        save_file(whole.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
        code = f"""
import json, torch
from pipeline.students import StudentOptions, build_student, init_student
spec = StudentOptions(model="test_resnet", init="timm")
student = build_student(spec, dim={DIM}, input_px={PX}, seed=0)
before = torch.get_rng_state()
facts = init_student(student, spec, input_px={PX})
assert torch.equal(before, torch.get_rng_state())
torch.save(student.backbone.state_dict(), {str(tmp_path / "got.pth")!r})
print(json.dumps(facts))
"""
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        facts = json.loads(result.stdout)
        assert facts["source"] == "timm test_resnet.r160_in1k"
        assert facts["sha256"] == tensors_sha256(whole.state_dict())
        assert facts["left_over"] == 2
        for name, value in torch.load(tmp_path / "got.pth").items():
            assert torch.equal(value, whole.state_dict()[name]), name

    def test_building_without_init_needs_no_download(self) -> None:
        """As a probe does: the weights come from the run."""
        assert build("resnet18.a1_in1k", init="timm")(views()).embedding_BD.shape == (4, DIM)
