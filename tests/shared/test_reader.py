"""Texts become the tokens that the text encoder was trained on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from pipeline.errors import StudentError
from pipeline.shared.reader import TextReader, text_reader
from tests.shared.encoders import TEXTS, make_text_encoder, options_of


@pytest.fixture(scope="module")
def reader(text_encoder: Path) -> TextReader:
    return text_reader(options_of(text_encoder))


def test_tokens_are_those_of_transformers(reader: TextReader, text_encoder: Path) -> None:
    other = transformers.AutoTokenizer.from_pretrained(text_encoder)
    wanted = other(list(TEXTS[:3]), max_length=12, truncation=True, padding="max_length")
    tokens_KL = reader.tokenise(TEXTS[:3])
    assert tokens_KL.dtype == np.int32
    np.testing.assert_array_equal(tokens_KL, wanted["input_ids"])
    mask_BL = reader.batch(tokens_KL).mask_BL
    np.testing.assert_array_equal(mask_BL, np.array(wanted["attention_mask"], bool))


def test_a_long_text_keeps_both_its_marks_and_is_counted(reader: TextReader) -> None:
    fits, long = "a " * 10, "a " * 11
    tokens_KL = reader.tokenise([fits, long])
    np.testing.assert_array_equal(tokens_KL[0], tokens_KL[1])
    assert tokens_KL[1, [0, -1]].tolist() == [1, 2]  # [CLS], [SEP]
    assert reader.count_cut([fits, long, "", long]) == 2


def test_a_mark_within_a_text_is_text(reader: TextReader) -> None:
    (tokens_L,) = reader.tokenise(["a [PAD] square"])
    assert reader.batch(tokens_L[None]).mask_BL.sum() == 7  # two marks, and [ pad ] is three


def test_order_and_batches_do_not_matter(
    reader: TextReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [TEXTS[i % 4] for i in range(11)]
    whole_KL = reader.tokenise(texts)
    monkeypatch.setattr("pipeline.shared.reader._AT_ONCE", 4)
    np.testing.assert_array_equal(reader.tokenise(texts), whole_KL)
    np.testing.assert_array_equal(reader.tokenise(texts[::-1]), whole_KL[::-1])
    assert reader.tokenise([]).shape == (0, 12)


def test_a_batch_is_what_a_student_reads(reader: TextReader) -> None:
    batch = reader.batch(reader.tokenise(TEXTS))
    assert (batch.tokens_BL.dtype, batch.mask_BL.dtype) == (torch.int64, torch.bool)
    assert batch.tokens_BL.shape == batch.mask_BL.shape == (4, 12)


def test_a_saved_reader_is_the_same(reader: TextReader, tmp_path: Path) -> None:
    reader.save(tmp_path)
    again = text_reader(options_of(Path("/nowhere")), tmp_path)
    assert again.digest == reader.digest
    np.testing.assert_array_equal(again.tokenise(TEXTS), reader.tokenise(TEXTS))


def test_the_digest_tells_readers_apart(
    reader: TextReader, text_encoder: Path, tmp_path: Path
) -> None:
    assert text_reader(options_of(text_encoder)).digest == reader.digest
    assert text_reader(options_of(text_encoder, text_layers=1)).digest == reader.digest
    assert text_reader(options_of(text_encoder, max_tokens=11)).digest != reader.digest
    other = make_text_encoder(tmp_path / "other", "roberta")
    assert text_reader(options_of(other)).digest != reader.digest


def test_more_tokens_than_the_encoder_has_places_for_is_refused(text_encoder: Path) -> None:
    with pytest.raises(StudentError, match="reads at most 24 tokens, and max_tokens asks for 25"):
        text_reader(options_of(text_encoder, max_tokens=25))


def changed(source: Path, folder: Path, name: str, **fields: object) -> Path:
    """Copy an encoder's folder with other fields in one of its files."""
    shutil.copytree(source, folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **fields}))
    return folder


def test_a_tokenizer_of_another_model_is_refused(text_encoder: Path, tmp_path: Path) -> None:
    folder = changed(text_encoder, tmp_path / "x", "config.json", vocab_size=9)
    with pytest.raises(StudentError, match="17 tokens, its config 9: they are not of one model"):
        text_reader(options_of(folder))


def test_a_tokenizer_without_marks_is_refused(text_encoder: Path, tmp_path: Path) -> None:
    folder = changed(text_encoder, tmp_path / "x", "tokenizer.json", post_processor=None)
    with pytest.raises(StudentError, match="puts one mark before a text"):
        text_reader(options_of(folder))


def test_a_damaged_tokenizer_is_told(text_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(text_encoder, tmp_path / "x"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(StudentError, match=r"tokenizer\.json cannot be read"):
        text_reader(options_of(folder))
