"""What holds for every probe: plain results, and a teacher known by a cache alone is a subject."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cache.reader import TargetCache
from pipeline.features import teacher_features
from pipeline.probes import PROBES, ProbeOptions
from pipeline.probes.contract import Subject
from pipeline.schedule import EVAL


@pytest.fixture(scope="module")
def teacher(sealed_cache: Path) -> Subject:
    """The teacher, of a real cache, under its own eye."""
    caches = [TargetCache.open(sealed_cache, split, EVAL) for split in ("test", "train")]
    test, train = (teacher_features(cache) for cache in caches)
    return Subject(test, train, anchors=caches[0].anchors("shapes-plain"), teacher=test)


@pytest.mark.parametrize("name", PROBES)
def test_a_teacher_known_by_the_cache_alone_is_scored(name: str, teacher: Subject) -> None:
    found = PROBES[name].run(teacher, getattr(ProbeOptions(), name))
    assert PROBES[name].headline in found.scores
    assert all(type(value) is float for value in found.scores.values())
    assert np.isfinite(list(found.scores.values())).all()
    assert json.loads(json.dumps(found.details, allow_nan=False)) == found.details


@pytest.mark.parametrize("name", PROBES)
def test_what_a_probe_needs_is_all_that_it_cannot_do_without(name: str, teacher: Subject) -> None:
    needs = PROBES[name].needs | set(sorted(PROBES[name].one_of)[:1])
    bare = Subject(test=teacher.test, **{need: getattr(teacher, need) for need in needs})
    found = PROBES[name].run(bare, getattr(ProbeOptions(), name))
    assert PROBES[name].headline in found.scores


@pytest.mark.parametrize("name", PROBES)
def test_the_same_scores_come_twice_and_nothing_given_changes(name: str, teacher: Subject) -> None:
    before = teacher.test.embedding_ND.copy()
    options = getattr(ProbeOptions(), name)
    one, other = (PROBES[name].run(teacher, options) for _ in range(2))
    assert one.scores == other.scores
    assert without_seconds(one.details) == without_seconds(other.details)
    np.testing.assert_array_equal(teacher.test.embedding_ND, before)


def without_seconds(details: Any) -> Any:
    """Return details without what a clock decides."""
    if isinstance(details, dict):
        return {k: without_seconds(v) for k, v in details.items() if k != "seconds"}
    return details
