"""Trains and scores the ablation with frozen encoders; leaves one folder behind.

frozen.safetensors   the trained weights: both sides and what they share; the encoders are not in it
frozen.json          options, what it was made from, losses, scores

It is in neither source document: there, both encoders are trained.
"""

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import durable, runtime
from pipeline.cache import layout
from pipeline.cache.captions import Captions
from pipeline.checkpoints import read_tensors
from pipeline.errors import RunError
from pipeline.frozen.features import FrozenSplit, open_splits
from pipeline.frozen.model import FrozenPair
from pipeline.frozen.options import FrozenOptions
from pipeline.frozen.scores import by_chance, score_pair
from pipeline.frozen.training import train_pair
from pipeline.options import parse, to_mapping

WEIGHTS, TOLD = "frozen.safetensors", "frozen.json"
FORMAT, VERSION = "beamclip-frozen", 1
WHAT = "an ablation: frozen image and text encoders, a trained shared part; not the document's"


def run_frozen(
    cache: Path,
    to: Path,
    spec: FrozenOptions,
    *,
    train_captions: str = "train",
    test_captions: str = "test",
) -> dict[str, Any]:
    """Train on the captions of one split, score on another's, publish a folder; return its JSON.

    to: must not be there yet; it appears whole or not at all. Raises RunError if it is,
    CacheError and CacheMismatchError as `open_splits`, StudentError as `train_pair`.
    """
    if to.exists():
        raise RunError(f"{to} is there already: name another --to, or take it away")
    train, test = open_splits(cache, train_captions, test_captions)
    began = time.monotonic()
    model, losses = train_pair(train, spec)
    hours = (time.monotonic() - began) / 3600
    told = {
        "format": FORMAT,
        "version": VERSION,
        "what": WHAT,
        "options": to_mapping(spec),
        **_made_from(train, test),
        "threads": torch.get_num_threads(),
        "versions": runtime.versions(),
        "commit": runtime.git_commit(),
        "hours": hours,
        "losses": losses,
        "scores": {"frozen": score_pair(model, test), "chance": by_chance(test)},
    }
    _publish(to, model, told)
    return told


def load_pair(folder: Path) -> tuple[FrozenPair, dict[str, Any]]:
    """Return a published model and what its JSON says; raises RunError if it is not whole."""
    try:
        told = dict(json.loads((folder / TOLD).read_text(encoding="utf-8")))
        found = (told["format"], told["version"])
        spec = parse(FrozenOptions, told["options"], where=str(folder / TOLD))
        dims = int(told["teacher"]["dim"]), int(told["text_encoder"]["dim"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder} holds no model of `beamclip frozen` ({error!r}): make it again"
        ) from None
    if found != (FORMAT, VERSION):
        raise RunError(f"{folder}: expected {FORMAT} version {VERSION}, found {found}")
    model = FrozenPair(*dims, spec.width, spec.inner)
    try:
        model.load_state_dict(read_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        raise RunError(f"{folder / WEIGHTS} is not of {TOLD}: {error}") from None
    return model.eval(), told


def _made_from(train: FrozenSplit, test: FrozenSplit) -> dict[str, Any]:
    shared_N = np.isin(_digests(test), _digests(train))
    return {
        "cache": {
            "path": str(train.cache.path),
            "generation": train.cache.manifest["generation"],
            "schedule": train.cache.schedule_name,
            "views": train.cache.num_views,
            "digests": {"train": train.cache.digest, "test": test.cache.digest},
        },
        "teacher": train.cache.manifest["teacher"],
        "text_encoder": dict(train.encoder),
        "captions": {"train": _of_captions(train), "test": _of_captions(test)},
        "test_images_in_train": int(shared_N.sum()),  # byte for byte: these flatter the scores
    }


def _of_captions(split: FrozenSplit) -> dict[str, Any]:
    captions: Captions = split.captions
    return {
        "name": captions.name,
        "split": split.cache.split,
        "captions": len(split.told()),
        "images": len(np.unique(captions.rows_K[split.told()])),
        "embeddings_sha256": layout.array_digest(captions.embeddings_KD),
    }


def _digests(split: FrozenSplit) -> np.ndarray:
    valid_N = np.flatnonzero(split.cache.column("valid"))
    return np.asarray(split.cache.column("digest")[valid_N])


def _publish(to: Path, model: FrozenPair, told: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    with durable.storing("the model", to), _beside(to) as temporary:
        save_file(model.state_dict(), temporary / WEIGHTS)
        durable.write_json(temporary / TOLD, told)
        if not durable.publish_folder(temporary, to):
            raise RunError(f"{to} was made by another process meanwhile: name another --to")


@contextlib.contextmanager
def _beside(to: Path) -> Iterator[Path]:
    """Yield a new folder beside `to`, and take away what is left of it."""
    temporary = to.with_name(f".{to.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
