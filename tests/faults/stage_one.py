"""Runs stage one as a user does, and stops it on the way."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.clusters import ROOT, marked, wait_until

BEAMCLIP = Path(sys.executable).with_name("beamclip")
DEADLINE_SECONDS = 240


@dataclass(frozen=True)
class Run:
    """A command line of stage one, in this checkout."""

    cache: Path
    shards: Path
    recipe: Path
    options: tuple[object, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        parts = [BEAMCLIP, "teacher-cache", "--cache", self.cache, "--shards", self.shards]
        parts += ["--recipe", self.recipe, "--device", "cpu", "--json", *self.options]
        return [str(part) for part in parts]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), **self.variables}

    def finish(self, prefix: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
        """Run it to its end."""
        return subprocess.run(
            [*prefix, *self.command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_SECONDS,
        )


@dataclass
class Started:
    """Stage one on its way."""

    process: "subprocess.Popen[str]"
    cache: Path
    mark: str

    def published(self) -> int:
        """Count the units published so far."""
        return len(published(self.cache))

    def workers(self) -> set[int]:
        """Return every process that it started, itself left out."""
        return marked(self.mark) - {self.process.pid}

    def wait_for_units(self, count: int) -> None:
        """Return once so many units are published, and it is still on its way."""
        wait_until(lambda: self.published() >= count or self.process.poll() is not None, 200)
        assert self.process.poll() is None, self.process.communicate()

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was said on stderr."""
        _, said = self.process.communicate(timeout=seconds)
        return self.process.returncode, said

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it started, as a terminal does."""
        os.killpg(self.process.pid, number)


@contextmanager
def started(run: Run) -> Iterator[Started]:
    """Start stage one; whatever is left of it is killed at the end."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        run.command,
        env={**run.environment, "BEAMCLIP_TEST_MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in a shell's background inherit a deaf ear to Ctrl-C, and would hand it on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield Started(process, run.cache, mark)
    finally:
        for left in marked(mark):
            os.kill(left, signal.SIGKILL)
        process.communicate()


def published(cache: Path) -> set[str]:
    """Name the units that a cache holds."""
    folder = cache / "units"
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder.exists() else set()
