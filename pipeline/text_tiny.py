"""Trains a small BERT on the captions of shards, for use where no weights can be had.

What it leaves behind is an ordinary folder of transformers'; a model of images and texts starts
from it as from any other. Shape letters: K texts, B batch, L places of a text, V vocabulary.
"""

import contextlib
import logging
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pipeline import durable, runtime
from pipeline.captions import MAX_TEXT_BYTES, captions_of
from pipeline.errors import DataError
from pipeline.options import options
from pipeline.schedule import philox_words
from pipeline.shards import Shard, read_samples
from pipeline.shared.library import load_library, quiet
from pipeline.text_vocabulary import MARKS, train_tokenizer

_log = logging.getLogger(__name__)
_HEAD_WIDTH = 32
_IGNORED = -100  # a place that was not hidden, in cross_entropy's words
_HIDDEN, _MASKED, _SWAPPED = 0.15, 0.8, 0.1  # BERT's: of all; of those masked; of those swapped


@options
class TextTinyOptions:
    """A text encoder's size and its training; the defaults take seconds for thousands of texts."""

    width: int = 64
    layers: int = 2
    vocabulary: int = 2000  # at most
    max_tokens: int = 64
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < _HEAD_WIDTH or self.width % _HEAD_WIDTH:
            raise ValueError(f"width is a multiple of {_HEAD_WIDTH}, not {self.width}")


def train_tiny_text_encoder(
    shards: Sequence[Shard], folder: Path, spec: TextTinyOptions
) -> dict[str, float]:
    """Train on the captions of the train shards and write a folder that transformers reads.

    A WordPiece vocabulary, then a BERT by masked language modelling (Devlin et al. 2019, section
    3.1, task 1). Equal captions, options and seed give equal files on one thread. Returns the last
    epoch's loss and how many captions and tokens of the vocabulary there are. Raises DataError if
    the folder exists or there is no caption, LibraryError if transformers is not installed.
    """
    if folder.exists():
        raise DataError(f"{folder} already exists: remove it to train another text encoder")
    load_library()
    texts = _captions(shards)
    tokenizer = train_tokenizer(texts, spec.vocabulary, spec.max_tokens)
    tokens_KL = torch.tensor([item.ids for item in tokenizer.encode_batch(texts)])
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        model = _build(spec, tokenizer.get_vocab_size())
        loss = _train(model, tokens_KL, spec)
    with _new_folder(folder) as temporary:
        _save(model, tokenizer, temporary, spec)
    return {"loss": loss, "captions": len(texts), "vocabulary": tokenizer.get_vocab_size()}


def _captions(shards: Sequence[Shard]) -> list[str]:
    """Return every caption of the train split; count those that cannot be taken."""
    train = [shard for shard in shards if shard.split == "train"]
    texts, left_out, read = list[str](), 0, 0
    for sample in (
        sample
        for shard in train
        for sample in read_samples(shard, max_image_bytes=-1, max_text_bytes=MAX_TEXT_BYTES)
    ):
        found = captions_of(sample.members)
        texts += found.texts
        left_out += len(found.left_out)
        read += 1
    if left_out:
        _log.warning("%d captions were left out", left_out)
    if not texts:
        raise DataError(
            f"none of {read} samples in {len(train)} train shards has a caption: expected a .txt, "
            "or a .json with `caption` or `captions`, beside the image"
        )
    return texts


def _build(spec: TextTinyOptions, vocabulary: int) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.width // _HEAD_WIDTH,
        intermediate_size=4 * spec.width,
        max_position_embeddings=spec.max_tokens,
        pad_token_id=MARKS.index("[PAD]"),
    )
    return BertForMaskedLM(config)


def _train(model: Any, tokens_KL: torch.Tensor, spec: TextTinyOptions) -> float:
    """Train with AdamW and one cosine; return the mean loss of the last epoch."""
    count = len(tokens_KL)
    steps = -(-count // spec.batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
    )
    curve = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.epochs * steps)
    losses = list[float]()
    model.train()
    with runtime.progress("training the text encoder", spec.epochs * count, "texts") as advance:
        for epoch in range(spec.epochs):
            losses.clear()
            words = philox_words(np.array([spec.seed, 2], np.uint64), epoch, count)
            for rows in np.array_split(np.argsort(words, kind="stable"), steps):
                loss = _guess(model, tokens_KL[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                curve.step()
                losses.append(float(loss.detach()))
                advance(len(rows))
    return float(np.mean(losses))


def _guess(model: Any, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Return the loss of guessing hidden tokens of a batch."""
    mask_BL = tokens_BL != MARKS.index("[PAD]")
    longest = int(mask_BL.sum(dim=1).max())
    tokens_BL, mask_BL = tokens_BL[:, :longest], mask_BL[:, :longest]
    hidden_BL = (tokens_BL >= len(MARKS)) & (torch.rand(tokens_BL.shape) < _HIDDEN)
    hidden_BL[:, 1] |= tokens_BL[:, 1] >= len(MARKS)  # at least one, or there is no loss
    logits_BLV = model(
        input_ids=_hide(tokens_BL, hidden_BL, model.config.vocab_size),
        attention_mask=mask_BL.long(),
    ).logits
    return F.cross_entropy(logits_BLV[hidden_BL], tokens_BL[hidden_BL])


def _hide(tokens_BL: torch.Tensor, hidden_BL: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Put [MASK] in hidden places, in some any other token, and leave some as they are."""
    draw_BL = torch.rand(tokens_BL.shape)
    others_BL = torch.randint(len(MARKS), vocabulary, tokens_BL.shape)
    masked_BL = tokens_BL.masked_fill(hidden_BL & (draw_BL < _MASKED), MARKS.index("[MASK]"))
    swapped_BL = hidden_BL & (draw_BL >= _MASKED) & (draw_BL < _MASKED + _SWAPPED)
    return torch.where(swapped_BL, others_BL, masked_BL)


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes `folder`, whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        durable.publish_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save(model: Any, tokenizer: Any, folder: Path, spec: TextTinyOptions) -> None:
    """Write weights, configuration and tokenizer as transformers does."""
    marks = {f"{mark[1:-1].lower()}_token": mark for mark in MARKS}
    reader = load_library().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=spec.max_tokens, **marks
    )
    with quiet():
        model.save_pretrained(folder)
        reader.save_pretrained(folder)
