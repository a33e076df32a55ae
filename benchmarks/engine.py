"""What the engine adds to a unit: many short jobs on a few workers, and on 64 simulated ones."""

import logging
import time

from benchmarks.measure import Row, row
from pipeline.cluster import Place
from pipeline.engine import run_jobs
from pipeline.runtime import Send

_UNITS = 200
_SECONDS = 0.05  # of one unit, on the few; they all wait, so that cores are no bound
_SIMULATED = 64


def stub(seconds: float, send: Send) -> float:
    """Stand for a unit: wait, and say when it began and ended."""
    time.sleep(seconds)
    send((1, 1))
    return time.time()


def rows() -> list[Row]:
    """Measure."""
    found = []
    for workers in (1, 2, 4):
        overheads = [_overhead_ms(Place(workers=workers), workers, _SECONDS) for _ in range(3)]
        note = f"{_UNITS} stub units of {1000 * _SECONDS:.0f} ms"
        found.append(row(f"per unit, {workers} workers", overheads, "ms of a worker", "", note))
    rates = [_simulated_rate() for _ in range(2)]
    driver_ms = [1000 / rate for rate in rates]
    note = f"{_SIMULATED} worker threads in one process, a simulation"
    found.append(row("driver and scheduler per unit", driver_ms, "ms, at most", "", note))
    samples = 10_000  # of a shard
    hours = [1e9 / samples * ms / 1000 / 3600 for ms in driver_ms]
    note = "100,000 units of 10,000 samples: their book-keeping, on paper"
    return [*found, row("engine's share of 1e9 samples", hours, "hours", "", note)]


def _overhead_ms(place: Place, workers: int, seconds: float, units: int = _UNITS) -> float:
    """Return how much longer a unit holds a worker than it works."""
    ends = [
        outcome
        for _, outcome in run_jobs(
            stub, [seconds] * units, place=place, threads=1, libraries={}, listen=lambda _: None
        )
        if isinstance(outcome, float)
    ]
    assert len(ends) == units
    each = (max(ends) - min(ends)) * workers / (units - workers)
    return 1000 * (each - seconds)


def _simulated_rate() -> float:
    """Return units per second that one driver and scheduler keep up with, at 64 workers."""
    from distributed import LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # 64 workers say goodbye
    with LocalCluster(
        n_workers=_SIMULATED,
        threads_per_worker=1,
        processes=False,
        host="127.0.0.1",
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
    ) as cluster:
        place = Place(scheduler=cluster.scheduler_address)
        began = time.perf_counter()
        units = 5 * _SIMULATED
        _overhead_ms(place, _SIMULATED, 0.0, units)
        return units / (time.perf_counter() - began)
