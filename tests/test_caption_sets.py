"""Captions become embeddings that know their samples; nothing else of a cache is touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cache.captions import Captions
from pipeline.cache.reader import TargetCache
from pipeline.caption_sets import add_captions, list_captions, remove_captions, show_captions
from pipeline.errors import (
    CacheError,
    CacheMismatchError,
    DataError,
    ShardError,
    StudentError,
    TeacherError,
)
from pipeline.frozen.texts import TextFeatureOptions, TextFeatures
from pipeline.runtime import torch_threads
from pipeline.shards import find_shards, write_shards
from pipeline.teacher import TeacherOptions, load_teacher
from tests.inputs import build, captioned_samples, captions_at, make_teacher
from tests.runs import held_elsewhere
from tests.shared.encoders import make_text_encoder
from tests.trees import tree_digests, tree_stamps

TEST = [(place, text) for place in range(12) for text in captions_at(place)]


def add(cache: Path, shards: Path, **options: str) -> bool:
    return add_captions(cache, find_shards([str(shards)]), device="cpu", **options)  # type: ignore[arg-type]


def opened(cache: Path, name: str = "test", split: str = "test") -> Captions:
    return TargetCache.open(cache, split).captions(name)


def live_embeddings(teacher_dir: Path, texts: list[str]) -> np.ndarray:
    """Return what the teacher itself gives, one text at a time."""
    import torch

    spec = TeacherOptions(model=f"local-dir:{teacher_dir}")
    teacher = load_teacher(spec, torch.device("cpu"))
    with torch_threads(1):
        return np.concatenate([teacher.embed_texts([text]).numpy() for text in texts])


Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path, captioned_cache: Path, recipe_file: Path) -> Made:
    """Make a cache of one test shard whose samples have these texts beside their images."""

    def make(*texts: dict[str, bytes], shards: Path = tmp_path / "own") -> Path:
        pairs = captioned_samples(len(texts), seed=2)
        for (_, members), own in zip(pairs, texts, strict=True):
            members.pop("txt", None)
            members.pop("json", None)
            members |= own
        write_shards(pairs, shards, "test", per_shard=99)
        return build(tmp_path / "made", shards, recipe_file)

    return make


# --- what is embedded ----------------------------------------------------------------------------


def test_captions_are_embedded_as_the_teacher_embeds_them_and_know_their_rows(
    captioned_cache: Path, teacher_dir: Path
) -> None:
    captions = opened(captioned_cache)
    assert captions.rows_K.tolist() == [place for place, _ in TEST]
    assert list(captions.texts) == [text for _, text in TEST]
    assert captions.embeddings_KD.dtype == np.float32
    wanted_KD = live_embeddings(teacher_dir, [text for _, text in TEST])
    np.testing.assert_allclose(captions.embeddings_KD, wanted_KD, atol=1e-6)
    assert (captions.cuts, captions.shards) == ((), ("000000", "000001"))
    assert captions.token_counts_K.min() > 5


def test_one_caption_and_four_to_seven_are_all_there(captioned_cache: Path) -> None:
    found = np.bincount(opened(captioned_cache).rows_K, minlength=12)
    assert found.tolist() == [len(captions_at(place)) for place in range(12)]
    assert set(found.tolist()) == {0, 1, 4, 5, 6, 7}


def test_captions_of_a_skipped_image_are_kept_and_marked(captioned_cache: Path) -> None:
    captions = opened(captioned_cache)
    assert np.isfinite(captions.embeddings_KD).all()
    assert (captions.rows_K == 5).sum() == 1
    assert (captions.valid_K == (captions.rows_K != 5)).all()


def test_samples_without_captions_are_counted(captioned_cache: Path) -> None:
    found = show_captions(captioned_cache, "test")
    assert (found.samples, found.captioned, found.captions) == (12, 11, len(TEST))
    assert found.left_out == {}
    assert "1 samples without" in found.line()


def test_texts_that_cannot_be_taken_are_counted_and_named_and_cost_no_other(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = made(
        {"json": b"{", "txt": b"kept"},
        {"txt": b"\xff"},
        {"json": json.dumps({"captions": ["one", "", 3]}).encode()},
        {"txt": b"x" * (1 << 20) + b"x"},
        {"npy": b"no caption", "pkl": b"cos\nsystem\n(S'false'\ntR."},
        {"txt": b"a <end_of_text> b"},
    )
    assert add(cache, tmp_path / "own")
    assert opened(cache).texts == ("kept", "one")
    found = show_captions(cache, "test")
    assert (found.samples, found.captioned) == (6, 2)
    assert found.left_out == {
        "bad-json": 1,
        "bad-txt": 1,
        "empty": 1,
        "no-text": 1,
        "tokenizer-mark": 1,
        "too-many-bytes": 1,
    }
    assert "'00001': a text is left out: bad-txt" in caplog.text


def test_a_caption_too_long_is_cut_told_recorded_and_kept_whole(
    made: Made, tmp_path: Path, teacher_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "A short sentence. " + "And so it goes on and on " * 9
    cache = made({"txt": b"short"}, {"txt": long.encode()}, {"txt": "猫".encode() * 5000})
    add(cache, tmp_path / "own")
    captions = opened(cache)
    assert [cut["caption"] for cut in captions.cuts] == [1, 2]
    assert captions.texts[1] == long.strip()
    kept = [captions.texts[cut["caption"]][: cut["kept"]] for cut in captions.cuts]
    assert kept[0] == "A short sentence."
    np.testing.assert_allclose(
        captions.embeddings_KD[1:], live_embeddings(teacher_dir, kept), atol=1e-6
    )
    assert captions.token_counts_K.max() <= 32 < captions.cuts[0]["tokens"]
    assert "captions test: caption 1 has" in caplog.text
    assert "was cut after 'A short sentence.'" in caplog.text
    assert "cut: 'A short sentence.' (6 of" in show_captions(cache, "test").text()


def test_any_text_reads_back_as_it_is(made: Made, tmp_path: Path) -> None:
    texts = ["naïve café", "猫", "🙂 👩‍🔬", "مرحبا", "a\u200bb", "x\ty\nz", "nul\0within", "nul\0"]
    cache = made(*({"txt": text.encode()} for text in texts))
    add(cache, tmp_path / "own")
    assert list(opened(cache).texts) == texts


def test_more_captions_than_a_batch_are_those_of_the_teacher(
    made: Made, tmp_path: Path, teacher_dir: Path
) -> None:
    texts = [f"thing {i}" for i in range(300)]
    cache = made({"json": json.dumps({"captions": texts}).encode()}, {"txt": b"last"})
    add(cache, tmp_path / "own")
    captions = opened(cache)
    np.testing.assert_allclose(
        captions.embeddings_KD, live_embeddings(teacher_dir, [*texts, "last"]), atol=1e-6
    )
    assert captions.rows_K.tolist() == [0] * 300 + [1]


# --- what is left alone --------------------------------------------------------------------------


def test_every_other_byte_stays_and_so_does_the_seal(
    captioned_copy: Path, captioned_shards: Path
) -> None:
    before = tree_stamps(captioned_copy)
    digest = TargetCache.open(captioned_copy).digest
    assert add(captioned_copy, captioned_shards, split="train", name="all")
    after = tree_stamps(captioned_copy)
    assert {name: after[name] for name in before} == before
    assert {"/".join(name.split("/")[:2]) for name in after.keys() - before.keys()} == {
        "captions/all"
    }
    assert TargetCache.open(captioned_copy).digest == digest
    assert len(opened(captioned_copy, "all", "train").texts) == sum(
        len(captions_at(place)) for place in range(24)
    )
    remove_captions(captioned_copy, "all")
    assert tree_stamps(captioned_copy) == before
    with pytest.raises(CacheError, match="no captions 'all': valid: test"):
        remove_captions(captioned_copy, "all")


def test_captions_made_again_are_the_same_bytes(
    captioned_copy: Path, captioned_cache: Path, captioned_shards: Path
) -> None:
    shutil.rmtree(captioned_copy / "captions")
    assert add(captioned_copy, captioned_shards)
    assert tree_digests(captioned_copy, "captions") == tree_digests(captioned_cache, "captions")


def test_captions_that_are_there_need_no_teacher(
    captioned_copy: Path, captioned_shards: Path
) -> None:
    before = tree_stamps(captioned_copy)
    assert not add(captioned_copy, captioned_shards, teacher="local-dir:/nowhere")
    assert tree_stamps(captioned_copy) == before


# --- what is refused -----------------------------------------------------------------------------


def test_a_cache_that_is_being_written_is_left_alone(
    captioned_copy: Path, captioned_shards: Path
) -> None:
    with held_elsewhere(captioned_copy / ".lock"):
        with pytest.raises(CacheError, match="being written by another process"):
            add(captioned_copy, captioned_shards, name="more")
        with pytest.raises(CacheError, match="being written by another process"):
            remove_captions(captioned_copy, "test")


def refusal(cache: Path, shards: Path, error: type[Exception], **options: str) -> str:
    """Add what must be refused with nothing touched; return the message."""
    before = tree_stamps(cache)
    with pytest.raises(error) as caught:
        add(cache, shards, **options)
    assert tree_stamps(cache) == before
    return str(caught.value)


def test_a_name_stands_for_one_set(captioned_copy: Path, captioned_shards: Path) -> None:
    options = {"split": "train", "name": "test"}
    message = refusal(captioned_copy, captioned_shards, CacheMismatchError, **options)
    assert "split: cache has 'test', asked for 'train'" in message


@pytest.mark.parametrize("name", ["a/b", "..", "", "zarr.json", "a b"])
def test_a_name_that_no_folder_should_have_is_refused(
    captioned_copy: Path, captioned_shards: Path, name: str
) -> None:
    assert "may hold" in refusal(captioned_copy, captioned_shards, DataError, name=name)


def test_shards_must_be_those_of_the_cache(
    captioned_copy: Path, captioned_shards: Path, tmp_path: Path
) -> None:
    shards = Path(shutil.copytree(captioned_shards, tmp_path / "shards"))
    write_shards(captioned_samples(12, seed=2), tmp_path / "more", "test", per_shard=4)
    shutil.copy(tmp_path / "more" / "test-000002.tar", shards)
    message = refusal(captioned_copy, shards, CacheMismatchError, name="more")
    assert "test-000002.bytes: cache has '(absent)'" in message
    (shards / "test-000002.tar").unlink()
    content = bytearray((shards / "test-000001.tar").read_bytes())
    place = content.index(b"in words of kind")
    content[place : place + 2] = b"of"
    (shards / "test-000001.tar").write_bytes(content)
    message = refusal(captioned_copy, shards, CacheMismatchError, name="more")
    assert "test-000001.sha256: cache has" in message
    (shards / "test-000001.tar").write_bytes(bytes(content) + bytes(10240))
    assert "test-000001.bytes" in refusal(captioned_copy, shards, CacheMismatchError, name="more")
    (shards / "test-000001.tar").unlink()
    message = refusal(captioned_copy, shards, CacheMismatchError, name="more")
    assert "asked for '(absent)'" in message
    cut = (captioned_shards / "test-000001.tar").read_bytes()[:-10240]
    (shards / "test-000001.tar").write_bytes(cut + b"x" * 10240)
    refusal(captioned_copy, shards, ShardError, name="more")


def test_an_unknown_split_and_a_cache_that_is_not_there_are_told(
    captioned_copy: Path, captioned_shards: Path, tmp_path: Path
) -> None:
    message = refusal(captioned_copy, captioned_shards, CacheError, split="tset")
    assert "did you mean 'test'" in message
    assert "no cache in" in refusal(tmp_path / "none", captioned_shards, CacheError)
    assert not (tmp_path / "none").exists()


def test_an_unfinished_cache_is_told(captioned_copy: Path, captioned_shards: Path) -> None:
    shutil.rmtree(captioned_copy / "units" / "test-000001.eval.v0-0")
    message = refusal(captioned_copy, captioned_shards, CacheError, name="more")
    assert "shard test-000001 has no unit yet" in message


def test_another_teacher_is_refused_and_one_that_moved_is_found(
    captioned_copy: Path, captioned_shards: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    other = f"local-dir:{make_teacher(tmp_path / 'other', seed=1)}"
    options = {"name": "more", "teacher": other}
    message = refusal(captioned_copy, captioned_shards, CacheMismatchError, **options)
    assert "teacher.weights_sha256" in message
    options["teacher"] = "local-dir:/nowhere"
    refusal(captioned_copy, captioned_shards, TeacherError, **options)
    options["teacher"] = f"local-dir:{shutil.copytree(teacher_dir, tmp_path / 'moved')}"
    assert add(captioned_copy, captioned_shards, **options)


def test_shards_without_any_caption_are_told_before_a_teacher_is_loaded(
    cache_copy: Path, shards_dir: Path
) -> None:
    message = refusal(cache_copy, shards_dir, DataError, teacher="local-dir:/nowhere")
    assert "none of 12 samples has a caption: expected a .txt" in message


def test_sets_are_listed_by_name(captioned_copy: Path, captioned_shards: Path) -> None:
    add(captioned_copy, captioned_shards, split="train")
    assert [item.name for item in list_captions(captioned_copy)] == ["test", "train"]


# --- embedded by a text encoder, where the teacher reads no text ---------------------------------


@pytest.fixture
def vision_copy(tmp_path: Path, vision_cache: Path) -> Path:
    return Path(shutil.copytree(vision_cache, tmp_path / "vision"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_encoder(tmp_path_factory.mktemp("captions") / "bert")


def embed(cache: Path, shards: Path, bert: Path, name: str = "test", **options: Any) -> bool:
    spec = TextFeatureOptions(text=str(bert), **{"max_tokens": 12, **options})
    given = find_shards([str(shards)])
    return add_captions(cache, given, name=name, device="cpu", encoder=spec)


def test_texts_that_lie_there_are_embedded_in_their_place_and_say_by_what(
    vision_copy: Path, captioned_shards: Path, bert: Path
) -> None:
    import torch

    before, plain = tree_stamps(vision_copy), opened(vision_copy)
    assert plain.encoder is None
    assert embed(vision_copy, captioned_shards, bert)
    after = tree_stamps(vision_copy)
    others = {name: stamp for name, stamp in before.items() if "captions/test/" not in name}
    assert {name: stamp for name, stamp in after.items() if "captions/test/" not in name} == others
    captions = opened(vision_copy)
    assert (captions.texts, captions.rows_K.tolist()) == (plain.texts, plain.rows_K.tolist())
    spec = TextFeatureOptions(text=str(bert), max_tokens=12)
    features = TextFeatures(spec, torch.device("cpu"))
    assert captions.encoder == features.fingerprint()
    np.testing.assert_allclose(
        captions.embeddings_KD, features.embed_texts(captions.texts).numpy(), atol=1e-6
    )
    assert captions.token_counts_K.min() > 5
    assert "embedded by" in (line := show_captions(vision_copy, "test").line())
    assert "bert (3 layers, mean)" in line


def test_an_embedded_set_is_there_for_its_encoder_and_for_who_wants_texts_alone(
    vision_copy: Path, captioned_shards: Path, bert: Path, vision_recipe: Path, tmp_path: Path
) -> None:
    embed(vision_copy, captioned_shards, bert)
    before = tree_stamps(vision_copy)
    moved = Path(shutil.copytree(bert, tmp_path / "moved"))
    assert not embed(vision_copy, captioned_shards, moved)
    assert not add(vision_copy, captioned_shards)
    build(vision_copy, captioned_shards, vision_recipe)  # whose recipe has captions: true
    assert tree_stamps(vision_copy) == before


def test_captions_of_another_encoder_are_refused_with_what_differs(
    vision_copy: Path, captioned_shards: Path, bert: Path, tmp_path: Path
) -> None:
    embed(vision_copy, captioned_shards, bert)
    before = tree_stamps(vision_copy)
    with pytest.raises(CacheMismatchError, match="give these another --name") as caught:
        embed(vision_copy, captioned_shards, bert, pooling="cls")
    assert caught.value.differences == [("encoder.pooling", "mean", "cls")]
    other = make_text_encoder(tmp_path / "bert", seed=1)  # the same name, other weights: stale
    with pytest.raises(CacheMismatchError) as caught:
        embed(vision_copy, captioned_shards, other)
    assert [field for field, _, _ in caught.value.differences] == ["encoder.weights_sha256"]
    assert tree_stamps(vision_copy) == before
    assert embed(vision_copy, captioned_shards, other, name="other")


def test_an_encoder_that_cannot_be_had_or_is_not_wanted_is_refused(
    vision_copy: Path, captioned_copy: Path, captioned_shards: Path, bert: Path, tmp_path: Path
) -> None:
    before = tree_stamps(vision_copy)
    with pytest.raises(StudentError, match="cannot load text encoder"):
        embed(vision_copy, captioned_shards, tmp_path / "none")
    assert tree_stamps(vision_copy) == before
    with pytest.raises(CacheError, match="leave --text-encoder out"):
        embed(captioned_copy, captioned_shards, bert, name="more")


def test_captions_too_long_for_an_encoder_are_cut_and_told(
    vision_copy: Path, captioned_shards: Path, bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embed(vision_copy, captioned_shards, bert, max_tokens=5)
    captions = opened(vision_copy)
    assert captions.token_counts_K.max() <= 5
    assert {cut["tokens"] for cut in captions.cuts} == {10}
    assert len(captions.cuts) == len(captions.texts)
    assert "captions test: caption 0 has 10 tokens and was cut after 'Square 0 in'" in caplog.text


def test_the_teacher_still_retrieves_nothing_by_them(
    vision_copy: Path, captioned_shards: Path, bert: Path
) -> None:
    from pipeline.evaluate import CachedData, _in_cache

    embed(vision_copy, captioned_shards, bert)
    test = TargetCache.open(vision_copy, "test", "eval")
    data = CachedData(vision_copy, 0, list, (), named=False, zeroshot=None)
    found, why = _in_cache(test, data, {"captions"})
    assert "captions" not in found
    assert "reads no text" in why["captions"]
