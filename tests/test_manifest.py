"""What a manifest holds and how it is compared."""

import json
from pathlib import Path

from pipeline.cache import layout
from pipeline.cache.reader import read_manifest


def test_the_fingerprint_ignores_where_a_teacher_lies_but_not_what_it_is(
    sealed_cache: Path,
) -> None:
    manifest = read_manifest(sealed_cache)
    moved = json.loads(json.dumps(manifest))
    moved["teacher"]["model"] = "local-dir:/elsewhere"
    assert layout.fingerprint(moved) == layout.fingerprint(manifest)
    other = json.loads(json.dumps(manifest))
    other["teacher"]["weights_sha256"] = "0" * 64
    assert layout.fingerprint(other) != layout.fingerprint(manifest)


def test_the_fingerprint_ignores_what_decides_no_bytes(sealed_cache: Path) -> None:
    manifest = read_manifest(sealed_cache)
    changed = {**manifest, "splits": {}, "made_with": {}, "generation": 5}
    assert layout.fingerprint(changed) == layout.fingerprint(manifest)


def test_the_manifest_names_the_columns_of_params_and_samples(sealed_cache: Path) -> None:
    manifest = read_manifest(sealed_cache)
    assert manifest["param_columns"] == list(layout.PARAM_COLUMNS)
    assert manifest["sample_columns"] == list(layout.SAMPLE_COLUMNS)
