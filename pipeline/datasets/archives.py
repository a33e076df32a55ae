"""Finds a dataset's official files, holds them against their md5, lays them out for torchvision."""

import gzip
import logging
import pickle
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.datasets.sets import Place
from pipeline.errors import DataError

DOWNLOADS = Path("data/downloads")
# What torchvision and what it reads with raise of files that are not what they should be.
_UNREADABLE = (
    *(AssertionError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(pickle.PickleError, tarfile.TarError),
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """One official file: its name, md5 and address, and the folder where torchvision looks for it.

    unpacked: what stands for it there once it is unpacked; "" if it is read as it is. repacked:
    whether a copy packed anew, of another md5, may serve: what is in it runs no code.
    """

    name: str
    md5: str
    url: str
    folder: str = ""
    unpacked: str = ""
    repacked: bool = False


class Archives:
    """The official files of one dataset, ready to be read by a class of torchvision."""

    def __init__(self, name: str, archives: tuple[Archive, ...], place: Place) -> None:
        """Look for the files; raises DataError naming all that are missing or damaged."""
        self._name, self._archives = name, archives
        self._root, self._download = DOWNLOADS / name, True
        if place.source is not None:
            self._root = place.scratch
            self._download = _lay_out(place.source, archives, self._root)

    def read(self, make: Callable[..., Any]) -> Any:
        """Return make(root, download=...); raises DataError if the files are not to be had."""
        try:
            return make(self._root, download=self._download)
        except _UNREADABLE as error:
            raise DataError(
                f"cannot read {self._name} in {self._root}: {type(error).__name__}: {error}\n"
                f"Put these files in a folder, and name it with --from:\n"
                f"{_addresses(self._archives)}"
            ) from None


def _lay_out(source: Path, archives: Sequence[Archive], root: Path) -> bool:
    """Link what lies in `source` to where torchvision looks; tell whether all is there packed."""
    if not source.is_dir():
        raise DataError(f"{source} is no folder; expected one with:\n{_addresses(archives)}")
    found = {archive: _located(source, archive) for archive in archives}
    if missing := [archive for archive, places in found.items() if not places]:
        raise DataError(
            f"{source} lacks {', '.join(item.name for item in missing)}; it holds "
            f"{listed(source)}. Put there, as they come:\n{_addresses(missing)}"
        )
    for archive, places in found.items():
        folder = root / archive.folder
        folder.mkdir(parents=True, exist_ok=True)
        for place in places:
            _check(archive, place)
            if archive.repacked and place.name == archive.name:
                _gunzip(place, folder / archive.unpacked)
            else:
                (folder / place.name).symlink_to(place.resolve())
    return all(archive.name in [place.name for place in found[archive]] for archive in archives)


def _gunzip(packed: Path, to: Path) -> None:
    try:
        with gzip.open(packed) as source, open(to, "wb") as target:
            shutil.copyfileobj(source, target)
    except (OSError, EOFError) as error:
        raise DataError(f"{packed} is damaged: {error}; get it anew") from None


def _located(source: Path, archive: Archive) -> list[Path]:
    """Return where a file lies, as it came or unpacked: in `source`, or laid out below it."""
    if archive.unpacked and source.name == archive.unpacked:
        return [source]
    folder = Path(archive.folder)
    names = [name for name in (archive.unpacked, archive.name) if name]
    for base in (source, source / folder, source / folder.name):
        if places := [base / name for name in names if (base / name).exists()]:
            return places
    return []


def _check(archive: Archive, place: Path) -> None:
    from torchvision.datasets.utils import calculate_md5

    if place.name != archive.name or not place.is_file():
        return
    found = calculate_md5(str(place))
    if found != archive.md5 and archive.repacked:
        _log.warning("%s was packed anew: its md5 is not the official one", place)
    elif found != archive.md5:
        raise DataError(
            f"{place} is damaged or another file: its md5 is {found}, that of the official one "
            f"{archive.md5}; get it anew from {archive.url}"
        )


def listed(folder: Path) -> str:
    """Name the first of what a folder holds, for a message."""
    names = sorted(path.name for path in folder.iterdir())
    return f"{', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}"


def _addresses(archives: Sequence[Archive]) -> str:
    return "\n".join(f"  {item.name} (md5 {item.md5}), from {item.url}" for item in archives)
