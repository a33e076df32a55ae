"""The small text encoder: an ordinary folder of transformers that has learnt something."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file

from pipeline.cli_text import text_encoder
from pipeline.errors import DataError
from pipeline.shards import Shard, find_shards, write_shards
from pipeline.shared.contract import SharedOptions
from pipeline.shared.library import quiet
from pipeline.shared.reader import text_reader
from pipeline.shared.student import build_shared
from pipeline.text_tiny import TextTinyOptions, train_tiny_text_encoder

SPEC = TextTinyOptions(epochs=8, batch_size=16, width=32, layers=1, learning_rate=1e-2)
COLOURS, PLACES = ("red", "green", "blue", "grey"), ("ground", "table", "shelf")


def captions(place: int) -> list[str]:
    colour, where = COLOURS[place % 4], PLACES[place % 3]
    return [f"A {colour} square lies on a {where}.", f"On the {where}: a {colour} square."]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    """One train shard with two captions a sample, one of test with words of its own."""
    folder = tmp_path_factory.mktemp("captions")
    train = [
        (f"{i:03d}", {"json": json.dumps({"captions": captions(i)}).encode()}) for i in range(48)
    ]
    write_shards(train, folder, "train", per_shard=48)
    write_shards([("0", {"txt": b"zebra"})], folder, "test", per_shard=1)
    return find_shards([str(folder)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: list[Shard]) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "bert"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train_tiny_text_encoder(shards, folder, SPEC)
    torch.set_num_threads(before)
    return folder


def test_it_is_a_folder_that_transformers_loads(trained: Path) -> None:
    with quiet():
        model = transformers.AutoModelForMaskedLM.from_pretrained(trained)
        assert type(transformers.AutoModel.from_pretrained(trained)).__name__ == "BertModel"
        tokenizer = transformers.AutoTokenizer.from_pretrained(trained)
    assert sorted(path.name for path in trained.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert not [path for path in trained.parent.iterdir() if path != trained]  # nothing half made
    assert tokenizer.tokenize("A RED square") == ["a", "red", "square"]
    assert tokenizer("red").input_ids == text_reader_of(trained).tokenise(["red"])[0, :3].tolist()
    assert model.config.num_hidden_layers == 1


def text_reader_of(folder: Path):
    return text_reader(SharedOptions(text=str(folder), text_layers=1))


def test_it_has_learnt_which_word_is_missing(trained: Path) -> None:
    with quiet():
        model = transformers.AutoModelForMaskedLM.from_pretrained(trained)
        tokenizer = transformers.AutoTokenizer.from_pretrained(trained)
    asked = tokenizer("A red [MASK] lies on a table.", return_tensors="pt")
    with torch.inference_mode():
        logits = model(**asked).logits[0, 3]
    assert tokenizer.decode([int(logits.argmax())]) == "square"


def test_its_loss_falls_below_that_of_guessing(tmp_path: Path, shards: list[Shard]) -> None:
    found = train_tiny_text_encoder(shards, tmp_path / "t", SPEC)
    assert found["captions"] == 96
    assert found["loss"] < 0.5 * math.log(found["vocabulary"])


def test_the_vocabulary_is_of_the_train_split_alone(trained: Path) -> None:
    reader = text_reader_of(trained)
    unknown = json.loads((trained / "tokenizer.json").read_text())["model"]["vocab"]["[UNK]"]
    assert unknown in reader.tokenise(["zebra"])
    assert unknown not in reader.tokenise(["square table"])


def test_a_model_of_images_and_texts_starts_from_it(trained: Path) -> None:
    spec = SharedOptions(image="test_vit", image_layers=1, text=str(trained), text_layers=1)
    student = build_shared(spec, input_px=32, seed=0).eval()
    reader = text_reader(spec)
    batch = reader.batch(reader.tokenise(captions(0)))
    assert student.embed_texts(batch).shape == (2, 64)
    held = load_file(trained / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert student.text.state_dict()["model.embeddings.word_embeddings.weight"].equal(held)


def test_its_files_are_the_seeds(trained: Path, shards: list[Shard], tmp_path: Path) -> None:
    train_tiny_text_encoder(shards, tmp_path / "again", SPEC)
    for path in trained.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    train_tiny_text_encoder(shards, tmp_path / "other", replace(SPEC, seed=1, epochs=1))
    weights = (tmp_path / "other" / "model.safetensors").read_bytes()
    assert weights != (trained / "model.safetensors").read_bytes()


def test_what_is_there_is_never_overwritten(tmp_path: Path, shards: list[Shard]) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(DataError, match="already exists: remove it"):
        train_tiny_text_encoder(shards, tmp_path, SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_shards_without_captions_are_an_error(tmp_path: Path, shards: list[Shard]) -> None:
    write_shards([("0", {"txt": b" "})], tmp_path / "s", "train", per_shard=1)
    with pytest.raises(DataError, match="none of 1 samples in 1 train shards has a caption"):
        train_tiny_text_encoder(find_shards([str(tmp_path / "s")]), tmp_path / "t", SPEC)
    with pytest.raises(DataError, match="none of 0 samples in 0 train shards"):
        train_tiny_text_encoder(shards[-1:], tmp_path / "t", SPEC)
    assert not (tmp_path / "t").exists()


def test_the_command_says_what_it_made(tmp_path: Path, shards: list[Shard]) -> None:
    folder = str(shards[0].path.parent)
    arguments = ["tiny", "--shards", folder, "--to", str(tmp_path / "t"), "--epochs", "1"]
    result = CliRunner().invoke(text_encoder, [*arguments, "--width", "32", "--json"])
    found = json.loads(result.stdout)
    assert (found["folder"], found["captions"]) == (str(tmp_path / "t"), 96)
    assert result.stderr == ""
    wrong = CliRunner().invoke(text_encoder, [*arguments, "--width", "33"])
    assert wrong.exit_code == 2
    assert "width is a multiple of 32, not 33" in wrong.output
