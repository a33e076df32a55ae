"""How busy stage one keeps a device: a simulated one at set rates, and a real CPU forward."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.host import BATCH, CORES, HostSide
from benchmarks.inputs import NullTeacher, SimulatedDevice, jobs_over
from benchmarks.measure import ROUNDS, Row, row, seconds
from pipeline.conveyor import carry_units

VIEWS = 4


class TimedForward(NullTeacher):
    """ViT-B-32 with random weights, which says how long its forward took."""

    def __init__(self) -> None:
        import open_clip

        super().__init__(size=224, dim=512)
        self._model = open_clip.create_model("ViT-B-32").eval()
        self.seconds = 0.0

    def encode_images(self, views_B3SS: torch.Tensor) -> torch.Tensor:
        """Embed, timed."""
        began = time.perf_counter()
        with torch.inference_mode():
            vectors = self._model.encode_image(views_B3SS.float() / 255, normalize=True)
        self.seconds += time.perf_counter() - began
        return vectors


def rows() -> list[Row]:
    """Measure."""
    with TemporaryDirectory() as folder:
        host = HostSide(Path(folder), 2000)
        host.run(VIEWS)
        found = []
        for share in (0.5, 0.75, 0.9):
            idle, rates = [], []
            for _ in range(ROUNDS):
                rate = (
                    host.run(VIEWS) * share
                )  # measured beside, so that both meet the same machine
                device = SimulatedDevice(rate)
                _carry(host, Path(folder) / "cache", device)
                idle.append(100 * device.idle_share())
                rates.append(rate)
            note = f"simulated device at {sorted(rates)[ROUNDS // 2]:.0f} views/s"
            found.append(row(f"device idle, rate {share} of the host's", idle, "%", "<= 3", note))
        outside = [_share_outside(host, Path(folder) / "cache") for _ in range(ROUNDS)]
        note = "ViT-B-32 on the CPU, one thread, beside the renderers"
        return [*found, row("time outside the forward", outside, "%", "", note)]


def _carry(host: HostSide, cache: Path, teacher: NullTeacher, limit: int | None = None) -> None:
    import shutil

    shutil.rmtree(cache, ignore_errors=True)
    jobs = jobs_over(host.shards, cache, VIEWS, renderers=CORES, batch=BATCH)
    for _, outcome in carry_units(jobs[:limit], teacher, lambda _: None):
        if isinstance(outcome, Exception):
            raise outcome


def _share_outside(host: HostSide, cache: Path) -> float:
    teacher = TimedForward()
    small = HostSide(cache.parent / "small", 64)
    took = seconds(lambda: _carry(small, cache, teacher))
    return 100 * (1 - teacher.seconds / took)
