"""Compares folders by content."""

from hashlib import sha256
from pathlib import Path


def tree_digests(root: Path, *places: str) -> dict[str, str]:
    """Return relative path -> sha256 of every file below the named places of `root`."""
    files = (file for place in places for file in (root / place).rglob("*") if file.is_file())
    return {str(f.relative_to(root)): sha256(f.read_bytes()).hexdigest() for f in files}


def cache_digests(cache: Path) -> dict[str, str]:
    """Return the digests of everything that a cache publishes but its manifest (it has times)."""
    return tree_digests(cache, "units", "anchors", "captions", "index")


def tree_stamps(root: Path) -> dict[str, tuple[str, int]]:
    """Return relative path -> (sha256, time of change) of every file of `root` but its lock."""
    digests = tree_digests(root, ".")
    return {
        name: (digest, (root / name).stat().st_mtime_ns)
        for name, digest in digests.items()
        if name != ".lock"
    }
