"""Damaged, foreign, hostile and changed shards: an error that names them, or nothing is lost."""

import gzip
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.cache.reader import TargetCache
from pipeline.errors import ShardError
from pipeline.tar import walk_tar
from tests.faults.commands import teacher_cache
from tests.faults.law import Law, check_law
from tests.inputs import labelled_samples
from tests.tars import BLOCK, LONG_KEY, NOT_UTF8, entries, member_header, tar_bytes
from tests.trees import tree_digests

IMAGE = labelled_samples(1)[0][1]["png"]
SAMPLES = [
    (f"{key}.{extension}", content)
    for key, members in labelled_samples(6, seed=3)
    for extension, content in members.items()
]
WHOLE = tar_bytes(SAMPLES)


def header_of(name: str) -> int:
    """Return where a member's header begins in WHOLE."""
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        return tar.getmember(name).offset


def flipped(place: int) -> bytes:
    return WHOLE[:place] + bytes([WHOLE[place] ^ 1]) + WHOLE[place + 1 :]


def unended() -> bytes:
    """Return WHOLE up to where its end begins."""
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        last = tar.getmembers()[-1]
    return WHOLE[: last.offset_data + -(-last.size // BLOCK) * BLOCK]


THIRD = header_of("00002.png")
DAMAGE: dict[str, tuple[bytes, str]] = {
    "cut-in-data": (WHOLE[: THIRD + BLOCK + 100], "claims"),
    "cut-at-a-member": (WHOLE[:THIRD], "too early"),
    "cut-inside-a-header": (WHOLE[: THIRD + 200], "too early"),
    "cut-before-its-end": (unended(), "too early"),
    "cut-inside-its-end": (unended() + bytes(BLOCK), "too early"),
    "flipped-in-a-header": (flipped(THIRD + 3), "bad header"),
    "flipped-in-a-checksum": (flipped(THIRD + 150), "bad header"),
    "zeroed-header": (WHOLE[:THIRD] + bytes(BLOCK) + WHOLE[THIRD + BLOCK :], "lone zero block"),
    "concatenated": (WHOLE + WHOLE, "data after the end"),
    "trailing-garbage": (WHOLE + b"\n", "data after the end"),
    "a-byte-in-the-padding": (WHOLE[:-1] + b"\1", "data after the end"),
    "keys-apart": (tar_bytes([*SAMPLES, ("00000.txt", b"")]), "key '00000' appears twice"),
    "a-member-twice": (tar_bytes([*SAMPLES, ("00005.cls", b"1")]), "'00005.cls' appears twice"),
    "a-link": (
        member_header("x.jpg", tarfile.SYMTYPE, link="/etc/passwd") + WHOLE, "no regular file"
    ),
    "a-huge-claim": (member_header("x.jpg", tarfile.REGTYPE, 1 << 50) + WHOLE, "claims"),
    "a-huge-name": (
        member_header("x", tarfile.GNUTYPE_LONGNAME, 1 << 21) + bytes(1 << 21) + WHOLE,
        "extended header of 2097152 bytes",
    ),
}  # fmt: skip


def put(folder: Path, **shards: bytes) -> Path:
    """Write train shards by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in shards.items():
        (folder / f"train-{name}.tar").write_bytes(content)
    return folder


def made(cache: Path, shards: object, recipe: Path, *arguments: str) -> Law:
    """Run stage one, which must succeed; return what the cache holds."""
    done = teacher_cache(cache, shards, recipe, *arguments)
    assert done.returncode == 0, done.stderr
    tars = sorted(shards.glob("*.tar")) if isinstance(shards, Path) else ()
    return check_law(cache, exit_code=0, tars=tars)


def test_damaged_tars_are_named_and_the_others_finish(tmp_path: Path, recipe_file: Path) -> None:
    contents = {name: content for name, (content, _) in DAMAGE.items()}
    shards = put(tmp_path / "shards", whole=WHOLE, **contents)
    cache = tmp_path / "cache"

    done = teacher_cache(cache, shards, recipe_file)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    for name, (_, words) in DAMAGE.items():
        lines = [line for line in done.stderr.splitlines() if f"/train-{name}.tar: " in line]
        assert len(lines) == 2, name  # its eval unit and its training unit
        assert all(words in line for line in lines), (name, lines)
    law = check_law(cache, exit_code=done.returncode)
    assert law.seen == {"train-whole": 6}
    assert len(law.missing) == 2 * len(DAMAGE)

    put(shards, **dict.fromkeys(DAMAGE, WHOLE))
    mended = made(cache, shards, recipe_file)
    assert mended.seen == {f"train-{name}": 6 for name in ("whole", *DAMAGE)}
    clean = made(tmp_path / "clean", shards, recipe_file)
    assert mended.arrays == clean.arrays
    assert law.arrays.items() < clean.arrays.items()


def test_what_is_no_shard_is_listed_at_once_before_any_model_is_loaded(
    tmp_path: Path, recipe_file: Path
) -> None:
    bomb = gzip.compress(bytes(50 << 20))
    shards = put(
        tmp_path / "shards", whole=WHOLE, empty=b"", page=b"<!DOCTYPE html>" * 100, bomb=bomb
    )
    (shards / "train-squeezed.tar.gz").write_bytes(bomb)
    (shards / "train-folder.tar").mkdir()
    (shards / "train-loop.tar").symlink_to("train-loop.tar")
    (shards / "train-nowhere.tar").symlink_to("gone.tar")
    os.mkfifo(shards / "train-pipe.tar")
    done = teacher_cache(
        *(tmp_path / "cache", f"{shards}/train-*", recipe_file),
        *("--shards", f"{shards}/train-{{000..001}}.tar"),
        *("--set", "teacher.model=local-dir:/nowhere"),
    )
    assert done.returncode == 1
    assert "10 of 11 shards" in done.stderr
    for name, words in (
        ("empty.tar", "empty file"),
        ("page.tar", "not a tar; it begins b'<!DOCTYPE html>"),
        ("bomb.tar", "not a tar; it begins b'\\x1f\\x8b"),
        ("squeezed.tar.gz", "not a .tar (compressed tars have no offsets: unpack them first)"),
        ("folder.tar", "a folder without any .tar"),
        ("loop.tar", "Too many levels of symbolic links"),
        ("nowhere.tar", "No such file"),
        ("pipe.tar", "not a file"),
        ("000.tar", "No such file"),
        ("001.tar", "No such file"),
    ):
        assert f"/train-{name}: {words}" in done.stderr, name
    assert check_law(tmp_path / "cache", exit_code=done.returncode).published == set()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:touch {folder}/owned; cat x",
        "pipe://touch {folder}/owned",
        "http://127.0.0.1:9/train-0.tar",
        "s3://bucket/train-0.tar",
        "file://{folder}/train-0.tar",
        "simplecache::http://127.0.0.1:9/train-0.tar",
    ],
)
def test_commands_and_urls_are_refused_in_lists_too(
    tmp_path: Path, recipe_file: Path, pattern: str
) -> None:
    (tmp_path / "list.txt").write_text(pattern.format(folder=tmp_path) + "\n")
    done = teacher_cache(tmp_path / "cache", f"@{tmp_path}/list.txt", recipe_file)
    assert done.returncode == 1
    assert "is no path" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"list.txt"}


def test_an_empty_tar_is_a_unit_of_no_rows(tmp_path: Path, recipe_file: Path) -> None:
    shards = put(tmp_path / "shards", whole=WHOLE, bare=bytes(2 * BLOCK), padded=bytes(10240))
    law = made(tmp_path / "cache", shards, recipe_file)
    assert law.seen == {"train-whole": 6, "train-bare": 0, "train-padded": 0}


def test_a_key_in_two_shards_is_two_samples(tmp_path: Path, recipe_file: Path) -> None:
    other = tar_bytes([("00000.png", IMAGE), ("00001.png", IMAGE)])
    law = made(tmp_path / "cache", put(tmp_path / "shards", a=WHOLE, b=other), recipe_file)
    assert law.seen == {"train-a": 6, "train-b": 2}
    assert TargetCache.open(tmp_path / "cache").rows_of("00000").tolist() == [0, 6]


def test_no_sample_vanishes_and_no_name_leaves_the_cache(tmp_path: Path, recipe_file: Path) -> None:
    """Names that readers drop, or that lead out of a folder, are names like others."""
    names = ["x.__bad__", "__key__", "README", ".hidden.png", "a/.hidden", "b/...png"]
    odd = ["../../x", "/etc/x", "a\nb", "k" * 4096, LONG_KEY, NOT_UTF8, "ä 🙂", "c:\\x", "%s"]
    files = [(name, b"x") for name in names] + [(f"{key}.png", IMAGE) for key in odd]
    shards = put(tmp_path / "deep" / "work" / "shards", odd=tar_bytes(files))
    cache = tmp_path / "deep" / "work" / "cache"
    before = tree_digests(tmp_path, ".")
    law = made(cache, shards, recipe_file, "--set", "max_skip_fraction=0.5")
    assert law.seen == {"train-odd": len(files)}
    after = tree_digests(tmp_path, ".")
    assert {name: after[name] for name in after if "work/cache/" not in name} == before
    assert set(law.reasons["train-odd.eval.v0-0"]) == set(range(len(names)))
    assert set(law.reasons["train-odd.eval.v0-0"].values()) == {"no-image"}
    opened = TargetCache.open(cache)
    for place, key in enumerate(odd, len(names)):
        assert opened.rows_of(key).tolist() == [place], key


def test_programs_beside_an_image_are_never_run(tmp_path: Path, recipe_file: Path) -> None:
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
    names = ("pyd", "pkl", "pickle", "pth", "pt", "npy", "json", "py", "gz", "so")
    files = [("a.png", IMAGE), *((f"a.{name}", evil) for name in names), ("b.png", IMAGE)]
    law = made(tmp_path / "cache", put(tmp_path / "shards", evil=tar_bytes(files)), recipe_file)
    assert law.seen == {"train-evil": 2}
    assert law.skipped == {"train-evil": 0}
    assert not (tmp_path / "owned").exists()


def test_samples_without_one_usable_image_are_counted_by_reason(
    tmp_path: Path, recipe_file: Path
) -> None:
    files = [
        *SAMPLES,
        ("s0.txt", b"a caption"),
        ("s1.jpg.gz", gzip.compress(bytes(1 << 20))),
        *(("s2.png", IMAGE), ("s2.jpg", IMAGE)),
        ("s3.png", b""),
        ("s4.png", bytes(30_001)),
        *(("s5.png", IMAGE), ("s5.cls", b"cat")),
        *(("s6.png", IMAGE), ("s6.cls", b"1" * 5000)),
    ]
    law = made(
        *(tmp_path / "cache", put(tmp_path / "shards", odd=tar_bytes(files)), recipe_file),
        *("--set", "max_skip_fraction=0.6", "--set", "decode.max_bytes=30000"),
    )
    assert law.seen == {"train-odd": 13}
    for unit in law.published:
        assert {n - 6: reason for n, reason in law.reasons[unit].items() if n >= 6} == {
            0: "no-image",
            1: "no-image",
            2: "several-images",
            3: "empty",
            4: "too-many-bytes",
            5: "bad-label",
            6: "bad-label",
        }


def test_too_many_skips_leave_the_cache_unsealed(tmp_path: Path, recipe_file: Path) -> None:
    shards = put(tmp_path / "shards", odd=tar_bytes([*SAMPLES, ("x.txt", b""), ("y.txt", b"")]))
    done = teacher_cache(tmp_path / "cache", shards, recipe_file)
    assert done.returncode == 3
    assert "2 of 8 train samples were skipped (no-image 2)" in done.stderr
    law = check_law(tmp_path / "cache", exit_code=done.returncode, tars=shards.glob("*.tar"))
    assert not law.sealed
    assert not law.missing
    allowed = made(tmp_path / "cache", shards, recipe_file, "--set", "max_skip_fraction=0.3")
    assert allowed.arrays == law.arrays


def edited(shards: Path) -> None:
    path = shards / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


def grown(shards: Path) -> None:
    with open(shards / "train-000001.tar", "ab") as file:
        file.write(bytes(BLOCK))


def reordered(shards: Path) -> None:
    """Write the same samples in another order: the same size, other bytes."""
    path = shards / "train-000001.tar"
    files = [(name, content) for name, _, content in entries(path)]
    pairs = [files[place : place + 2] for place in range(0, len(files), 2)]
    size = path.stat().st_size
    path.write_bytes(tar_bytes([file for pair in reversed(pairs) for file in pair]))
    assert path.stat().st_size == size


def swapped(shards: Path) -> None:
    """Exchange the names of two shards."""
    one, other = shards / "train-000000.tar", shards / "train-000001.tar"
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])


def removed(shards: Path) -> None:
    (shards / "train-000001.tar").unlink()


def added(shards: Path) -> None:
    (shards / "train-000002.tar").write_bytes(WHOLE)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (edited, "splits.train.shards.000001.sha256: cache has"),
        (grown, "splits.train.shards.000001.bytes: cache has"),
        (reordered, "splits.train.shards.000001.sha256: cache has"),
        (swapped, "splits.train.shards.000000.bytes: cache has"),
        (removed, "splits.train.shards.000001"),
        (added, "splits.train.shards.000002"),
    ],
)
def test_shards_that_changed_since_are_refused_with_each_field(
    tmp_path: Path,
    cache_copy: Path,
    shards_dir: Path,
    recipe_file: Path,
    change: Callable[[Path], None],
    field: str,
) -> None:
    shards = Path(shutil.copytree(shards_dir, tmp_path / "shards"))
    before = check_law(cache_copy)
    change(shards)
    done = teacher_cache(cache_copy, shards, recipe_file)
    assert done.returncode == 1
    assert field in done.stderr
    assert check_law(cache_copy, exit_code=done.returncode) == before
    shutil.rmtree(shards)
    shutil.copytree(shards_dir, shards)
    assert made(cache_copy, shards, recipe_file).arrays == before.arrays


def test_the_order_in_which_shards_are_named_says_nothing(
    cache_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    before = check_law(cache_copy)
    backwards = sorted(shards_dir.glob("*.tar"), reverse=True)
    more = [word for path in backwards[1:] for word in ("--shards", str(path))]
    assert made(cache_copy, str(backwards[0]), recipe_file, *more) == before


@pytest.mark.slow
def test_a_huge_member_is_read_over_in_little_memory(tmp_path: Path, recipe_file: Path) -> None:
    """A gigabyte beside an image, where a gigabyte cannot be had."""
    size, limit = 1 << 30, 700 << 20
    parts = [member_header("a.png", tarfile.REGTYPE, len(IMAGE)), IMAGE, bytes(-len(IMAGE) % BLOCK)]

    def sparse(name: str) -> Path:
        path = tmp_path / "test-0.tar"
        with open(path, "wb") as file:
            file.write(b"".join(parts) + member_header(name, tarfile.REGTYPE, size))
            file.truncate(file.tell() + size + 2 * BLOCK)
        return path

    done = teacher_cache(tmp_path / "one", sparse("a.npy"), recipe_file, memory_bytes=limit)
    assert done.returncode == 0, done.stderr
    assert check_law(tmp_path / "one", exit_code=0).seen == {"test-0": 1}
    # The image itself that large is a skip, and is not read into memory to find that out.
    arguments = (sparse("b.png"), recipe_file, "--set", "max_skip_fraction=0.5")
    done = teacher_cache(tmp_path / "two", *arguments, memory_bytes=limit)
    assert done.returncode == 0, done.stderr
    law = check_law(tmp_path / "two", exit_code=0)
    assert law.reasons == {"test-0.eval.v0-0": {1: "too-many-bytes"}}
    # Allowed, it is read: so the limit is one.
    allowed = ("--set", f"decode.max_bytes={2 * size}")
    done = teacher_cache(tmp_path / "three", *arguments, *allowed, memory_bytes=limit)
    assert done.returncode == 3
    assert "MemoryError" in done.stderr
    assert check_law(tmp_path / "three", exit_code=3).missing == {"test-0.eval.v0-0"}


# --- fuzz --------------------------------------------------------------------------------------

FILES = [
    *((f"{i:03d}.{ext}", bytes([i + 1]) * (190 * i + 17)) for i in range(8) for ext in "ab"),
    ("long-" * 30 + ".jpg", b"long"),
    ("ä/🙂.jpg", b"unicode"),
]


def walked(content: bytes) -> tuple[list[tuple[str, int, bytes]], str] | None:
    """Return (name, offset, content) of all entries and the sha256, or None if it is refused."""
    digest = sha256()
    try:
        walk = walk_tar("fuzzed", io.BytesIO(content), len(content), digest)
        found = [(entry.name, entry.offset, entry.read()) for entry in walk]
    except ShardError:
        return None
    return found, digest.hexdigest()


def headers_content(content: bytes) -> list[range]:
    """Return where the contents of extended headers lie, which no checksum of tar covers."""
    ranges, place = [], 0
    while any(block := content[place : place + BLOCK]):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            ranges.append(range(place + BLOCK, place + BLOCK + info.size))
        place += BLOCK + -(-info.size // BLOCK) * BLOCK
    return ranges


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def fuzzed(format: int) -> bytes:
    files = FILES if format != tarfile.USTAR_FORMAT else FILES[:-2]
    content = tar_bytes(files, format=format)
    assert 15_000 < len(content) < 40_000
    return content


@pytest.mark.parametrize("format", FORMATS)
def test_a_tar_cut_anywhere_is_refused_or_complete(format: int) -> None:
    content = fuzzed(format)
    whole = walked(content)
    assert whole is not None
    ends = len(content.rstrip(b"\0")) // BLOCK * BLOCK + 3 * BLOCK  # its two zero blocks
    complete = 0
    for length in range(0, len(content), 64):
        found = walked(content[:length])
        assert (found is None) == (length < ends), length
        if found is not None:  # only zeros after the end were lost
            complete += 1
            assert found[0] == whole[0]
            assert found[1] != whole[1]
    assert complete


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("format", FORMATS)
def test_a_tar_with_a_flipped_byte_is_refused_or_complete_and_seen_in_its_digest(
    format: int, mask: int
) -> None:
    """A tar has no checksum over contents: a flip there changes that content, and the sha256.

    The contents of extended headers (long and non-ASCII names) are contents too: a flip there that
    is not refused gives that one member another name. Nothing else is ever another, or missing.
    """
    content = fuzzed(format)
    whole = walked(content)
    assert whole is not None
    names_lie_in = headers_content(content)
    refused = 0
    for place in range(0, len(content), 64):
        damaged = bytearray(content)
        damaged[place] ^= mask
        found = walked(bytes(damaged))
        if found is None:
            refused += 1
            continue
        assert found[1] == sha256(damaged).hexdigest() != whole[1]
        for entry, expected in zip(found[0], whole[0], strict=True):
            name, offset, body = expected
            if any(place in lie for lie in names_lie_in):
                name = entry[0]
            if offset <= place < offset + len(body):
                body = bytes(damaged[offset : offset + len(body)])
            assert entry == (name, offset, body), place
        differing = [e for e, w in zip(found[0], whole[0], strict=True) if e != w]
        assert len(differing) <= 1
    assert refused >= len(whole[0]) * BLOCK // 64  # every header byte that was tried
