"""Training finds what images and captions have in common, and nothing where there is nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import StudentError
from pipeline.frozen.features import FrozenSplit, open_splits
from pipeline.frozen.options import FrozenOptions
from pipeline.frozen.scores import by_chance, score_pair
from pipeline.frozen.training import train_pair

SPEC = FrozenOptions(epochs=40, batch_size=64, width=64)
Splits = tuple[FrozenSplit, FrozenSplit]


@pytest.fixture
def splits(colour_cache: Path) -> Splits:
    return open_splits(colour_cache, "train", "test")


def shuffled(split: FrozenSplit) -> FrozenSplit:
    """Give every image another one's caption."""
    order_K = np.random.default_rng(0).permutation(len(split.captions.embeddings_KD))
    embeddings_KD = split.captions.embeddings_KD[order_K]
    return replace(split, captions=replace(split.captions, embeddings_KD=embeddings_KD))


def test_captions_find_images_that_were_never_seen_and_images_captions(splits: Splits) -> None:
    train, test = splits
    model, losses = train_pair(train, SPEC)
    assert losses[-1] < losses[0]
    scores, chance = score_pair(model, test), by_chance(test)
    for way in ("image_to_text_r1", "text_to_image_r1"):
        assert chance[way] == pytest.approx(1 / 20)
        assert scores[way] >= 0.75


def test_captions_of_other_images_teach_nothing(splits: Splits) -> None:
    train, test = splits
    scores = score_pair(train_pair(shuffled(train), SPEC)[0], test)
    for way in ("image_to_text_r1", "text_to_image_r1"):
        assert scores[way] <= 0.25  # of 20 draws at 1/20, more than 5 hits come once in 3,000


def test_a_seed_decides_every_byte_and_leaves_torchs_generator_alone(splits: Splits) -> None:
    train, _ = splits
    spec = FrozenOptions(epochs=2, batch_size=50, width=32)
    before = torch.random.get_rng_state()
    first, losses = train_pair(train, spec)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again, same = train_pair(train, spec)
    other, others = train_pair(train, FrozenOptions(epochs=2, batch_size=50, width=32, seed=1))
    assert losses == same != others
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.image.linear.weight, other.image.linear.weight)


def test_other_captions_of_an_image_are_no_negatives(splits: Splits) -> None:
    train, _ = splits
    one = replace(train.captions, rows_K=np.zeros_like(train.captions.rows_K))
    _, losses = train_pair(replace(train, captions=one), FrozenOptions(epochs=1, width=32))
    assert losses == [0.0]  # among 160 captions of one image each has itself alone


def test_a_caption_without_targets_is_left_out(splits: Splits) -> None:
    train, _ = splits
    valid_K = train.captions.valid_K.copy()
    valid_K[3] = False
    nan_KD = train.captions.embeddings_KD.copy()
    nan_KD[3] = np.nan
    captions = replace(train.captions, valid_K=valid_K, embeddings_KD=nan_KD)
    spec = FrozenOptions(epochs=1, batch_size=159, width=32)
    _, losses = train_pair(replace(train, captions=captions), spec)
    assert np.isfinite(losses).all()


def test_a_loss_that_is_no_number_is_told(splits: Splits) -> None:
    train, _ = splits
    broken_KD = np.full_like(train.captions.embeddings_KD, np.nan)
    captions = replace(train.captions, embeddings_KD=broken_KD)
    with pytest.raises(StudentError, match="after epoch 1: take a lower --learning-rate"):
        train_pair(replace(train, captions=captions), FrozenOptions(epochs=2))
