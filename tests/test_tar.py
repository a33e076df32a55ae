"""Tars are read whole, or refused."""

import contextlib
import io
import tarfile
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SampleError, ShardError
from pipeline.shards import (
    MAX_MEMBERS,
    Shard,
    find_shards,
    read_samples,
    split_name,
)
from pipeline.tar import MAX_HEADER_BYTES, _plain_header, walk_tar
from tests.tars import (
    BLOCK,
    LONG_KEY,
    NOT_UTF8,
    SMALL,
    contents,
    ended,
    entries,
    member_header,
    padded,
    pax,
    put,
    read,
    refusal,
    shard_at,
    tar_bytes,
)

# A name fits no USTAR header if it cannot be cut at a slash into 155 and 100 bytes.
NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300
)
LONG_NAMES = st.builds(str.__mul__, NAMES, st.integers(2, 60))


@settings(max_examples=300, deadline=None)
@given(
    files=st.lists(st.tuples(NAMES | LONG_NAMES, st.binary(max_size=1500)), max_size=8),
    folders=st.lists(st.integers(0, 7), max_size=2),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    mtime=st.floats(0, 1e9) | st.integers(0, 1 << 40),
)
def test_any_tar_that_tarfile_writes_reads_back_equal(
    files: list[tuple[str, bytes]], folders: list[int], format: int, mtime: float
) -> None:
    buffer = io.BytesIO()
    written = []
    with tarfile.open(fileobj=buffer, mode="w", format=format, encoding="utf-8") as tar:
        for place, (name, content) in enumerate(files):
            if place in folders:
                folder = tarfile.TarInfo("folder/")
                folder.type = tarfile.DIRTYPE
                tar.addfile(folder)
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            try:
                tar.addfile(info, io.BytesIO(content))
            except ValueError:  # too long for USTAR
                assert format == tarfile.USTAR_FORMAT
            else:
                written.append((name, content))
    tar_of = buffer.getvalue()
    digest = sha256()
    found = []
    for entry in walk_tar("written", io.BytesIO(tar_of), len(tar_of), digest):
        content = entry.read()
        assert tar_of[entry.offset : entry.offset + entry.size_bytes] == content
        found.append((entry.name, content))
    assert found == written
    assert digest.hexdigest() == sha256(tar_of).hexdigest()


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 3000), max_size=8), read=st.integers(0, 255))
def test_what_is_not_read_is_passed_over_and_still_hashed(sizes: list[int], read: int) -> None:
    content = tar_bytes([(f"{i}.x", bytes([i + 1]) * size) for i, size in enumerate(sizes)])
    digest, found = sha256(), []
    for i, entry in enumerate(walk_tar("x", io.BytesIO(content), len(content), digest)):
        assert entry.size_bytes == sizes[i]
        if read >> i & 1:
            assert entry.read() == bytes([i + 1]) * sizes[i]
        found.append(entry.name)
    assert found == [f"{i}.x" for i in range(len(sizes))]
    assert digest.hexdigest() == sha256(content).hexdigest()


def test_memory_holds_two_images_and_nothing_that_is_not_read(tmp_path: Path) -> None:
    """A sample's other members, and all images but its first, are read over."""
    size = 8 << 20
    files = [
        (f"{key}.{extension}", bytes([1]) * size)
        for key in "abc"
        for extension in ("npy", "json", "jpg", "jpeg", "png", "webp", "cls")
    ]
    shard = put(tmp_path, tar_bytes(files))
    tracemalloc.start()
    try:
        for sample in read_samples(shard):
            assert sum(len(member.held or b"") for member in sample.members.values()) == size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < peak < 2.5 * size  # the sample in hand, and the next one


def test_texts_are_held_for_those_alone_who_ask_and_up_to_their_cap(tmp_path: Path) -> None:
    names = ("txt", "json", "jpg", "png", "cls", "pkl", "npy", "seg.json", "text")
    files = [(f"a.{name}", b"12345") for name in names] + [("b.txt", b"123456"), ("b.json", b"")]
    shard = put(tmp_path, tar_bytes(files))

    def held(**most: int) -> list[set[str]]:
        return [
            {name for name, member in sample.members.items() if member.held is not None}
            for sample in read_samples(shard, **most)
        ]

    assert held() == [{"jpg", "cls"}, set()]
    assert held(max_text_bytes=5) == [{"txt", "json", "jpg", "cls"}, {"json"}]
    assert held(max_image_bytes=-1, max_text_bytes=9) == [{"txt", "json", "cls"}, {"txt", "json"}]


def test_an_image_over_the_cap_is_not_held(tmp_path: Path) -> None:
    shard = put(tmp_path, tar_bytes([("a.jpg", b"12345"), ("b.jpg", b"1234")]))
    large, small = read_samples(shard, max_image_bytes=4)
    with pytest.raises(SampleError, match="too-many-bytes"):
        _ = large.image().content
    assert large.image().size_bytes == 5
    assert small.image().content == b"1234"


def test_a_sample_of_endless_members_is_refused(tmp_path: Path) -> None:
    files = [(f"a.{i}", b"") for i in range(MAX_MEMBERS)]
    assert [len(s.members) for s in read(put(tmp_path, tar_bytes(files)))] == [MAX_MEMBERS]
    shard = put(tmp_path, tar_bytes([*files, ("a.last", b"")]))
    assert f"key 'a' has more than {MAX_MEMBERS} members" in refusal(shard)


@pytest.fixture
def small(tmp_path: Path) -> Shard:
    """A tar of about 20 kB."""
    return put(tmp_path, tar_bytes(SMALL))


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_and_offsets_agree_with_tarfile(tmp_path: Path, format: int) -> None:
    shard = put(tmp_path, tar_bytes(SMALL, format=format))
    content = shard.path.read_bytes()
    with tarfile.open(shard.path) as tar:
        expected = [(info.name, info.offset_data, tar.extractfile(info).read()) for info in tar]
    found = entries(shard.path)
    assert found == expected
    assert len(found) == len(SMALL)
    for _, offset, body in found:
        assert content[offset : offset + len(body)] == body


def test_samples_agree_with_webdataset(shards_dir: Path) -> None:
    import webdataset

    shards = find_shards([str(shards_dir)])
    assert [(s.split, s.name) for s in shards] == [
        ("train", "000000"),
        ("train", "000001"),
        ("test", "000000"),
    ]
    for shard in shards:
        theirs = [  # images and labels, which is all that a sample holds
            (item["__key__"], {k: v for k, v in item.items() if not k.startswith("__")})
            for item in webdataset.WebDataset(str(shard.path), shardshuffle=False)
        ]
        assert contents(read(shard)) == theirs
        assert len(theirs) in {14, 10, 12}


def test_ordinals_count_from_zero(small: Shard) -> None:
    samples = read(small)
    assert [sample.ordinal for sample in samples] == list(range(10))
    assert [sample.key for sample in samples][-2:] == ["folder/a", "note"]


def test_digest_is_the_files(small: Shard) -> None:
    digest = sha256()
    for _ in read_samples(small, digest):
        pass
    assert digest.hexdigest() == sha256(small.path.read_bytes()).hexdigest()


def test_reading_twice_gives_the_same(small: Shard) -> None:
    assert read(small) == read(small)


def test_samples_are_read_one_at_a_time(tmp_path: Path) -> None:
    """What comes before the damage is there; the damage is not passed over."""
    content = tar_bytes(SMALL)
    shard = put(tmp_path, content[: content.index(b"003.jpg")])
    samples = read_samples(shard)
    assert [next(samples).key, next(samples).key] == ["000", "001"]
    with pytest.raises(ShardError):  # 002 might have had more members
        next(samples)


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("a.jpg", "a", "jpg"),
        ("a.JPG", "a", "jpg"),
        ("a.seg.png", "a", "seg.png"),
        ("x.y/a.jpg", "x.y/a", "jpg"),
        ("./a.jpg", "./a", "jpg"),
        ("../../a.jpg", "../../a", "jpg"),
        ("/a.jpg", "/a", "jpg"),
        ("a\nb.jpg", "a\nb", "jpg"),
        ("a.", "a", ""),
        ("note", "note", ""),
        (".hidden", ".hidden", ""),
        ("x/.hidden.jpg", "x/.hidden.jpg", ""),
        ("ä 🙂.webp", "ä 🙂", "webp"),
    ],
)
def test_a_name_splits_at_the_base_names_first_dot(name: str, key: str, extension: str) -> None:
    assert split_name(name) == (key, extension)


def test_no_member_vanishes(tmp_path: Path) -> None:
    """Names that webdataset drops without a word become samples without an image."""
    files = [(name, b"x") for name in ("a.jpg", "a.__bad__", ".hidden", "README", "__x__")]
    samples = read(put(tmp_path, tar_bytes(files)))
    assert sum(len(sample.members) for sample in samples) == 5
    assert [sample.key for sample in samples] == ["a", ".hidden", "README", "__x__"]


@pytest.mark.parametrize(
    "key", ["../../x", "/etc/x", "a\nb", LONG_KEY, "k" * 4096, NOT_UTF8, "ä 🙂"]
)
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_key_survives(tmp_path: Path, key: str, format: int) -> None:
    files = [("first.jpg", b"1"), (f"{key}.jpg", b"2"), (f"{key}.cls", b"3"), ("last.jpg", b"4")]
    shard = put(tmp_path, tar_bytes(files, format=format))
    assert contents(read(shard)) == [
        ("first", {"jpg": b"1"}),
        (key, {"jpg": b"2", "cls": b"3"}),
        ("last", {"jpg": b"4"}),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar"]


def test_folders_are_passed_over(tmp_path: Path) -> None:
    shard = put(
        tmp_path,
        ended(
            member_header("x/", tarfile.DIRTYPE),
            member_header("x/a.jpg", tarfile.REGTYPE, 3),
            padded(b"abc"),
            # Some writers state a size here; nothing of that size follows.
            member_header("y/", tarfile.DIRTYPE, 4096),
            member_header("y/b.jpg", tarfile.REGTYPE, 3),
            padded(b"def"),
        ),
    )
    assert contents(read(shard)) == [("x/a", {"jpg": b"abc"}), ("y/b", {"jpg": b"def"})]


def test_extended_size_counts(tmp_path: Path) -> None:
    header = member_header("a.jpg", tarfile.REGTYPE, 0)
    shard = put(tmp_path, ended(pax(b"9 size=3\n"), header, padded(b"abc")))
    assert contents(read(shard)) == [("a", {"jpg": b"abc"})]


def test_global_headers_are_passed_over(tmp_path: Path) -> None:
    records = b"16 comment=hello\n"
    shard = put(
        tmp_path,
        ended(
            member_header("g", tarfile.XGLTYPE, len(records)),
            padded(records),
            member_header("a.jpg", tarfile.REGTYPE, 3),
            padded(b"abc"),
        ),
    )
    assert contents(read(shard)) == [("a", {"jpg": b"abc"})]


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    for size in (2 * BLOCK, 10240):
        assert read(put(tmp_path, bytes(size))) == []


def test_an_empty_member_is_kept(tmp_path: Path) -> None:
    assert contents(read(put(tmp_path, tar_bytes([("a.jpg", b"")])))) == [("a", {"jpg": b""})]


def test_programs_in_a_shard_are_bytes_only(tmp_path: Path) -> None:
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
    shard = put(tmp_path, tar_bytes([("a.pyd", evil), ("a.pkl", evil), ("a.pth", evil)]))
    assert [len(sample.members) for sample in read(shard)] == [3]
    assert not (tmp_path / "owned").exists()


# --- damage ------------------------------------------------------------------------------------


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


PLAIN = tar_bytes([("a.jpg", b"abc"), ("b.jpg", b"def")])
BARE = PLAIN[: 4 * BLOCK]  # two members, no end
FIRST, SECOND = BARE[: 2 * BLOCK], BARE[2 * BLOCK :]
DAMAGED = {
    "flipped byte in a name": (flip(PLAIN, 0), "bad header"),
    "flipped byte in the second header": (flip(PLAIN, 2 * BLOCK + 130), "bad header"),
    "concatenated": (PLAIN + PLAIN, "data after the end"),
    "concatenated without padding": (ended(FIRST) + ended(SECOND), "data after the end"),
    "trailing text": (PLAIN + b"x", "data after the end"),
    "trailing block": (ended(BARE) + b"\1" * BLOCK, "data after the end"),
    "lone zero block": (ended(FIRST, bytes(BLOCK), SECOND), "lone zero block"),
    "no end": (BARE, "too early"),
    "half an end": (BARE + bytes(BLOCK), "too early"),
    "zero header": (flip(ended(FIRST, bytes(BLOCK)), 0), "bad header"),
    "symbolic link": (
        ended(member_header("a.jpg", tarfile.SYMTYPE, link="/etc/passwd")), "no regular file"
    ),
    "hard link": (
        ended(FIRST, member_header("b.jpg", tarfile.LNKTYPE, link="a.jpg")), "no regular file"
    ),
    "hard link with a size": (
        ended(FIRST, member_header("b.jpg", tarfile.LNKTYPE, 3, link="a.jpg")), "no regular"
    ),
    "device": (ended(member_header("a.jpg", tarfile.CHRTYPE)), "no regular file"),
    "pipe": (ended(member_header("a.jpg", tarfile.FIFOTYPE)), "no regular file"),
    "sparse": (ended(member_header("a.jpg", tarfile.GNUTYPE_SPARSE)), "no regular file"),
    "sparse in extended form": (
        ended(pax(b"22 GNU.sparse.major=1\n"), FIRST), "sparse"
    ),
    "claims more than there is": (
        ended(member_header("a.jpg", tarfile.REGTYPE, 1 << 20)), "claims 1048576 bytes of the 1024"
    ),
    "claims more than any disk has": (
        ended(member_header("a.jpg", tarfile.REGTYPE, 1 << 60)), "claims"
    ),
    "a name of more than a megabyte": (
        ended(
            member_header("././@LongLink", tarfile.GNUTYPE_LONGNAME, MAX_HEADER_BYTES + 1),
            padded(b"a" * (MAX_HEADER_BYTES + 1)),
            FIRST,
        ),
        "extended header of 1048577 bytes",
    ),
    "claims less than nothing": (ended(member_header("a.jpg", tarfile.REGTYPE, -1)), "claims"),
    "key appears twice": (tar_bytes([("a.jpg", b""), ("b.jpg", b""), ("a.cls", b"")]), "'a'"),
    "member appears twice": (tar_bytes([("a.jpg", b""), ("a.JPG", b"")]), "'a.JPG'"),
    "long name without its member": (
        ended(FIRST, member_header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 4), padded(b"abc\0")),
        "without its member",
    ),
    "records without their member": (ended(FIRST, pax(b"10 path=a\n")), "without its member"),
    "record of length 0": (ended(pax(b"0 path=a\n"), FIRST), "bad extended header"),
    "record of length -5": (ended(pax(b"-5 path=a\n"), FIRST), "bad extended header"),
    "record too long": (ended(pax(b"99 path=a\n"), FIRST), "bad extended header"),
    "record too short": (ended(pax(b"7 path=a\n"), FIRST), "bad extended header"),
    "record without a value": (ended(pax(b"7 path\n"), FIRST), "bad extended header"),
    "record without a number": (ended(pax(b"path=a\n"), FIRST), "bad extended header"),
    "record with another size": (ended(pax(b"10 size=x\n"), FIRST), "bad extended header"),
}  # fmt: skip


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_an_error_that_names_the_file(tmp_path: Path, kind: str) -> None:
    content, words = DAMAGED[kind]
    path = tmp_path / "train-000000.tar"
    path.write_bytes(content)
    assert words in refusal(shard_at(path))


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
    st.text("ab/.0", min_size=1, max_size=99),
    st.integers(0, 8**11 - 1),
    st.dictionaries(st.integers(0, BLOCK - 1), st.integers(0, 255), max_size=3),
    st.booleans(),
)
def test_a_header_read_the_short_way_says_what_tarfile_reads(
    format: int, name: str, size: int, changed: dict[int, int], mended: bool
) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    block = bytearray(info.tobuf(format)[-BLOCK:])
    for place, value in changed.items():
        block[place] = value
    if mended:  # so that the sum is right whatever else changed
        block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    if (plain := _plain_header(bytes(block))) is None:
        assert changed or format == tarfile.GNU_FORMAT or name.endswith("/") or "//" in name
        return
    with contextlib.ExitStack() as allowed:
        if mended:  # a field may be wrong that says nothing about where the content lies
            allowed.enter_context(contextlib.suppress(tarfile.InvalidHeaderError))
        whole = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
        assert tuple(plain) == (whole.type, whole.name, whole.size)
