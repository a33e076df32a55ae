"""What is known of a dataset before it is read: source, licence, splits, files."""

from pathlib import Path

from pipeline.options import options, parse
from pipeline.yamlfile import read_yaml

_BUNDLED = Path(__file__).parents[1] / "bundled" / "datasets"  # in an installed wheel
_CLONE = Path(__file__).parents[2] / "data" / "datasets"
FACTS_FOLDER = _BUNDLED if _BUNDLED.is_dir() else _CLONE


@options
class Facts:
    """One file of data/datasets.

    splits: images by split, as they are written. images: in all. files: what `--from` wants; bytes:
    of those whose size is known. download: whether it works without them. prompts: its prompt file.
    """

    name: str
    source: str
    license: str
    classes: int | None
    splits: dict[str, int]
    images: int
    files: tuple[str, ...]
    bytes: dict[str, int]
    download: bool
    prompts: str | None
    note: str


def facts_of(name: str) -> Facts | None:
    """Return what is known of a dataset, None of one that has no home of its own."""
    path = FACTS_FOLDER / f"{name}.yaml"
    if not path.exists():
        return None
    where = f"facts {path}"
    return parse(Facts, read_yaml(path, where=where), where=where)
