"""Frozen text features are the library's own last layer, pooled; the encoder is told by them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.errors import StudentError
from pipeline.frozen.texts import Pooling, TextFeatureOptions, TextFeatures
from pipeline.shared.library import quiet
from tests.shared.encoders import FAMILIES, TEXTS, make_text_encoder

CPU = torch.device("cpu")


def features(folder: Path, **options: Any) -> TextFeatures:
    return TextFeatures(TextFeatureOptions(text=str(folder), **{"max_tokens": 12, **options}), CPU)


def librarys(folder: Path, text: str, pooling: Pooling) -> np.ndarray:
    """Return what transformers says of one text, unpadded; BERTs drop nothing out here."""
    with quiet():
        model = transformers.AutoModel.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, return_tensors="pt", split_special_tokens=True)
    with torch.no_grad():
        states_LT = model(tokens["input_ids"]).last_hidden_state[0].numpy()
    pooled_T = states_LT[0] if pooling == "cls" else states_LT.mean(axis=0)
    return np.asarray(pooled_T / np.linalg.norm(pooled_T))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_its_last_layer_pooled_whatever_texts_are_beside_it(
    tmp_path: Path, family: str, pooling: Pooling
) -> None:
    folder = make_text_encoder(tmp_path / family, family)
    texts = [text for text in TEXTS if "[" not in text]
    found_KT = features(folder, pooling=pooling).embed_texts(texts)
    assert found_KT.dtype == torch.float32
    torch.testing.assert_close(found_KT.norm(dim=1), torch.ones(len(texts)))
    wanted_KT = np.stack([librarys(folder, text, pooling) for text in texts])
    np.testing.assert_allclose(found_KT.numpy(), wanted_KT, atol=2e-6)


def test_tokens_are_counted_uncut_and_marks_in_a_text_are_text(tmp_path: Path) -> None:
    found = features(make_text_encoder(tmp_path / "bert"), max_tokens=4)
    assert (found.max_tokens, found.dim) == (4, 64)
    assert found.count_tokens("red") == 3
    assert found.count_tokens("red square on a dark ground") == 8
    assert found.count_tokens("[PAD]") == 5


def test_the_fingerprint_tells_encoders_apart_but_not_their_places(tmp_path: Path) -> None:
    folder = make_text_encoder(tmp_path / "bert")
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    first = features(folder).fingerprint()
    assert (first["layers"], first["dim"], first["pooling"]) == (3, 64, "mean")
    assert {**features(moved).fingerprint(), "model": str(folder)} == first

    def changed(where: Path, **options: Any) -> set[str]:
        found = features(where, **options).fingerprint()
        return {name for name in first if found[name] != first[name]} - {"model"}

    assert changed(folder, pooling="cls") == {"pooling"}
    assert changed(folder, max_tokens=6) == {"max_tokens", "tokens_sha256"}
    assert changed(folder, layers=2) == {"layers", "weights_sha256"}
    assert changed(make_text_encoder(tmp_path / "other", seed=1)) == {"weights_sha256"}


@pytest.mark.parametrize(
    ("options", "what"),
    [({"layers": 4}, "has 3 layers"), ({"max_tokens": 25}, "reads at most 24 tokens")],
)
def test_more_than_an_encoder_has_is_refused(
    tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    folder = make_text_encoder(tmp_path / "bert")
    with pytest.raises(StudentError, match=what):
        features(folder, **options)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [({"layers": 0}, "layers"), ({"max_tokens": 2}, "max_tokens"), ({"text": ""}, "not empty")],
)
def test_options_that_cannot_be_are_told(wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        TextFeatureOptions(**{"text": "bert", **wrong})
