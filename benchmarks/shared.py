"""A step of the second document's model from cached targets, and with its teacher in the loop.

Pairs lie on the device and are random, weights too; the model is of the real size (117M), the
teacher a ViT-B/16 without gradients, as the document has it. DEVICE, of the environment: cuda.
"""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Row, in_turn, ratios, row
from pipeline.contracts import TargetBatch, TokenBatch
from pipeline.joint import Joint
from pipeline.losses import LossSum, Sizes, parse_terms
from pipeline.optimizing import TrainOptions, autocast, build_optimizer
from pipeline.shared.contract import SharedOptions
from pipeline.shared.student import SharedStudent, build_shared

DEVICE = torch.device(os.environ.get("DEVICE", "cuda"))
BATCH = int(os.environ.get("BATCH", "256"))
STEPS, ROUNDS = 20, 5
PAIRS, EPOCHS = 3_264_868, 7  # the document's
DIM, TOKENS, BANK = 768, 64, 65_536
SPEC = TrainOptions(epochs=1, precision="bf16", optimizer="adamw", learning_rate=2e-4)


def rows() -> list[Row]:
    """Measure."""
    torch.manual_seed(0)
    student = _student()
    step = _Step(student)
    teacher = timm.create_model("vit_base_patch16_224", num_classes=0).to(DEVICE).eval()

    def live() -> Tensor:
        with torch.inference_mode(), autocast(SPEC, DEVICE):
            pixels = (step.views.float() - 127) / 127
            return F.normalize(teacher.forward_features(pixels)[:, 0].float(), dim=1).clone()

    cached, with_teacher = in_turn(
        lambda: _speed(lambda: step()), lambda: _speed(lambda: step(live())), rounds=ROUNDS
    )
    hours = [PAIRS * EPOCHS / speed / 3600 for speed in cached]
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    note = f"117M, batch {BATCH}, bf16, {name}"
    return [
        row("shared model: steps from cached targets", cached, "pairs/s", note=note),
        row("  with the teacher in the loop", with_teacher, "pairs/s", note="ViT-B/16, bf16"),
        row("  cached / in the loop", ratios(cached, with_teacher), "x"),
        row("  7 epochs of 3.26M pairs at that speed", hours, "h", note="steps alone, on paper"),
    ]


def _student() -> SharedStudent:
    """Build the model of the real size, with random weights."""
    with TemporaryDirectory() as folder:
        _bert(Path(folder))
        spec = SharedOptions(text=folder, text_init="scratch", max_tokens=TOKENS)
        return build_shared(spec, input_px=224, seed=0).to(DEVICE).train()


def _bert(folder: Path) -> None:
    """Write bert-base-uncased's configuration, with a tokenizer of its size and no sense."""
    from tokenizers import Tokenizer, models, processors
    from transformers import BertConfig

    config = BertConfig()
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    about = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **marks})
    (folder / "tokenizer_config.json").write_text(about, encoding="utf-8")


class _Step:
    """A step of ITC and contrast over the bank; of the targets that lie there, or of others."""

    def __init__(self, student: SharedStudent) -> None:
        terms = parse_terms({"itc": {}, "kd_bank": {"bank": BANK}}, where="benchmark")
        sizes = Sizes(DIM, DIM, 0, 0, width=student.width)
        self._joint = Joint(student, LossSum(terms, sizes)).to(DEVICE)
        self._optimizer = build_optimizer(self._joint, SPEC)
        self.views = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8, device=DEVICE)
        tokens_BL = torch.randint(4, 30_000, (BATCH, TOKENS), device=DEVICE)
        self._tokens = TokenBatch(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool))
        self._target_BD = F.normalize(torch.randn(BATCH, DIM, device=DEVICE), dim=1)
        self._bank_MD = F.normalize(torch.randn(BANK, DIM, device=DEVICE), dim=1)

    def __call__(self, target_BD: Tensor | None = None) -> None:
        keys_GD = self._target_BD if target_BD is None else target_BD
        rows_B = torch.arange(BATCH, device=DEVICE)
        batch = TargetBatch(
            target_BD=keys_GD,
            anchors_AD=keys_GD[:0],
            rows_B=rows_B,
            labels_B=rows_B,
            keys_GD=keys_GD,
            bank_MD=self._bank_MD,
            key_rows_G=rows_B,
            bank_rows_M=torch.arange(BANK, device=DEVICE) + BATCH,
            norms_B=torch.ones(BATCH, device=DEVICE),
            tokens=self._tokens,
        )
        self._optimizer.zero_grad(set_to_none=True)
        with autocast(SPEC, DEVICE):
            loss, _ = self._joint(self.views, batch)
        loss.backward()
        self._optimizer.step()


def _speed(step: Any) -> float:
    """Return pairs per second."""
    step()
    _wait()
    began = perf_counter()
    for _ in range(STEPS):
        step()
    _wait()
    return STEPS * BATCH / (perf_counter() - began)


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
