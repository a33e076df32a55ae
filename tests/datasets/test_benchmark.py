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


def test_a_blank_line_among_the_names_is_an_error_and_one_at_the_end_is_not(
    folder: Path, tmp_path: Path
) -> None:
    """It shifted every label after it."""
    names = folder / "classnames.txt"
    names.write_text("crane\n\nmaine coon\n")
    assert "classnames.txt, line 2 is empty, and labels count" in refusal(folder, tmp_path / "out")
    for content, words in ((b"", "names no class"), (b" \n", "names no class"), (b"\xff", "UTF-8")):
        names.write_bytes(content)
        assert words in refusal(folder, tmp_path / "out")
    names.write_text("crane\r\nmaine coon\r\n\r\n \n")
    write_known("clip-benchmark", tmp_path / "out", source=folder)
    assert (tmp_path / "out/classes.txt").read_text() == "crane\nmaine coon\n"


@pytest.mark.parametrize("content", ["", "\n", "two", "-1", "1.5", "2 3", "\u00b2"])
def test_a_count_of_shards_that_is_none_is_an_error(
    folder: Path, tmp_path: Path, content: str
) -> None:
    (folder / "train/nshards.txt").write_text(content)
    assert "expected how many tars there are" in refusal(folder, tmp_path / "out")


def test_a_label_without_a_name_is_an_error(folder: Path, tmp_path: Path) -> None:
    (folder / "classnames.txt").write_text("crane\n")
    message = refusal(folder, tmp_path / "out")
    assert "train/0.tar: s0001 has label 1, classnames.txt names 1 classes (0 to 0)" in message


def test_samples_without_an_image_are_counted_once_though_val_is_cut_off(
    folder: Path, tmp_path: Path
) -> None:
    for split, keys in (("train", "abcdefgh"), ("test", "x")):
        members = {f"{key}.cls": b"0" for key in keys}
        members |= {f"{key}.jpg": jpeg(0, i) for i, key in enumerate(keys) if i % 2 == 0}
        write_tar(folder / split / "0.tar", dict(sorted(members.items())))
    for options in ({}, {"val": 0.5}):
        written = write_known("clip-benchmark", tmp_path / f"{options}", source=folder, **options)
        assert written.left_out == {"no image, train": 4, "no image, test": 0}


def test_a_folder_of_any_name_makes_a_prompt_file_that_loads(folder: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("my pets (v2)", "_ü", "é")):
        source = folder.rename(folder.with_name(name))
        folder = source
        write_known("clip-benchmark", tmp_path / f"{number}", source=source)
        prompts = load_prompts(str(tmp_path / f"{number}/prompts.yaml"))
        assert prompts.dataset == ("my-pets-v2", "clip-benchmark", "clip-benchmark")[number]


def test_names_and_templates_that_have_to_be_edited_are_told_at_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "classnames.txt").write_text("missile\nMissile\n")  # as ImageNet's list has it
    write_known("clip-benchmark", tmp_path / "one", source=folder)
    assert "prompts.yaml is to be edited before it can be used" in caplog.text
    assert "classes 'missile' and 'Missile' read the same to a teacher" in caplog.text
    caplog.clear()
    (folder / "classnames.txt").write_text("crane\nmaine coon\n")
    templates = folder / "zeroshot_classification_templates.txt"
    templates.write_text("a photo.\n")
    write_known("clip-benchmark", tmp_path / "two", source=folder)
    assert "template 'a photo.' has no {label}" in caplog.text
    caplog.clear()
    templates.write_text("\na {photo} of a {c}.\n\n")
    write_known("clip-benchmark", tmp_path / "three", source=folder)
    assert caplog.text == ""
    [clip] = load_sets(str(tmp_path / "three/prompts.yaml"), ["clip"])
    assert clip.texts[0] == ("a {photo} of a crane.",)
