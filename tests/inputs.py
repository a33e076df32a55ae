"""Makes real, tiny inputs: images, shards, a teacher, a cache."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

NUM_CLASSES = 3
IMAGE_PX = 32
TINY_RECIPE = """
name: shapes
teacher: {{model: "local-dir:{teacher}", batch_size: 16}}
views: 2
schedule: {{name: mild, crop_scale: [0.7, 1.0]}}
prompts: {{file: "{prompts}", anchors: context, zeroshot: plain}}
student: {{model: resnet10t}}
losses:
  csm_ce: {{weight: 1}}
  entmin: {{weight: 1}}
  ism: {{weight: 10}}
training: {{epochs: 2, batch_size: 8, learning_rate: 0.02, held_out_rows: 0}}
max_skip_fraction: 0.1
"""
VISION_RECIPE = """
name: vision
teacher:
  {{kind: timm, model: vit_tiny_patch16_224, pretrained: "local-dir:{weights}", input_px: 32,
    feature_point: cls_pre_norm, batch_size: 16}}
views: 2
schedule: {{name: mild, crop_scale: [0.9, 1.0]}}
captions: true
student: {{model: resnet10t}}
losses: {{mse: {{}}}}
training: {{epochs: 2, batch_size: 8, learning_rate: 0.02, held_out_rows: 0}}
max_skip_fraction: 0.1
"""
SHARED_RECIPE = """
student:
  model: shared
  shared: {{image: test_vit, image_layers: 2, text: "{text}", text_layers: 2, max_tokens: 16}}
prompts: {{file: "{prompts}", zeroshot: plain}}
losses: {{itc: {{}}, kd_bank: {{bank: 20}}}}
training:
  {{epochs: 2, batch_size: 8, optimizer: adamw, learning_rate: 0.001, held_out_rows: 6, ema: 0.5}}
probes: {{run: [zeroshot, retrieval, linear]}}
max_skip_fraction: 0.1
"""
PROMPTS = """
dataset: shapes
classes:
  - {name: red square, coarse: warm shape}
  - {name: green square, coarse: cool shape}
  - {name: blue square, coarse: cool shape}
prompt_sets:
  context: ["A photo of a {label}, categorized as {coarse}."]
  plain: ["A photo of a {label}.", "A drawing of a {label}."]
"""


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Encode uint8 [H,W] or [H,W,3] pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def square(label: int, seed: int, width: int = 40, height: int = 36) -> np.ndarray:
    """Return a noisy image with a square of the class's colour."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
    top, left = generator.integers(2, 10, 2)
    pixels[top : top + 20, left : left + 20, label] += 180
    return pixels


def labelled_samples(count: int, seed: int = 0) -> list[tuple[str, dict[str, bytes]]]:
    """Return (key, members) pairs, classes in turn, one in four a JPEG."""
    pairs = []
    for i in range(count):
        label = i % NUM_CLASSES
        kind = "JPEG" if i % 4 == 3 else "PNG"
        extension = {"JPEG": "jpg", "PNG": "png"}[kind]
        image = encode(square(label, seed * 10_000 + i), kind)
        pairs.append((f"{i:05d}", {extension: image, "cls": str(label).encode()}))
    return pairs


def captions_at(place: int) -> list[str]:
    """Return the captions of the sample at a place: one, or four to seven; the eighth has none."""
    count = 0 if place == 7 else (1, 4, 5, 6, 7)[place % 5]
    return [f"Square {place} in words of kind {n}." for n in range(count)]


def captioned_samples(count: int, seed: int = 0) -> list[tuple[str, dict[str, bytes]]]:
    """Return the labelled samples with captions, in `.txt` if there is one, in `.json` if more."""
    pairs = labelled_samples(count, seed)
    for place, (_, members) in enumerate(pairs):
        captions = captions_at(place)
        if captions:
            members["txt"] = captions[0].encode()
        if len(captions) > 1:
            members["json"] = json.dumps({"captions": captions, "url": "x"}).encode()
    return pairs


def make_teacher(folder: Path, seed: int, **vision: object) -> Path:
    """Save a small open_clip model (weights drawn from `seed`) as a local-dir: folder.

    vision: what differs from a ViT of one layer, in the terms of open_clip's `vision_cfg`.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = {
        "embed_dim": 16,
        "quick_gelu": False,
        "vision_cfg": {
            "image_size": IMAGE_PX,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 16,
            **vision,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    preprocess = {
        "size": IMAGE_PX,
        "mode": "RGB",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**json.loads(json.dumps(config)))
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    return folder


def build(
    cache: Path,
    shards: Path,
    recipe: Path,
    *overrides: str,
    workers: int = 0,
    extend: bool = False,
    views_per_unit: int | None = None,
) -> Path:
    """Run stage one in this process."""
    from pipeline.cluster import Place
    from pipeline.embed import build_cache
    from pipeline.recipe import load_recipe
    from pipeline.shards import find_shards

    loaded = load_recipe(str(recipe), overrides)
    build_cache(
        cache,
        find_shards([str(shards)]),
        loaded.cache_options(),
        recipe=loaded.resolved(),
        place=Place(workers=workers, device="cpu"),
        extend=extend,
        views_per_unit=views_per_unit,
    )
    return cache


def save_vit(file: Path) -> None:
    """Save a very small ViT with random weights that a vision-only teacher is made of."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    save_file(model.state_dict(), file)
