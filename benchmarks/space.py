"""Disk and memory: bytes per view, what reading one touches, the peak at ten times the samples."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.measure import Row, row
from pipeline.cache import layout, writer
from pipeline.cache.arrays import read_raw

DIM, ROWS, VIEWS = 512, 1000, 8


def rows() -> list[Row]:
    """Measure."""
    with TemporaryDirectory() as folder:
        return [*_disk(Path(folder)), *_memory(Path(folder))]


def publish(cache: Path, vectors_NVD: np.ndarray) -> Path:
    """Publish a unit of these targets; return its folder."""
    n, views, _ = vectors_NVD.shape
    unit = layout.UnitId("train", "000000", "views", 0, views - 1)
    arrays = {
        "targets": vectors_NVD.astype(np.float16),
        "norms": np.ones((n, views), np.float32),
        "params": np.zeros((n, views, len(layout.PARAM_COLUMNS)), np.float32),
        "valid": np.ones((n, views), bool),
        "keys": np.array([f"{i:06d}" for i in range(n)], dtype=object),
        "digests": np.zeros(n, np.uint64),
        "samples": np.zeros((n, len(layout.SAMPLE_COLUMNS)), np.int64),
    }
    writer.publish_unit(cache, unit, arrays, {"fingerprint": "", "skips": []})
    return cache / "units" / unit.name


def _disk(folder: Path) -> list[Row]:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(ROWS, VIEWS, DIM))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit = publish(folder / "disk", vectors)
    chunks = [path for path in (unit / "targets" / "c").rglob("*") if path.is_file()]
    per_view = sum(path.stat().st_size for path in chunks) / (ROWS * VIEWS)
    before = _bytes_read()
    read_raw(unit, "targets", (slice(None), 3))
    touched = (_bytes_read() - before) / (sum(p.stat().st_size for p in chunks) / VIEWS)
    share = per_view / (2 * DIM)
    note = "independent normal vectors: nothing in them but their exponents to compress"
    return [
        row("targets on disk / (2 x D), D=512", [share], "x", "<= 0.95", note),
        row("bytes read for one view of 8 / that view's bytes", [touched], "x", "1 + metadata"),
    ]


def _bytes_read() -> int:
    text = Path("/proc/self/io").read_text(encoding="utf-8")
    return int(text.split("rchar: ")[1].split()[0])


PEAK = """
import json, resource, sys
from pathlib import Path
from benchmarks.inputs import NullTeacher, jobs_over
from pipeline.conveyor import carry_units
from pipeline.resident import stop_renderers
jobs = jobs_over(Path(sys.argv[1]), Path(sys.argv[2]), 4, renderers=2, batch=64)
for _, outcome in carry_units(jobs, NullTeacher(), lambda _: None):
    if isinstance(outcome, Exception):
        raise outcome
stop_renderers()
who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
peaks = [resource.getrusage(one).ru_maxrss for one in who]
print(json.dumps(peaks))
"""


def _memory(folder: Path) -> list[Row]:
    from benchmarks.inputs import write_photos

    few = write_photos(folder / "few", 3, 100)
    many = write_photos(folder / "many", 30, 100)
    found = []
    for place, name in enumerate(("driver", "largest renderer")):
        growth = [_peaks(many, folder)[place] / _peaks(few, folder)[place] for _ in range(2)]
        found.append(row(f"peak memory at 10x the samples, {name}", growth, "x", "<= 1.05"))
    return found


def _peaks(shards: Path, folder: Path) -> list[int]:
    import shutil

    shutil.rmtree(folder / "cache", ignore_errors=True)
    command = [sys.executable, "-c", PEAK, str(shards), str(folder / "cache")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(json.loads(result.stdout))
