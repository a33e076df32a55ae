"""Trains a small open_clip teacher on labelled shards, for use where no weights can be had.

What it leaves behind is an ordinary open_clip folder; stage one cannot tell it from another.
"""

import json
import logging
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pipeline import durable, runtime
from pipeline.decode import DecodePolicy, SourceImage, decode
from pipeline.errors import DataError, SampleError
from pipeline.options import options, to_mapping
from pipeline.prompt_file import PromptFile
from pipeline.prompts import prompt_set
from pipeline.schedule import Schedule, philox_words
from pipeline.shards import Shard, read_samples
from pipeline.teacher import Preprocess
from pipeline.views import render_geometry

_log = logging.getLogger(__name__)


@options
class TinyOptions:
    """A teacher's size and its training; the defaults take about 20 s on 2 cores for digits."""

    image_px: int = 32
    embed_dim: int = 64
    image_width: int = 16
    text_width: int = 64
    text_layers: int = 2
    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0


def train_tiny_teacher(
    shards: Sequence[Shard], prompts: PromptFile, folder: Path, spec: TinyOptions
) -> dict[str, float]:
    """Train on the labelled train shards and write an open_clip folder; raises DataError.

    Every class is described by all templates of all prompt sets, but for variants of a set (as
    `cpa.article` is of `cpa`); the loss is CLIP's, image to text, over the classes. Returns the
    last epoch's loss and the logit scale.
    """
    if folder.exists():
        raise DataError(f"{folder} already exists: remove it to train another teacher")
    images, labels = _labelled_images(shards, len(prompts.classes))
    names = [name for name in prompts.prompt_sets if name.partition(".")[0] == name]
    texts = [prompt_set(prompts, name).texts for name in names or prompts.prompt_sets]
    texts_TC = [list(texts_C) for prompt in texts for texts_C in zip(*prompt, strict=True)]
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        model, tokenizer = _build(spec)
        loss = _train(model, tokenizer, images, labels, texts_TC, spec)
    _save(model, folder, spec)
    return {"loss": loss, "logit_scale": float(model.logit_scale.detach().exp())}


def _labelled_images(
    shards: Sequence[Shard], num_classes: int
) -> tuple[list[SourceImage], torch.Tensor]:
    """Decode every train image into memory."""
    train = [shard for shard in shards if shard.split == "train"]
    policy, images, numbers, skipped = DecodePolicy(), [], [], 0
    for sample in (sample for shard in train for sample in read_samples(shard)):
        try:
            label = sample.label()
            pixels_HW3 = decode(sample.image().content, policy)
            images.append(SourceImage.of(pixels_HW3))
            numbers.append(label)
        except SampleError as error:
            skipped += 1
            _log.warning("left out sample %s: %s", sample.key, error)
    if not numbers or min(numbers) < 0 or max(numbers) >= num_classes:
        raise DataError(
            f"expected train shards whose every sample has a .cls from 0 to {num_classes - 1}; "
            f"found {len(numbers)} samples in {len(train)} train shards ({skipped} left out), "
            f"labels {min(numbers, default='-')} to {max(numbers, default='-')}"
        )
    return images, torch.tensor(numbers)


def _model_config(spec: TinyOptions) -> dict[str, Any]:
    return {
        "embed_dim": spec.embed_dim,
        "quick_gelu": False,
        "vision_cfg": {
            "image_size": spec.image_px,
            "layers": [1, 1, 1, 1],
            "width": spec.image_width,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": spec.text_width,
            "heads": max(1, spec.text_width // 32),
            "layers": spec.text_layers,
        },
    }


def _build(spec: TinyOptions) -> tuple[Any, Any]:
    import open_clip

    model = open_clip.CLIP(**_model_config(spec))
    return model, open_clip.SimpleTokenizer(context_length=model.context_length)


def _train(
    model: Any,
    tokenizer: Any,
    images: list[SourceImage],
    labels: torch.Tensor,
    texts_TC: list[list[str]],
    spec: TinyOptions,
) -> float:
    """Train with AdamW and one cosine; return the mean loss of the last epoch."""
    schedule = Schedule(
        crop_scale=(0.7, 1.0), crop_ratio=(0.9, 1.1), flip=0, jitter=0, grayscale=0, blur=0
    )
    tokens_TC = [tokenizer(texts_C) for texts_C in texts_TC]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
    )
    steps = -(-len(images) // spec.batch_size)
    curve = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.epochs * steps)
    mean_loss = 0.0
    model.train()
    with runtime.progress("training the teacher", spec.epochs * len(images), "images") as advance:
        for epoch in range(spec.epochs):
            total = 0.0
            words = philox_words(np.array([spec.seed, 1], np.uint64), epoch, len(images))
            for step, rows in enumerate(np.array_split(np.argsort(words, kind="stable"), steps)):
                views = _render(images, rows, schedule, epoch, spec.image_px)
                tokens_C = tokens_TC[(epoch * steps + step) % len(tokens_TC)]
                loss = _contrast(model, views, tokens_C, labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                curve.step()
                total += float(loss.detach()) * len(rows)
                advance(len(rows))
            mean_loss = total / len(images)
    return mean_loss


def _render(
    images: list[SourceImage], rows: np.ndarray, schedule: Schedule, epoch: int, size: int
) -> torch.Tensor:
    """Render one view per row as floats from -1 to 1."""
    views = []
    for row in rows:
        width, height = images[row].width, images[row].height
        params = schedule.params(str(row), epoch, width, height)
        views.append(render_geometry(images[row], [params], size)[0])
    return torch.stack(views).contiguous().float() / 127.5 - 1


def _contrast(
    model: Any, views: torch.Tensor, tokens_C: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    image_BD = model.encode_image(views, normalize=True)
    text_CD = model.encode_text(tokens_C, normalize=True)
    return F.cross_entropy(model.logit_scale.exp() * image_BD @ text_CD.T, labels)


def _save(model: Any, folder: Path, spec: TinyOptions) -> None:
    """Write weights, then the configuration with every preprocessing field, as one folder."""
    from safetensors.torch import save

    half = (0.5, 0.5, 0.5)
    preprocess = Preprocess(
        size=spec.image_px, mean=half, std=half, interpolation="bicubic", resize_mode="shortest"
    )
    config = {
        "model_cfg": _model_config(spec),
        "preprocess_cfg": {**to_mapping(preprocess), "mode": "RGB", "fill_color": 0},
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        (temporary / "open_clip_model.safetensors").write_bytes(save(tensors))
        text = json.dumps(config, indent=1)
        (temporary / "open_clip_config.json").write_text(text, encoding="utf-8")
        durable.publish_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
