"""What this process runs on; how its progress shows."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import runtime
from pipeline.errors import BeamclipError

ROOT = Path(__file__).parents[1]


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_versions_are_those_installed() -> None:
    found = runtime.versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["python"].split(".")[0] == "3"
    assert {"numpy", "pillow", "zarr", "torchvision", "open_clip_torch", "timm"} <= set(found)


def test_commit_is_this_checkouts() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    assert runtime.git_commit() == git(ROOT, "rev-parse", "HEAD")


def test_installed_copy_within_another_checkout_has_no_commit(tmp_path: Path) -> None:
    site = tmp_path / ".venv" / "site-packages"
    (site / "pipeline").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "runtime.py"):
        shutil.copy(ROOT / "pipeline" / name, site / "pipeline" / name)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "somebody else's")
    code = "from pipeline import runtime; print(runtime.__file__, runtime.git_commit())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [str(site / "pipeline" / "runtime.py"), "None"]


def test_threads_hold_for_the_block_only() -> None:
    before = torch.get_num_threads()
    with runtime.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="inside"), runtime.torch_threads(before + 2):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_devices_are_named_or_refused() -> None:
    assert runtime.pick_device("cpu") == torch.device("cpu")
    assert runtime.pick_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(BeamclipError, match="expected auto, cpu, cuda"):
        runtime.pick_device("gpu")


def test_asking_for_a_missing_gpu_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(BeamclipError, match="0 CUDA devices are visible"):
            runtime.pick_device(name)


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with runtime.progress("making", 3, "images") as advance:
        advance(1)
        advance(2, "loss 0.5")
    assert capsys.readouterr() == ("", "")


def test_progress_shows_title_count_and_note_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with runtime.progress("making things", 2000, "images") as advance:
        advance(1234)
        advance(1, "loss 0.5")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    for words in ("making things", "1,235/2,000 images", "loss 0.5"):
        assert words in shown
    assert capsys.readouterr().out == ""


def test_progress_ends_with_the_block_even_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(ValueError, match="inside"), runtime.progress("making", 2, "images"):
        raise ValueError("inside")
    length = len(terminal.getvalue())
    with runtime.progress("again", 2, "images") as advance:
        advance(2)
    assert len(terminal.getvalue()) > length


def test_a_meter_loses_nothing_between_two_reports() -> None:
    sent: list[tuple[int, int]] = []
    meter = runtime.Meter(sent.append)
    for number in range(100):
        meter.add(number, 2)
    meter.flush()
    assert sum(work for work, _ in sent) == sum(range(100))
    assert sum(views for _, views in sent) == 200
    assert len(sent) < 10
