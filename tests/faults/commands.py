"""Runs the command line in a process of its own, with a deadline."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

DEADLINE_SECONDS = 200
# Each command is forked from a server that has loaded the libraries, which takes seconds, but no
# teacher, and has run nothing.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["pipeline.embed", "pipeline.recipe", "open_clip", "click", "dask", "pydantic", "zarr"]
)

Done = subprocess.CompletedProcess[str]


def beamclip(
    *arguments: object, environment: Mapping[str, str] | None = None, memory_bytes: int = 0
) -> Done:
    """Run a command line; kill it and fail if it outlives its deadline.

    memory_bytes: how much address space it may take beyond what it begins with, if not 0.
    """
    with started(*arguments, environment=environment, memory_bytes=memory_bytes) as command:
        return command.end()


@dataclass
class Started:
    """A command on its way."""

    process: ForkServerProcess
    words: list[str]
    files: list[str]  # of what it says on stdout and stderr

    def runs_for(self, seconds: float) -> bool:
        """Wait for its end, but no longer than that; tell whether it is still on its way."""
        self.process.join(seconds)
        return self.process.exitcode is None

    def end(self) -> Done:
        """Wait for its end; raise TimeoutExpired if it outlives its deadline."""
        if self.runs_for(DEADLINE_SECONDS):
            raise subprocess.TimeoutExpired(self.words, DEADLINE_SECONDS)
        out, err = (Path(file).read_text(encoding="utf-8") for file in self.files)
        assert self.process.exitcode is not None
        return subprocess.CompletedProcess(self.words, self.process.exitcode, out, err)


@contextmanager
def started(
    *arguments: object, environment: Mapping[str, str] | None = None, memory_bytes: int = 0
) -> Iterator[Started]:
    """Start a command line; it is killed at the end if it is still on its way."""
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        for file in files:
            Path(file).touch()
        process = _processes.Process(
            target=_main, args=(words, {**os.environ, **(environment or {})}, files, memory_bytes)
        )
        process.start()
        try:
            yield Started(process, words, files)
        finally:
            process.kill()
            process.join()


def teacher_cache(
    cache: Path,
    shards: object,
    recipe: Path,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    memory_bytes: int = 0,
) -> Done:
    """Run stage one on the CPU."""
    return beamclip(
        *("teacher-cache", "--cache", cache, "--shards", shards, "--recipe", recipe),
        *("--device", "cpu", *arguments),
        environment=environment,
        memory_bytes=memory_bytes,
    )


def _main(
    words: Sequence[str], environment: Mapping[str, str], files: Sequence[str], memory_bytes: int
) -> None:
    """Be the command: its own environment, output and limits."""
    import resource

    from pipeline.cli import main

    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    if memory_bytes:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory_bytes,) * 2)
    sys.argv = ["beamclip", *words]
    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
