"""Fixtures: squares of one colour on a ground of another, captions that say which, their cache."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.caption_sets import add_captions
from pipeline.frozen.texts import TextFeatureOptions
from pipeline.shards import find_shards, write_shards
from pipeline.text_tiny import TextTinyOptions, train_tiny_text_encoder
from tests.inputs import build, encode, save_vit

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "yellow": (220, 220, 20),
    "white": (240, 240, 240),
}
PAIRS = tuple(itertools.permutations(COLOURS, 2))  # 20 test images, no two alike
RECIPE = """
name: colours
teacher:
  {{kind: timm, model: vit_tiny_patch16_224, pretrained: "local-dir:{weights}", input_px: 32,
    feature_point: cls_pre_norm, batch_size: 64}}
views: 2
schedule: {{name: plain, crop_scale: [0.9, 1.0], jitter: 0, grayscale: 0, blur: 0}}
captions: true
student: {{model: resnet10t}}
losses: {{mse: {{}}}}
training: {{epochs: 1}}
"""


def _picture(square: str, ground: str, seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    pixels = np.empty((32, 32, 3), np.int64)
    pixels[:] = COLOURS[ground]
    top, left = generator.integers(6, 10, 2)
    pixels[top : top + 16, left : left + 16] = COLOURS[square]
    pixels += generator.integers(-15, 15, pixels.shape)
    return encode(pixels.clip(0, 255).astype(np.uint8))


def _samples(rounds: int, seed: int) -> list[tuple[str, dict[str, bytes]]]:
    """Return every pair of colours `rounds` times, each with one of two wordings."""
    found = []
    for number, (square, ground) in enumerate(PAIRS * rounds):
        text = f"a {square} square on {ground} ground"
        if number // len(PAIRS) % 2:
            text = f"on {ground}, a square in {square}"
        picture = _picture(square, ground, seed * 10_000 + number)
        found.append((f"{number:05d}", {"png": picture, "txt": text.encode()}))
    return found


@pytest.fixture(scope="session")
def colour_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 train samples, 20 test samples."""
    folder = tmp_path_factory.mktemp("colours")
    write_shards(_samples(8, seed=1), folder, "train", per_shard=100)
    write_shards(_samples(1, seed=2), folder, "test", per_shard=100)
    return folder


@pytest.fixture(scope="session")
def colour_texts(tmp_path_factory: pytest.TempPathFactory, colour_shards: Path) -> Path:
    """A small BERT that has read the captions, and seen no image."""
    folder = tmp_path_factory.mktemp("texts") / "bert"
    spec = TextTinyOptions(epochs=4, max_tokens=16)
    train_tiny_text_encoder(find_shards([str(colour_shards)]), folder, spec)
    return folder


@pytest.fixture(scope="session")
def plain_cache(tmp_path_factory: pytest.TempPathFactory, colour_shards: Path) -> Path:
    """A sealed cache by a ViT with random weights; its captions are texts alone."""
    folder = tmp_path_factory.mktemp("colour-cache")
    save_vit(folder / "vit.safetensors")
    recipe = folder / "colours.yaml"
    recipe.write_text(RECIPE.format(weights=folder / "vit.safetensors"), encoding="utf-8")
    return build(folder / "cache", colour_shards, recipe)


@pytest.fixture(scope="session")
def colour_cache(
    tmp_path_factory: pytest.TempPathFactory,
    plain_cache: Path,
    colour_shards: Path,
    colour_texts: Path,
) -> Path:
    """The same with both sets embedded; read it, never change it."""
    import shutil

    cache = Path(shutil.copytree(plain_cache, tmp_path_factory.mktemp("embedded") / "cache"))
    spec = TextFeatureOptions(text=str(colour_texts), max_tokens=16)
    for split in ("train", "test"):
        add_captions(
            cache, find_shards([str(colour_shards)]), split=split, device="cpu", encoder=spec
        )
    return cache
