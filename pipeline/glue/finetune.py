"""Fine-tunes a copy of a text encoder on one task.

Shape letters: N examples, B batch, L places of a text, E width, C outputs.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ProbeError
from pipeline.glue.choices import GlueOptions
from pipeline.glue.encoder import TextEncoder
from pipeline.glue.tasks import TASKS, Task
from pipeline.glue.tokens import TokenBatch, Tokens
from pipeline.runtime import Advance

_STD = 0.02  # of BERT's initial weights
_SCORED_AT_A_TIME = 128


class Classifier(nn.Module):
    """An encoder, BERT's pooler (tanh of a linear map) over CLS, dropout, a linear map."""

    def __init__(self, encoder: TextEncoder, outputs: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooler = nn.Linear(encoder.width, encoder.width)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(encoder.width, outputs)
        for layer in (self.pooler, self.last):
            nn.init.normal_(layer.weight, std=_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor, types_BL: Tensor | None) -> Tensor:
        """Return float [B,C]."""
        states_BLE = self.encoder(tokens_BL, mask_BL, types_BL)
        pooled_BE = torch.tanh(self.pooler(states_BLE[:, 0]))
        outputs_BC: Tensor = self.last(self.dropout(pooled_BE))
        return outputs_BC


def finetune(
    encoder: TextEncoder,
    name: str,
    train: tuple[Tokens, np.ndarray],
    dev: Mapping[str, Tokens],
    spec: GlueOptions,
    *,
    device: torch.device,
    advance: Advance,
) -> dict[str, np.ndarray]:
    """Train a copy of the encoder on tokens and labels [N]; return what it says of each of dev.

    That is classes, int64 [N], or numbers, float32 [N]. The same options, seed, device and number
    of threads give the same on a CPU; a GPU's kernels may add in another order. Raises ProbeError
    if the loss is no longer a number.
    """
    task = TASKS[name]
    seed = _seed(spec.seed, name)
    with _seeded(seed, device):
        model = Classifier(copy.deepcopy(encoder), task.outputs, spec.dropout).to(device).train()
        _train(model, task, *train, spec, seed=seed, device=device, advance=advance)
    model.eval()
    return {part: _say(model, task, tokens, spec, device) for part, tokens in dev.items()}


def _seed(seed: int, name: str) -> int:
    """Return a task's own seed: its score does not depend on which others are run."""
    return int.from_bytes(blake2b(f"{seed} {name}".encode(), digest_size=7).digest(), "little")


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators, which dropout draws from, and leave them as they were."""
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):
        torch.manual_seed(seed)
        yield


def _train(
    model: Classifier,
    task: Task,
    tokens: Tokens,
    labels_N: np.ndarray,
    spec: GlueOptions,
    *,
    seed: int,
    device: torch.device,
    advance: Advance,
) -> None:
    optimizer = _optimizer(model, spec)
    last, step = num_steps(len(tokens), spec), 0
    order = torch.Generator().manual_seed(seed)
    for epoch in range(spec.epochs):
        total = torch.zeros((), device=device)
        for rows_B in _batches(len(tokens), spec.batch_size, order):
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * rate(step, last, spec.warmup)
            labels_B = torch.from_numpy(labels_N[rows_B]).to(device)
            outputs_BC = _outputs(model, tokens.batch(rows_B), spec, device)
            loss = _loss(task, outputs_BC, labels_B)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if spec.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
            optimizer.step()
            total += loss.detach()
            step += 1
            advance(1)
        if not math.isfinite(total.item()):  # asked once an epoch: a GPU would wait at every step
            raise ProbeError(
                f"{task.folder}: the loss is no number after epoch {epoch + 1}; take a lower "
                "learning_rate"
            )


def _batches(count: int, size: int, order: torch.Generator) -> Iterator[list[int]]:
    """Yield every row once, in a random order; the last batch may be smaller."""
    rows: list[int] = torch.randperm(count, generator=order).tolist()
    yield from (rows[start : start + size] for start in range(0, count, size))


def num_steps(count: int, spec: GlueOptions) -> int:
    """Return how many steps the training on so many examples takes."""
    return math.ceil(count / spec.batch_size) * spec.epochs


def rate(step: int, last: int, warmup: float) -> float:
    """Return the share of the learning rate in a step: linear warm-up, then linearly to 0."""
    warm = warmup * last
    return min(1.0, (step + 1) / warm) if step < warm else (last - step) / (last - warm)


def _optimizer(model: nn.Module, spec: GlueOptions) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.learning_rate)


def _outputs(
    model: Classifier, batch: TokenBatch, spec: GlueOptions, device: torch.device
) -> Tensor:
    tokens_BL, mask_BL, types_BL = batch
    with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
        outputs_BC: Tensor = model(
            tokens_BL.to(device),
            mask_BL.to(device),
            None if types_BL is None else types_BL.to(device),
        )
    return outputs_BC.float()


def _loss(task: Task, outputs_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the cross-entropy of classes; of numbers, the mean squared error."""
    if task.labels:
        return F.cross_entropy(outputs_BC, labels_B)
    return F.mse_loss(outputs_BC[:, 0], labels_B)


@torch.no_grad()
def _say(
    model: Classifier, task: Task, tokens: Tokens, spec: GlueOptions, device: torch.device
) -> np.ndarray:
    """Return what a model says of each example; those of like length are read together."""
    order_N = np.argsort(tokens.lengths_N(), kind="stable")
    said_NC = np.empty((len(tokens), task.outputs), np.float32)
    for start in range(0, len(tokens), _SCORED_AT_A_TIME):
        rows_B = order_N[start : start + _SCORED_AT_A_TIME]
        said_NC[rows_B] = _outputs(model, tokens.batch(rows_B.tolist()), spec, device).cpu().numpy()
    return said_NC.argmax(1) if task.labels else said_NC[:, 0]
