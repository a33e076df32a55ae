"""Folders as CLIP-benchmark has them become shards and a prompt file."""

from pathlib import Path

import pytest

from pipeline.datasets.known import write_known
from pipeline.errors import BeamclipError
from pipeline.prompt_file import check_class_order, load_prompts
from pipeline.prompts import load_sets
from pipeline.shards import find_shards
from tests.datasets.archives import jpeg, write_tar
from tests.datasets.written import read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "wds_pets"
    for split, shards in (("train", 2), ("test", 1)):
        for shard in range(shards):
            members = {}
            for i in range(2):
                members[f"s{i:04d}.cls"] = str(i).encode()
                members[f"s{i:04d}.jpg"] = jpeg(i, shard * 10 + i)
            write_tar(source / split / f"{shard}.tar", members)
        (source / split / "nshards.txt").write_text(f"{shards}\n")
    (source / "classnames.txt").write_text("crane\nmaine coon\n")
    templates = "a photo of a {c}, a type of pet.\na {c}.\n"
    (source / "zeroshot_classification_templates.txt").write_text(templates)
    return source


def refusal(source: Path, out: Path) -> str:
    with pytest.raises(BeamclipError) as caught:
        write_known("clip-benchmark", out, source=source)
    assert not out.exists()
    return str(caught.value)


def test_shards_classes_and_templates_are_taken_over(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = write_known("clip-benchmark", out, source=folder)
    assert written.samples == {"train": 4, "test": 2}
    found = read(out)
    assert [(s.key, s.label()) for s in found["train"]] == [
        *(("0/s0000", 0), ("0/s0001", 1), ("1/s0000", 0), ("1/s0001", 1))
    ]
    assert found["train"][3].image().content == jpeg(1, 11)
    prompts = load_prompts(str(out / "prompts.yaml"))
    check_class_order(prompts, find_shards([str(out)]))
    texts = {item.name: item.texts for item in load_sets(str(out / "prompts.yaml"))}
    assert texts["wds_pets-clip"][1] == ("a photo of a maine coon, a type of pet.", "a maine coon.")


def test_a_shard_that_is_counted_and_not_there_is_an_error(folder: Path, tmp_path: Path) -> None:
    (folder / "train/1.tar").unlink()
    assert "should hold 2 shards and lacks 1.tar" in refusal(folder, tmp_path / "out")
    (folder / "classnames.txt").unlink()
    assert "lacks classnames.txt" in refusal(folder, tmp_path / "out")
    assert "--from" in refusal(tmp_path / "none", tmp_path / "out")
