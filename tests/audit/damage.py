"""Ways in which what lies on a disk goes bad."""

import os
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def swap(one: Path, other: Path) -> None:
    temporary = one.with_name("swapped")
    os.rename(one, temporary)
    os.rename(other, one)
    os.rename(temporary, other)


DAMAGES: dict[str, Damage] = {
    "flipped": flip,
    "cut": cut,
    "empty": empty,
    "zeros": zeros,
    "deleted": Path.unlink,
}


def chunk(cache: Path, unit: str, array: str, view: int | None = None) -> Path:
    """Return the (first) chunk file of an array, or of one of its views, counted from 0."""
    files = sorted(file for file in (cache / "units" / unit / array / "c").rglob("*"))
    files = [file for file in files if file.is_file()]
    return files[view or 0]
