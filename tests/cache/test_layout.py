"""Names and digests of the cache."""

import numpy as np
import pytest

from pipeline.cache import layout


def test_planned_units_cover_every_shard_schedule_and_range() -> None:
    manifest = {
        "splits": {
            "train": {
                "shards": [{"name": "0"}, {"name": "1"}],
                "views": {"eval": [[0, 0]], "mild": [[0, 3], [4, 5]]},
            },
            "test": {"shards": [{"name": "0"}], "views": {"eval": [[0, 0]]}},
        }
    }
    names = [unit.name for unit in layout.planned_units(manifest)]
    assert names == [
        "train-0.eval.v0-0",
        "train-0.mild.v0-3",
        "train-0.mild.v4-5",
        "train-1.eval.v0-0",
        "train-1.mild.v0-3",
        "train-1.mild.v4-5",
        "test-0.eval.v0-0",
    ]


@pytest.mark.parametrize("shape", [(10, 8, 512), (10_000, 8, 512), (0, 2, 16)])
def test_one_view_is_a_chunk_of_its_own(shape: tuple[int, ...]) -> None:
    chunks = layout.chunk_shape(layout.UNIT_ARRAYS["targets"], shape)
    assert chunks[0] <= layout.CHUNK_ROWS
    assert chunks[1:] == (1, shape[2])


def test_the_digest_tells_values_shapes_and_strings_apart() -> None:
    a = np.arange(6, dtype=np.float32)
    others = [a.reshape(2, 3), a + 1, np.array(["0", "1"], dtype=object), np.array(["01"], object)]
    digests = {layout.array_digest(array) for array in [a, *others]}
    assert len(digests) == 5
    assert layout.array_digest(a) == layout.array_digest(a.copy())


def test_a_transposed_view_has_the_digest_of_its_values() -> None:
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    assert layout.array_digest(array.T) == layout.array_digest(np.ascontiguousarray(array.T))


@pytest.mark.parametrize(
    ("key", "escaped"),
    [
        ("plain/key", "plain/key"),
        ("ünïcödé", "ünïcödé"),
        (b"a\xffb".decode("utf-8", "surrogateescape"), "a\\xffb"),
        ("back\\slash", "back\\\\slash"),
    ],
)
def test_keys_are_escaped_to_text_that_any_file_can_hold(key: str, escaped: str) -> None:
    assert layout.escape_key(key) == escaped
    escaped.encode("utf-8")


def test_different_keys_never_escape_to_the_same_text() -> None:
    stray = b"a\xff".decode("utf-8", "surrogateescape")
    assert layout.escape_key(stray) != layout.escape_key("a\\xff")
