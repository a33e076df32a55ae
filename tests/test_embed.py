"""Stage one: what a cache holds, and what stops it."""

from pathlib import Path

from pipeline.cache.reader import TargetCache


def test_cache_holds_every_sample(sealed_cache: Path) -> None:
    assert len(TargetCache.open(sealed_cache, "train")) == 24
    assert len(TargetCache.open(sealed_cache, "test")) == 12
