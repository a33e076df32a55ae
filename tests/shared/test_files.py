"""What a text encoder is built from, beside its weights."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import StudentError
from pipeline.shared.files import find_text_files
from tests.shared.encoders import make_text_encoder


def test_saved_files_are_found_as_they_were(text_encoder: Path, tmp_path: Path) -> None:
    files = find_text_files(str(text_encoder)).cut(2)
    files.save(tmp_path / "run")
    again = find_text_files(str(tmp_path / "run"))
    assert (again.config, again.tokenizer) == (files.config, files.tokenizer)
    assert again.tokenizer_config == files.tokenizer_config != ""
    assert again.num_layers == 2
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_more_layers_than_there_are_is_refused(text_encoder: Path) -> None:
    with pytest.raises(StudentError, match="has 3 layers, and text_layers asks for 4"):
        find_text_files(str(text_encoder)).cut(4)


def test_roberta_has_fewer_places_than_its_config_says(tmp_path: Path) -> None:
    assert find_text_files(str(make_text_encoder(tmp_path / "r", "roberta"))).num_places == 22


def test_a_name_that_cannot_be_had_is_an_error_never_random_weights() -> None:
    with pytest.raises(StudentError, match=r"cannot load text encoder nobody/none.*hub reachable"):
        find_text_files("nobody/none")


def test_another_family_is_refused_by_name(text_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(text_encoder, tmp_path / "t5"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    with pytest.raises(StudentError, match="'t5': expected one of bert, roberta, distilbert"):
        find_text_files(str(folder))


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_config_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(StudentError, match=r"config\.json is no config of a model"):
        find_text_files(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(text_encoder: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(text_encoder, tmp_path / "less"))
    (folder / name).unlink()
    with pytest.raises(StudentError, match=name):
        find_text_files(str(folder))
