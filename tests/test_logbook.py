"""Epochs show in TensorBoard as they stand in the run's own lines."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LibraryError
from pipeline.logbook import FOLDER, TensorBoard
from tests.conftest import Invoke


def test_every_number_of_every_line_is_an_event(
    beamclip: Invoke, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shared = ["--cache", sealed_cache, "--shards", shards_dir, "--recipe", recipe_file]
    shared += ["--set", "student.model=test_resnet", "--tensorboard", "--run", tmp_path / "run"]
    done = beamclip("train-student", *shared)
    assert done.code == 0, done.err
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    events = EventAccumulator(str(tmp_path / "run" / FOLDER)).Reload()
    names = lines[0].keys() - {"epoch", "step"}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]


def test_without_the_library_the_option_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LibraryError, match=r"beamclip\[tensorboard\]"):
        TensorBoard()
