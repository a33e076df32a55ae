"""The rows of a unit: skips, and vectors that are no vectors."""

import numpy as np
import pytest
import zarr

from pipeline.cache import layout
from pipeline.rendering import Rendered
from pipeline.shards import read_samples
from pipeline.unit import UnitJob, UnitRows


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_vector_that_is_no_vector_becomes_a_skip_and_is_never_valid(
    job: UnitJob, value: float
) -> None:
    rows = UnitRows(job, 8)
    samples = list(read_samples(job.shard))[:3]
    params_VP = np.zeros((2, len(layout.PARAM_COLUMNS)), np.float32)
    for sample in samples:
        vectors = np.eye(2, 8, dtype=np.float32)
        if sample.ordinal == 1:
            vectors[1] = value
        rows.add(sample)
        rows.describe(sample.ordinal, sample.image(), 0)
        rows.rendered(sample.ordinal, Rendered(5, 4, 3))
        rows.embedded(params_VP[:1], vectors[:1])
        rows.embedded(params_VP[1:], vectors[1:])
    report = rows.publish("0" * 64)
    assert (report.seen, report.skipped, report.views) == (3, 1, 4)
    group = zarr.open_group(job.cache / "units" / job.unit.name, mode="r")
    assert group["valid"][...].tolist() == [[True, True], [False, False], [True, True]]
    assert np.isnan(group["targets"][1]).all()
    assert group["samples"][:, 3:].tolist() == [[5, 4, 0]] * 3
    found = layout.unit_attributes(job.cache, job.unit, job.fingerprint)
    assert found is not None
    assert [(skip["ordinal"], skip["reason"]) for skip in found["skips"]] == [(1, "bad-vector")]


def test_the_first_reason_of_a_skip_stays(job: UnitJob) -> None:
    rows = UnitRows(job, 8)
    rows.add(next(iter(read_samples(job.shard))))
    rows.skip(0, "truncated", "first")
    rows.embedded(np.zeros((2, len(layout.PARAM_COLUMNS)), np.float32), np.zeros((2, 8)))
    assert rows.num_skipped == 1
    rows.publish("0" * 64)
    found = layout.unit_attributes(job.cache, job.unit, job.fingerprint)
    assert found is not None
    assert found["skips"] == [
        {"ordinal": 0, "key": "00000", "reason": "truncated", "detail": "first"}
    ]
