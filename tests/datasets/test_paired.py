"""A labelled dataset gets captions: of its classes, many, and the same ones every time."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.captions import captions_of
from pipeline.datasets.known import DATASETS, write_known
from pipeline.datasets.paired import class_captions, drawn, with_captions
from pipeline.datasets.publish import write_dataset
from pipeline.datasets.sets import Dataset, Pairs, Split
from pipeline.errors import DataError
from pipeline.shards import Sample
from tests.conftest import Invoke
from tests.datasets.written import digests, read

LABELLED = [
    *("digits", "fashion-mnist", "cifar10", "cifar100", "stl10", "flowers102", "pets37"),
    "imagenet-1k",
]


@pytest.fixture(scope="module")
def pairs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits with five captions each."""
    out = tmp_path_factory.mktemp("pairs") / "out"
    write_known("digits", out, captions=5)
    return out


def samples(folder: Path) -> list[Sample]:
    return [sample for found in read(folder).values() for sample in found]


def captions(sample: Sample) -> tuple[str, ...]:
    found = captions_of(sample.members)
    assert not found.left_out
    return found.texts


def test_every_sample_has_so_many_captions_of_its_own_class(pairs_dir: Path) -> None:
    texts = class_captions("digits")
    found = samples(pairs_dir)
    assert len(found) == 1797
    for sample in found:
        own = captions(sample)
        assert len(set(own)) == 5
        assert set(own) <= set(texts[sample.label()])
        assert sample.members["txt"].content.decode() == own[0]


def test_captions_of_one_class_differ_and_all_are_used(pairs_dir: Path) -> None:
    eights = [captions(sample) for sample in samples(pairs_dir) if sample.label() == 8]
    assert len({frozenset(own) for own in eights}) > len(eights) / 2
    used = Counter(text for own in eights for text in own)
    assert set(used) == set(class_captions("digits")[8])
    share = 5 / len(used)
    assert all(share / 2 < count / len(eights) < share * 2 for count in used.values())


def test_captions_are_a_function_of_the_key_and_the_seed(pairs_dir: Path, tmp_path: Path) -> None:
    again = write_known("digits", tmp_path / "again", captions=5).shards
    other = write_known("digits", tmp_path / "other", captions=5, caption_seed=1).shards
    assert digests(sorted(again)) == digests(sorted(pairs_dir.glob("*.tar")))
    assert digests(sorted(again)) != digests(sorted(other))
    write_known("digits", tmp_path / "val", captions=5, val=0.2)  # moved, a sample keeps its own
    kept = {sample.key: captions(sample) for sample in samples(pairs_dir)}
    assert kept == {sample.key: captions(sample) for sample in samples(tmp_path / "val")}


def test_fewer_captions_begin_more() -> None:
    texts = class_captions("digits")[3]
    assert drawn("000007", texts, 8, 2)[:3] == drawn("000007", texts, 3, 2)
    assert drawn("000007", texts, 3, 2) != drawn("000008", texts, 3, 2)


def test_images_and_labels_are_those_without_captions(pairs_dir: Path, tmp_path: Path) -> None:
    write_known("digits", tmp_path / "plain")
    plain = {sample.key: sample for sample in samples(tmp_path / "plain")}
    for sample in samples(pairs_dir):
        without = plain.pop(sample.key)
        assert set(without.members) == {"png", "cls"}
        assert sample.image().content == without.image().content
        assert sample.label() == without.label()
    assert not plain


@pytest.mark.parametrize("name", LABELLED)
def test_every_class_has_at_least_twenty_captions_of_its_own(name: str) -> None:
    texts = class_captions(name)
    for found in texts:
        assert len(set(found)) == len(found) >= 20
        assert not any("{" in text or ".." in text for text in found)
    everything = [text.casefold() for found in texts for text in found]
    assert len(set(everything)) == len(everything)  # a caption tells the class


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_captions_use_what_the_prompt_file_knows(name: str) -> None:
    from pipeline.prompt_file import load_prompts

    for item, found in zip(load_prompts(name).classes, class_captions(name), strict=True):
        for known in (item.name, item.coarse, item.description, *item.synonyms):
            assert any((known or "").rstrip(".").casefold() in text.casefold() for text in found)
        assert any(item.name.casefold() not in text.casefold() for text in found)


# --- what cannot be captioned --------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DATASETS.keys() - set(LABELLED)))
def test_a_set_with_captions_or_without_prompts_is_refused(
    name: str, tmp_path: Path, beamclip: Invoke
) -> None:
    outcome = beamclip("data", name, "--captions", 5, "--out", tmp_path / "out")
    assert outcome.code == 1
    why = "there is none for" if name in ("imagenet-21k", "clip-benchmark") else "has none, and"
    assert f"{why} {name}" in outcome.err or f"{name} {why}" in outcome.err
    assert "leave --captions out" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_more_captions_than_there_are_is_refused(tmp_path: Path, beamclip: Invoke) -> None:
    outcome = beamclip("data", "digits", "--captions", 99, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "--captions 99: label 0 of digits has 26 captions to choose from" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_sample_without_a_label_is_named(tmp_path: Path) -> None:
    def unlabelled() -> Pairs:
        yield "000000", {"png": b"x", "cls": b"1"}
        yield "000001", {"png": b"x"}

    dataset = with_captions(Dataset((Split("train", unlabelled),)), "stl10", 2)
    with pytest.raises(DataError, match=r"sample 000001 of train has no label.*--no-unlabelled"):
        write_dataset(dataset, tmp_path / "out", per_shard=10)
    assert list(tmp_path.iterdir()) == []


# --- the command ---------------------------------------------------------------------------------


def test_the_command_writes_captions(pairs_dir: Path, tmp_path: Path, beamclip: Invoke) -> None:
    done = beamclip("data", "digits", "--captions", 5, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    shards = [Path(path) for path in json.loads(done.out)["shards"]]
    assert digests(sorted(shards)) == digests(sorted(pairs_dir.glob("*.tar")))


def test_a_seed_without_captions_is_a_usage_error(tmp_path: Path, beamclip: Invoke) -> None:
    outcome = beamclip("data", "digits", "--caption-seed", 1, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "give --captions K" in outcome.err
