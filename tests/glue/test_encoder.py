"""Text encoders are loaded whole, from a folder, or not at all."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import BeamclipError, LibraryError, ProbeError, StudentError
from pipeline.glue.encoder import LoadedText, load_text
from pipeline.glue.reading import Examples
from pipeline.glue.tokens import tokenize
from tests.glue.encoders import tiny_bert


def examples(firsts: list[str], seconds: list[str] | None = None) -> Examples:
    return Examples(tuple(firsts), tuple(seconds or ()), torch.zeros(len(firsts)).numpy(), 0, "")


def test_a_folder_is_loaded_as_it_is(bert: Path, text: LoadedText) -> None:
    weights = load_file(bert / "model.safetensors")
    loaded = text.encoder.model.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    assert (text.encoder.width, text.encoder.max_positions) == (32, 24)
    assert text.lineage["name"] == str(bert)
    assert len(text.lineage["sha256"]) == 64


def test_padding_changes_nothing(text: LoadedText) -> None:
    """States of a text alone are those of the text in a batch with a longer one."""
    tokens = tokenize(text, examples(["cat", "the cat sat on the mat"], ["dog", "dog ran"]), 128)
    encoder = text.encoder.eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        alone = encoder(*tokens.batch([0]))
        among = encoder(*tokens.batch([0, 1]))
    assert among.shape == (2, 11, 32)
    torch.testing.assert_close(among[0, :5], alone[0])


def test_pairs_are_typed_and_the_longer_is_cut_first(text: LoadedText) -> None:
    tokens = tokenize(text, examples(["cat " * 9, "cat"], ["dog", "dog"]), 8)
    assert tokens.truncated == 1
    tokens_BL, mask_BL, types_BL = tokens.batch([0, 1])
    names = text.tokenizer.convert_ids_to_tokens  # type: ignore[attr-defined]
    assert names(tokens_BL[0]) == ["[CLS]", *["cat"] * 4, "[SEP]", "dog", "[SEP]"]
    assert names(tokens_BL[1]) == ["[CLS]", "cat", "[SEP]", "dog", "[SEP]", *["[PAD]"] * 3]
    assert mask_BL.tolist() == [[True] * 8, [True] * 5 + [False] * 3]
    assert types_BL is not None
    assert types_BL.tolist() == [[0] * 6 + [1] * 2, [0] * 3 + [1] * 2 + [0] * 3]


def test_texts_are_cut_at_the_encoders_own_bound(text: LoadedText) -> None:
    tokens = tokenize(text, examples(["cat " * 99, "cat"]), 128)
    assert tokens.lengths_N().tolist() == [24, 3]
    assert tokens.truncated == 1


def refusal(name: object, kind: type[BeamclipError] = StudentError) -> str:
    with pytest.raises(kind) as caught:
        load_text(str(name))
    return str(caught.value)


def test_what_is_not_there_is_told_without_a_network(tmp_path: Path) -> None:
    message = refusal("no-such/encoder")
    assert "cannot load text encoder no-such/encoder: " in message
    assert "in the hub's local cache or the hub reachable" in message
    assert "expected a folder that transformers wrote" in refusal(tmp_path)


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    without_pooler = {k: v for k, v in weights.items() if not k.startswith("pooler.")}
    save_file(without_pooler, folder / "model.safetensors", metadata={"format": "pt"})
    load_text(str(folder))
    less = {k: v for k, v in without_pooler.items() if "layer.1." not in k}
    save_file(less, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lack 16 tensors (encoder.layer.1." in refusal(folder, ProbeError)


def test_a_tokenizer_that_marks_no_pairs_is_refused(tmp_path: Path) -> None:
    file = tiny_bert(tmp_path / "bert") / "tokenizer.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    told["post_processor"]["pair"] = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    file.write_text(json.dumps(told), encoding="utf-8")
    assert "puts 0 marks around a pair of texts" in refusal(file.parent, ProbeError)


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModel": "own.Own", "AutoConfig": "own.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LibraryError, match=r"pip install 'beamclip\[shared\]'"):
        load_text("bert-base-uncased")
