"""A run folder: everything that one training leaves on disk, each file whole or absent.

recipe.yaml        the resolved recipe
run.json           what it was made from: cache generation and digest, versions, commit
metrics.jsonl      one line per epoch
checkpoint-*.pt    the last two states, to go on from
student.safetensors, student_raw.safetensors   the EMA and the raw weights; written last
probe.json         scores
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import durable
from pipeline.errors import RunError
from pipeline.options import differences

KEEP_CHECKPOINTS = 2
WEIGHTS = {"student": "student.safetensors", "student_raw": "student_raw.safetensors"}


class RunDir:
    """One run folder, by path; reading and writing of each file in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_finished(self) -> bool:
        """Tell whether training ended: the weights of the student are written last."""
        return (self.path / WEIGHTS["student"]).exists()

    def begin(self, recipe: Mapping[str, Any], origin: Mapping[str, Any], *, resume: bool) -> None:
        """Start a run, or take one up again; raises RunError rather than mix two runs."""
        import yaml

        if (self.path / "recipe.yaml").exists():
            if not resume:
                raise RunError(
                    f"{self.path} already holds a run; go on with --resume, or name another --run"
                )
            changed = differences(self.read_recipe(), recipe)
            changed += differences(self.read_origin()["cache"], origin["cache"])
            if changed:
                rows = [
                    f"  {field}: run has {old!r}, asked for {new!r}" for field, old, new in changed
                ]
                head = f"{self.path} was begun with another recipe or cache; name another --run"
                raise RunError("\n".join([head, *rows]))
            return
        durable.write_json(self.path / "run.json", origin)
        durable.write_text(self.path / "recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False))

    def read_recipe(self) -> dict[str, Any]:
        """Return the resolved recipe; raises RunError if there is no run."""
        import yaml

        try:
            recipe = yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{self.path} holds no run (no recipe.yaml): train a student first"
            ) from None
        return dict(recipe)

    def read_origin(self) -> dict[str, Any]:
        """Return what the run was made from."""
        return dict(json.loads((self.path / "run.json").read_text(encoding="utf-8")))

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Write one JSON line per finished epoch; a resumed run rewrites what came after."""
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        durable.write_text(self.path / "metrics.jsonl", text)

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Save the state after `step` steps; the last two are kept."""
        import torch

        with durable.replacing(self.path / f"checkpoint-{step:09d}.pt") as temporary:
            torch.save(dict(state), temporary)
            durable.fault_point("in-checkpoint")
        for old in self._checkpoints()[:-KEEP_CHECKPOINTS]:
            old.unlink()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest state that loads, or None; only tensors and plain values are read."""
        import torch

        for path in reversed(self._checkpoints()):
            try:
                return dict(torch.load(path, map_location="cpu", weights_only=True))
            except Exception as error:  # damaged files fail in many ways
                reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                newest_fault = f"{path} does not load ({reason})"
        if self._checkpoints():
            raise RunError(f"{newest_fault}, and neither does an older one: start another --run")
        return None

    def save_weights(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Save {"student": ..., "student_raw": ...} tensors; the student's last."""
        from safetensors.torch import save_file

        for name in reversed(WEIGHTS):
            with durable.replacing(self.path / WEIGHTS[name]) as temporary:
                tensors = {key: value.contiguous().cpu() for key, value in states[name].items()}
                save_file(tensors, temporary)

    def load_weights(self, name: str) -> dict[str, Any]:
        """Return the tensors saved under `name`; raises RunError if the run is not finished."""
        from safetensors.torch import load_file

        if not self.is_finished():
            raise RunError(f"{self.path} is not finished: run train-student with --resume first")
        return dict(load_file(self.path / WEIGHTS[name]))

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Write probe.json."""
        durable.write_json(self.path / "probe.json", scores)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.path.glob("checkpoint-*.pt"))
