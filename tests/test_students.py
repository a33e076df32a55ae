"""Any timm backbone becomes a student that speaks the teacher's language."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import RecipeError, StudentError
from pipeline.options import parse
from pipeline.students import STUDENTS, Student, StudentOptions, build_student, load_weights

DIM, PX = 16, 32
NAMES = (
    *STUDENTS,
    "resnet10t",
    "mobilenetv3_small_050",
    "vit_tiny_patch16_224",  # a fixed input size, other than PX
    "test_resnet",
)


def build(model: str = "test_resnet", *, seed: int = 0, px: int = PX, dim: int = DIM) -> Student:
    return build_student(StudentOptions(model=model), dim=dim, input_px=px, seed=seed)


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
    with pytest.raises(StudentError, match="start from random ones: say 'resnet18'"):
        build(model)
