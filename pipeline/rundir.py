"""A run folder: everything that one training leaves on disk, each file whole or absent.

recipe.yaml        the resolved recipe
run.json           what it was made from: cache generation and digest, first weights, versions; and
                   the price of an hour, if one was given
metrics.jsonl      one line per epoch; `seconds` is the time of its training steps
checkpoint-*.pt    the last two states, to go on from
student.safetensors, student_raw.safetensors   the EMA and the raw weights; written last
probe.json         scores: {encoder: {probe: {score: value}}}
probe-details.json what probes tell beside them: {encoder: {probe: details}}
transfer.json      scores on other datasets: {dataset: {encoder: {probe: {score: value}}}}
transfer-details.json   {dataset: {encoder: {probe: details}}}
features/          the student's features of splits that were probed; may be deleted at any time
"""

import contextlib
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import durable
from pipeline.errors import RunError
from pipeline.options import differences

_log = logging.getLogger(__name__)
VERSION = 1  # of run.json
KEEP_CHECKPOINTS = 2
WEIGHTS = {"student": "student.safetensors", "student_raw": "student_raw.safetensors"}


class RunDir:
    """One run folder, by path; reading and writing of each file in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_begun(self) -> bool:
        """Tell whether the folder holds a run, finished or not."""
        return (self.path / "recipe.yaml").exists()

    def is_finished(self) -> bool:
        """Tell whether training ended: the weights of the student are written last."""
        return (self.path / WEIGHTS["student"]).exists()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the run for training; raises RunError at once if another process does."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(durable.held(self.path / ".lock"))
            except BlockingIOError:
                raise RunError(
                    f"{self.path} is being trained by another process: wait for it, or stop it"
                ) from None
            yield

    def begin(self, recipe: Mapping[str, Any], origin: Mapping[str, Any], *, resume: bool) -> None:
        """Start a run, or take one up again; raises RunError rather than mix two runs.

        Of a run that is taken up, a `price` of the origin takes the place of the recorded one; all
        else that is recorded stays.
        """
        import yaml

        if self.is_begun():
            if not resume:
                raise RunError(
                    f"{self.path} already holds a run; go on with --resume, or name another --run"
                )
            before = self.read_origin()
            changed = differences(self.read_recipe(), recipe)
            changed += differences(_bound(before), _bound(origin))
            if changed:
                rows = [
                    f"  {field}: run has {old!r}, asked for {new!r}" for field, old, new in changed
                ]
                head = (
                    f"{self.path} was begun with another recipe, cache or init; name another --run"
                )
                raise RunError("\n".join([head, *rows]))
            for left_behind in self.path.glob(".*.tmp"):  # by a run that was killed
                left_behind.unlink()
            if origin.get("price", before.get("price")) != before.get("price"):
                self._write_origin({**before, "price": origin["price"]})
            return
        self._write_origin(origin)
        durable.write_text(self.path / "recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False))

    def read_recipe(self) -> dict[str, Any]:
        """Return the resolved recipe; raises RunError if there is no run, or it is damaged."""
        import yaml

        path = self.path / "recipe.yaml"
        try:
            return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise RunError(
                f"{self.path} holds no run (no {path.name}): train a student first"
            ) from None
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise _damaged(path, error) from None

    def read_origin(self) -> dict[str, Any]:
        """Return what the run was made from; raises RunError if lost or of another format."""
        path = self.path / "run.json"
        try:
            origin = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise _damaged(path, error) from None
        if (found := origin.pop("version", None)) != VERSION:
            raise RunError(
                f"{path}: expected format version {VERSION}, found {found}: use the beamclip "
                "release that trained it, or train anew"
            )
        return origin

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of every finished epoch; raises RunError if they are lost."""
        path = self.path / "metrics.jsonl"
        try:
            return [dict(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
        except (OSError, TypeError, ValueError) as error:
            raise _damaged(path, error) from None

    def last_metrics(self) -> dict[str, Any]:
        """Return the metrics of the last finished epoch; raises RunError if they are lost."""
        path = self.path / "metrics.jsonl"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8").splitlines()[-1]))
        except (OSError, TypeError, ValueError, IndexError) as error:
            raise _damaged(path, error) from None

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Write one JSON line per finished epoch; a resumed run rewrites what came after."""
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        durable.write_text(self.path / "metrics.jsonl", text)

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Save the state after `step` steps; the last two are kept."""
        import torch

        with durable.replacing(self.path / f"checkpoint-{step:09d}.pt") as temporary:
            try:
                torch.save(dict(state), temporary)
            except RuntimeError as error:  # as which torch reports a full disk
                raise RunError(
                    f"cannot write a checkpoint to {self.path} ({_reason(error)}): make room, then "
                    "go on with --resume"
                ) from None
            durable.fault_point("in-checkpoint")
        for old in self._checkpoints()[:-KEEP_CHECKPOINTS]:
            old.unlink()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest state that loads, or None; only tensors and plain values are read."""
        faults = []
        for path in reversed(self._checkpoints()):
            try:
                state = _read_checkpoint(path)
            except Exception as error:  # damaged files fail in many ways
                faults.append(f"{path} does not load ({_reason(error)})")
                continue
            for fault in faults:
                _log.warning("%s; going on from %s", fault, path.name)
            return state
        if faults:
            raise RunError("\n".join([*faults, "no checkpoint is left: start another --run"]))
        return None

    def save_weights(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Save {"student": ..., "student_raw": ...} tensors; the student's last."""
        from safetensors.torch import save

        for name in reversed(WEIGHTS):
            tensors = {key: value.contiguous().cpu() for key, value in states[name].items()}
            with durable.replacing(self.path / WEIGHTS[name]) as temporary:
                # Not save_file: it makes files that only their owner can read.
                temporary.write_bytes(save(tensors))

    def load_weights(self, name: str) -> dict[str, Any]:
        """Return the tensors saved under `name`; raises RunError unless the run is finished."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not self.is_finished():
            raise RunError(f"{self.path} is not finished: run train-student with --resume first")
        path = self.path / WEIGHTS[name]
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from None

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Write probe.json."""
        durable.write_json(self.path / "probe.json", scores)

    def write_details(self, details: Mapping[str, Any]) -> None:
        """Write probe-details.json."""
        durable.write_json(self.path / "probe-details.json", details)

    def write_transfer(self, dataset: str, scores: Mapping[str, Any], details: Any) -> None:
        """Put a dataset into transfer.json and transfer-details.json, in place of what it had.

        Raises RunError if a file is damaged.
        """
        for name, value in (("transfer.json", scores), ("transfer-details.json", details)):
            path = self.path / name
            try:
                before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
                after = {**before, dataset: value}
            except (TypeError, ValueError) as error:
                raise RunError(
                    f"{path} is damaged ({_reason(error)}): delete it, and probe again"
                ) from None
            durable.write_json(path, after)

    @property
    def features_path(self) -> Path:
        """Where the student's features are kept."""
        return self.path / "features"

    def _write_origin(self, origin: Mapping[str, Any]) -> None:
        durable.write_json(self.path / "run.json", {"version": VERSION, **origin})

    def _checkpoints(self) -> list[Path]:
        return sorted(self.path.glob("checkpoint-*.pt"))


def _read_checkpoint(path: Path) -> dict[str, Any]:
    import torch

    with zipfile.ZipFile(path) as archive:  # whose checksums torch.load does not look at
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _bound(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must not change of an origin: the cache, the content of the first weights."""
    init = origin.get("init") or {}
    return {**origin["cache"], "init": {"sha256": init.get("sha256")}}


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path} is damaged or gone ({_reason(error)}): train into another --run")


def _reason(error: Exception) -> str:
    """Return an error's kind and first line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
