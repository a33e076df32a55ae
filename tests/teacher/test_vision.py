"""timm's networks as teachers: the vectors of each feature point, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import RecipeError, TeacherError
from pipeline.options import parse
from pipeline.teacher import Teacher, TeacherOptions, check_teacher, load_teacher

CPU = torch.device("cpu")
VIT, PX, DIM, CLASSES = "vit_tiny_patch16_224", 32, 192, 7


def vit(seed: int = 0, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(VIT, img_size=PX, num_classes=CLASSES, **options)
        nn.init.normal_(model.get_parameter("norm.weight"), 1, 0.3)  # unlike no norm
        return model.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file(vit().state_dict(), file)
    return file


def options(pretrained: Path | str, model: str = VIT, **fields: Any) -> TeacherOptions:
    where = f"local-dir:{pretrained}" if isinstance(pretrained, Path) else pretrained
    return TeacherOptions(kind="timm", model=model, pretrained=where, **{"input_px": PX} | fields)


def load(pretrained: Path, **fields: Any) -> Teacher:
    return load_teacher(options(pretrained, **fields), CPU)


def views(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, PX, PX), dtype=torch.uint8, generator=generator)


def normed(views_B3SS: Tensor) -> Tensor:
    return (views_B3SS.float() / 255 - 0.5) / 0.5  # what timm says of this ViT


@torch.inference_mode()
def test_each_feature_point_is_what_timm_has_there(weights: Path) -> None:
    model: Any = vit()
    pixels, before = normed(views()), {}
    model.norm.register_forward_hook(lambda _, given, __: before.update(tokens=given[0]))
    tokens = model.forward_features(pixels)
    expected = {
        "cls_pre_norm": before["tokens"][:, 0],
        "cls_post_norm": tokens[:, 0],
        "pooled": model.forward_head(tokens, pre_logits=True),
        "logits": model(pixels),
    }
    assert not torch.allclose(expected["cls_pre_norm"], expected["cls_post_norm"], atol=0.1)
    for point, vectors in expected.items():
        teacher = load(weights, feature_point=point)
        found = teacher.encode_images(views())
        assert teacher.dim == vectors.shape[1] == (CLASSES if point == "logits" else DIM)
        torch.testing.assert_close(found, vectors, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            teacher.embed_images(views()), nn.functional.normalize(found, dim=-1)
        )


@pytest.mark.parametrize("k", [1, 3, CLASSES, 99])
def test_the_greatest_logits_alone_have_the_same_softmax(weights: Path, k: int) -> None:
    dense = load(weights, feature_point="logits").encode_images(views())
    kept = load(weights, feature_point="logits", top_k=k).encode_images(views())
    known = min(k, CLASSES)
    assert ((kept > 0).sum(dim=1) == known).all()
    one, other = dense.topk(known, dim=1), kept.topk(known, dim=1)
    assert torch.equal(one.indices, other.indices)
    torch.testing.assert_close(one.values.softmax(1), other.values.softmax(1))


def test_layout_of_the_views_changes_no_bit(weights: Path) -> None:
    teacher = load(weights)
    strided = views().contiguous(memory_format=torch.channels_last)
    assert torch.equal(teacher.encode_images(views()), teacher.encode_images(strided))


def test_what_pretrain_leaves_is_a_teacher_small_stem_and_all(tmp_path: Path) -> None:
    from pipeline.students import StudentOptions, build_student

    student = build_student(
        StudentOptions(model="resnet10t", stem="small"), dim=4, input_px=PX, seed=3
    )
    (tmp_path / "pretrained").mkdir()
    state = {name: value.contiguous() for name, value in student.backbone.state_dict().items()}
    save_file(state, tmp_path / "pretrained" / "backbone.safetensors")
    spec = options(tmp_path / "pretrained", "resnet10t", stem="small")
    found = load_teacher(spec, CPU).encode_images(views())
    with torch.inference_mode():
        torch.testing.assert_close(found, student.eval().features(views()), rtol=1e-4, atol=1e-5)


def test_the_fingerprint_tells_weights_and_feature_points_apart(
    weights: Path, tmp_path: Path
) -> None:
    one = load(weights).fingerprint()
    assert one == load(weights).fingerprint()
    assert load(weights, feature_point="cls_pre_norm").fingerprint() != one
    other = tmp_path / "vit.safetensors"
    save_file(vit(seed=1).state_dict(), other)
    assert load(other).fingerprint()["weights_sha256"] != one["weights_sha256"]


def test_it_reads_no_text_and_says_so(weights: Path) -> None:
    teacher = load(weights)
    with pytest.raises(TeacherError, match="reads no text"):
        teacher.embed_texts(["a"])
    with pytest.raises(TeacherError, match="reads no text"):
        teacher.count_tokens("a")
    assert teacher.logit_scale is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "vit_tini_patch16_224"}, "did you mean"),
        ({"model": "resnet10t"}, "another architecture|no weights of this backbone"),
        ({"model": "vit_small_patch16_224"}, "other shapes"),
        ({"input_px": 64}, "other shapes"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    weights: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(TeacherError, match=message):
        load(weights, **fields)


def test_a_network_without_a_class_token_has_no_cls_point(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "r.safetensors")
    with pytest.raises(TeacherError, match="no class token"):
        load(tmp_path / "r.safetensors", model="resnet10t", feature_point="cls_pre_norm")


def test_weights_without_a_classifier_have_no_logits(tmp_path: Path) -> None:
    headless = {n: t for n, t in vit().state_dict().items() if not n.startswith("head.")}
    save_file(headless, tmp_path / "vit.safetensors")
    assert load(tmp_path / "vit.safetensors").dim == DIM
    with pytest.raises(TeacherError, match="holds no classifier"):
        load(tmp_path / "vit.safetensors", feature_point="logits")


def test_a_tag_is_timms_or_an_error_and_never_a_random_teacher() -> None:
    with pytest.raises(TeacherError, match=r"no weights 'dinno'.*did you mean"):
        load_teacher(options("dinno", "vit_small_patch16_224"), CPU)
    with pytest.raises(TeacherError, match="cannot load timm's weights vit_small_patch16_224"):
        load_teacher(options("dino", "vit_small_patch16_224"), CPU)


def test_a_missing_file_is_told_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no such file"):
        check_teacher(options(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "timm"}, "needs pretrained"),
        ({"kind": "timm", "pretrained": "dino", "feature_point": "cls"}, "cls_pre_norm"),
        ({"pretrained": "openai", "feature_point": "logits"}, "of kind timm alone"),
        ({"kind": "timm", "pretrained": "dino", "input_px": 0}, "at least 1"),
        ({"kind": "timm", "pretrained": "dino", "top_k": 3}, "of feature_point logits alone"),
    ],
)
def test_options_that_say_nothing_sensible_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(TeacherOptions, {"model": VIT, **fields}, where="test")


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "least"), [("fp32", 1 - 1e-4), ("bf16", 0.99)])
def test_a_gpu_gives_a_cpus_vectors(weights: Path, precision: str, least: float) -> None:
    spec = options(weights, feature_point="cls_pre_norm", precision=precision)
    on_gpu = load_teacher(spec, torch.device("cuda")).encode_images(views()).cpu()
    on_cpu = load(weights, feature_point="cls_pre_norm").encode_images(views())
    assert on_gpu.dtype == torch.float32
    assert float(torch.cosine_similarity(on_gpu, on_cpu).min()) > least
