"""What a dataset is before it is shards: splits of samples, and the names of its classes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Pairs = Iterator[tuple[str, Mapping[str, bytes]]]  # (key, {extension: content}), an image first


@dataclass(frozen=True)
class Split:
    """One split, or a part of it with shards of its own ("unlabelled").

    samples: begins anew with each call, always in one order. size: how many there are, if that is
    known beforehand.
    """

    name: str
    samples: Callable[[], Pairs]
    size: int | None = None
    part: str = ""

    @property
    def prefix(self) -> str:
        """What the names of its shards begin with."""
        return f"{self.name}-{self.part}" if self.part else self.name


@dataclass(frozen=True)
class Dataset:
    """Splits in the order in which they are written; classes in the order of the labels.

    files: what else is written beside the shards, by name. left_out: what was not taken, by reason;
    complete when every split has been read.
    """

    splits: tuple[Split, ...]
    classes: tuple[str, ...] = ()
    files: Mapping[str, bytes] | None = None
    left_out: dict[str, int] | None = None


@dataclass(frozen=True)
class Place:
    """Where a dataset's official files lie (None: they are downloaded), and a folder to unpack in.

    scratch is emptied when the dataset has been written.
    """

    source: Path | None
    scratch: Path
