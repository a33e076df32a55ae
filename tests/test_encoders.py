"""Any encoder sees images as its own library shows them, and gives what its own library gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from pipeline.encoders import Encoder, PlainOptions, open_encoder
from pipeline.errors import ProbeError, StudentError, TeacherError
from tests.inputs import encode, make_teacher, square

CPU = torch.device("cpu")
SIZES = [(40, 36), (36, 41), (53, 97), (33, 32), (32, 32), (201, 119)]  # odd margins too
RESNET = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "patch_size": None}
TIMM = {"timm_model_name": "test_resnet", "timm_model_pretrained": False, "timm_pool": "avg"}
TOWERS = {
    "vit": {},
    "resnet": RESNET,
    "timm": {**TIMM, "timm_proj": "linear"},
    "timm mlp": {**TIMM, "timm_proj": "mlp"},
    "timm alone": {**TIMM, "timm_proj": ""},
}


def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for seed, (width, height) in enumerate(SIZES):
        for kind in ("PNG", "JPEG"):
            path = tmp_path / f"{seed}.{kind}"
            path.write_bytes(encode(square(seed % 3, seed, max(32, width), max(32, height)), kind))
            paths.append(path)
    return paths


def rendered(encoder: Encoder, paths: list[Path]) -> Tensor:
    return torch.stack([encoder.view.render(path.read_bytes()) for path in paths])


def weights_of(model: str, path: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save({"state_dict": timm.create_model(model, num_classes=7).state_dict()}, path)
    return path


class TestOpenClip:
    @pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    def test_pixels_are_its_own_preprocessing_byte_for_byte(
        self, tmp_path: Path, mode: str, interpolation: str
    ) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        folder = make_teacher(tmp_path / "teacher", seed=0)
        config = folder / "open_clip_config.json"
        text = config.read_text(encoding="utf-8").replace("bicubic", interpolation)
        config.write_text(text.replace('"shortest"', f'"{mode}"'), encoding="utf-8")
        paths = pictures(tmp_path)
        views = rendered(open_encoder(str(folder), PlainOptions(), CPU), paths)
        plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
        own = image_transform_v2(
            PreprocessCfg(size=32, interpolation=interpolation, resize_mode=mode, **plain),
            is_train=False,
        )
        for path, view in zip(paths, views, strict=True):
            expected = (own(Image.open(path)) * 255).round().to(torch.uint8)
            assert torch.equal(view, expected), path

    @pytest.mark.parametrize("tower", TOWERS)
    def test_features_and_embedding_are_the_models_own(self, tmp_path: Path, tower: str) -> None:
        import open_clip

        folder = make_teacher(tmp_path / "teacher", seed=0, **TOWERS[tower])
        encoder = open_encoder(f"local-dir:{folder}", PlainOptions(), CPU)
        paths = pictures(tmp_path)
        with torch.inference_mode():
            features_BF, embedding_BD = encoder.encode(rendered(encoder, paths))
        model, own = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        pixels = torch.stack([own(Image.open(path)) for path in paths])
        with torch.inference_mode():
            expected_BD = model.eval().encode_image(pixels, normalize=True)
            visual = model.visual
            if tower == "vit":
                raw_BF, last = visual._pool(visual.transformer(visual._embeds(pixels)))[0], None
                projected = raw_BF @ visual.proj
            elif tower in ("timm", "timm mlp"):
                raw_BF, last = visual.trunk(pixels), visual.head
                projected = last(raw_BF)
            else:
                raw_BF = projected = visual(pixels)
        torch.testing.assert_close(embedding_BD, expected_BD, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(features_BF, raw_BF, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(F.normalize(projected, dim=-1), embedding_BD)
        assert (features_BF.shape[1] == 16) == (tower in ("resnet", "timm alone"))

    def test_weights_or_pixels_tell_one_from_another(self, tmp_path: Path) -> None:
        folders = [make_teacher(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
        one, other = (open_encoder(str(f), PlainOptions(), CPU).identity for f in folders)
        moved = folders[0].rename(tmp_path / "moved")
        assert open_encoder(f"local-dir:{moved}", PlainOptions(), CPU).identity == one != other

    def test_a_name_without_a_tag_lists_the_tags(self) -> None:
        with pytest.raises(TeacherError, match=r"RN50 needs `pretrained`, one of: openai"):
            open_encoder("open_clip:RN50", PlainOptions(), CPU)


class TestPlainWeights:
    @pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
    def test_pixels_and_features_are_timms_own(self, tmp_path: Path, model: str) -> None:
        weights = weights_of(model, tmp_path / "w.pth")
        encoder = open_encoder(str(weights), PlainOptions(model=model), CPU)
        theirs = timm.create_model(model, num_classes=7).eval()
        theirs.load_state_dict(torch.load(weights)["state_dict"])
        theirs.reset_classifier(0)
        config = timm.data.resolve_model_data_config(theirs)
        shown = timm.data.create_transform(**config, is_training=False, normalize=False)
        whole = timm.data.create_transform(**config, is_training=False)
        paths = pictures(tmp_path)
        views = rendered(encoder, paths)
        for path, view in zip(paths, views, strict=True):
            assert torch.equal(view, shown(Image.open(path).convert("RGB"))), path
        with torch.inference_mode():
            features_BF, embedding_BD = encoder.encode(views)
            expected_BF = theirs(torch.stack([whole(Image.open(path)) for path in paths]))
        torch.testing.assert_close(features_BF, expected_BF, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            embedding_BD, F.normalize(expected_BF, dim=-1), atol=1e-5, rtol=1e-4
        )

    @pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
    @pytest.mark.parametrize("crop_mode", ["center", "squash"])
    def test_any_margin_is_cut_as_timm_cuts_it(
        self, tmp_path: Path, crop_pct: float, crop_mode: str
    ) -> None:
        from pipeline.encoders import timm_view

        model = timm.create_model("test_resnet", num_classes=0)
        model.default_cfg |= {"crop_pct": crop_pct, "crop_mode": crop_mode}
        view = timm_view(model.default_cfg, "test", 61)
        config = {**timm.data.resolve_model_data_config(model), "input_size": (3, 61, 61)}
        shown = timm.data.create_transform(**config, is_training=False, normalize=False)
        for path in pictures(tmp_path):
            found = view.render(path.read_bytes())
            assert torch.equal(found, shown(Image.open(path).convert("RGB"))), path

    def test_at_a_size_of_the_users_nothing_is_cut_from_the_shorter_side(
        self, tmp_path: Path
    ) -> None:
        weights = weights_of("test_resnet", tmp_path / "w.pth")
        plain = PlainOptions(model="test_resnet", input_px=32)
        view = open_encoder(str(weights), plain, CPU).view
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        found = view.render(encode(pixels))
        assert torch.equal(found, torch.from_numpy(pixels).permute(2, 0, 1))

    def test_without_a_model_the_option_is_named(self, tmp_path: Path) -> None:
        weights = weights_of("test_resnet", tmp_path / "w.pth")
        with pytest.raises(ProbeError, match="holds weights, and does not say of what: give --mod"):
            open_encoder(str(weights), PlainOptions(), CPU)

    def test_of_another_architecture_are_refused(self, tmp_path: Path) -> None:
        weights = weights_of("test_vit", tmp_path / "w.pth")
        with pytest.raises(StudentError, match="no weights of this backbone"):
            open_encoder(str(weights), PlainOptions(model="test_resnet"), CPU)


class TestTimm:
    def test_weights_that_cannot_be_had_are_an_error(self) -> None:
        with pytest.raises(StudentError, match=r"cannot load timm's weights resnet18\.a1_in1k"):
            open_encoder("timm:resnet18", PlainOptions(), CPU)

    def test_weights_are_those_of_the_hubs_local_cache(self, tmp_path: Path) -> None:
        """A cache as the hub's client leaves it; read in a process of its own, offline."""
        whole = timm.create_model("test_resnet", num_classes=1000)
        folder = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        save_file(whole.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
        save_file(whole.state_dict(), tmp_path / "w.safetensors")
        code = f"""
import torch
from pipeline.encoders import PlainOptions, open_encoder
cpu, path = torch.device("cpu"), {str(tmp_path / "w.safetensors")!r}
encoders = [
    open_encoder("timm:test_resnet", PlainOptions(), cpu),
    open_encoder(path, PlainOptions(model="test_resnet"), cpu),
]
views = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
with torch.inference_mode():
    one, other = (encoder.encode(views)[0] for encoder in encoders)
assert torch.equal(one, other)
assert encoders[0].view == encoders[1].view
"""
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr


def test_what_is_no_encoder_names_the_forms(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"expected open_clip:NAME/TAG, local-dir:FOLDER, timm"):
        open_encoder(str(tmp_path / "nothing"), PlainOptions(), CPU)
