"""Trains the shared part from a cache alone: no image, no shard, no encoder is in memory.

Shape letters: B captions of a step, D image feature dimension, T text feature dimension.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import runtime
from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.errors import StudentError
from pipeline.frozen.features import FrozenSplit
from pipeline.frozen.model import FrozenPair
from pipeline.frozen.options import FrozenOptions
from pipeline.losses.contract import Sizes
from pipeline.losses.contrast import normalised
from pipeline.losses.terms import parse_terms
from pipeline.losses.total import LossSum
from pipeline.optimizing import build_optimizer, learning_rate
from pipeline.order import plan_epoch


def train_pair(split: FrozenSplit, spec: FrozenOptions) -> tuple[FrozenPair, list[float]]:
    """Train on every caption of a split and its image; return the model and each epoch's mean loss.

    Images that have several captions are met as often in an epoch, and their own other captions
    are no negatives. The same options, cache and number of torch's threads give the same bytes.
    Raises StudentError if the loss is no longer a number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model, losses = _built(split, spec)
    training = spec.training()
    optimizer = build_optimizer(nn.ModuleList([model, losses]), training)
    told_K, step, means = split.told(), 0, list[float]()
    with runtime.progress("training", spec.epochs, "epochs") as advance:
        for epoch in range(spec.epochs):
            plan = plan_epoch(len(told_K), spec.batch_size, spec.seed, epoch)
            total = 0.0
            for image_BD, text_BT, batch in _batches(split, told_K[plan], epoch):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, spec.epochs * len(plan), len(plan), training)
                loss, _ = losses(_outputs(model, image_BD, text_BT), batch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total, step = total + float(loss.detach()), step + 1
            if not math.isfinite(total):
                raise StudentError(
                    f"the loss is no number after epoch {epoch + 1}: take a lower --learning-rate "
                    f"than {spec.learning_rate}"
                )
            means.append(total / len(plan))
            advance(1, f"loss {means[-1]:.3f}")
    return model.eval(), means


def _built(split: FrozenSplit, spec: FrozenOptions) -> tuple[FrozenPair, LossSum]:
    model = FrozenPair(split.cache.dim, split.text_dim, spec.width, spec.inner)
    sizes = Sizes(
        num_features=spec.width,
        dim=split.cache.dim,
        num_anchors=0,
        num_classes=0,
        width=spec.width,
    )
    return model, LossSum(parse_terms({"itc": {}}, where="frozen"), sizes)


def _batches(
    split: FrozenSplit, plan: np.ndarray, epoch: int
) -> Iterator[tuple[Tensor, Tensor, TargetBatch]]:
    """Yield by a plan [steps,B] features of images, of texts, and what a loss is told of both."""
    for captions_B in plan:
        rows_B = split.captions.rows_K[captions_B]
        image_BD = torch.from_numpy(split.images(rows_B, epoch))
        text_BT = torch.from_numpy(split.captions.embeddings_KD[captions_B])
        yield image_BD, text_BT, _batch(image_BD, torch.from_numpy(rows_B))


def _batch(image_BD: Tensor, rows_B: Tensor) -> TargetBatch:
    """Return what a loss over pairs is told of a step: which rows it is of; nothing earlier."""
    return TargetBatch(
        target_BD=image_BD,
        anchors_AD=image_BD[:0],
        rows_B=rows_B,
        labels_B=torch.full_like(rows_B, -1),
        keys_GD=image_BD,
        bank_MD=image_BD[:0],
        key_rows_G=rows_B,
        bank_rows_M=rows_B[:0],
        norms_B=torch.ones(len(rows_B)),  # of the features as they are here
    )


def _outputs(model: FrozenPair, image_BD: Tensor, text_BT: Tensor) -> StudentOutputs:
    image, text = model(image_BD, text_BT)
    return StudentOutputs(image.output_BE, normalised(image.output_BE), image, text)
