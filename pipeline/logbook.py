"""Writes every epoch's metrics for TensorBoard, beside the run's own lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import LibraryError
from pipeline.trainee import Trainee

FOLDER = "tensorboard"


class TensorBoard:
    """Listens to the epochs of runs; each run's events lie in RUN/tensorboard.

    Raises LibraryError if tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise LibraryError(
                "--tensorboard wants the library of that name: pip install 'beamclip[tensorboard]'"
            ) from None
        self._open = SummaryWriter
        self._writers: dict[Path, Any] = {}

    def __call__(self, trainee: Trainee, line: Mapping[str, Any]) -> None:
        """Write one line; of a run that was taken up again, what came after is purged."""
        path, step = trainee.run.path, int(line["step"])
        if path not in self._writers:
            self._writers[path] = self._open(str(path / FOLDER), purge_step=step)
        for name, value in line.items():
            if name not in ("epoch", "step"):
                self._writers[path].add_scalar(name, value, step)
        self._writers[path].flush()
