"""SimCLR on shards leaves a backbone that students start from; killed, it goes on as if not."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoints import tensors_sha256
from pipeline.errors import RecipeError, RunError, StudentError
from pipeline.options import parse
from pipeline.pretrain import PretrainOptions, pretrain
from pipeline.rundir import RunDir
from pipeline.shards import find_shards, write_shards
from tests.conftest import Invoke
from tests.inputs import encode, labelled_samples, square
from tests.runs import MODEL, alone, held_elsewhere
from tests.trees import tree_digests

PX = 32
FILES = {".lock", "backbone.safetensors", "pretrain.json"}


def options(**changed: Any) -> PretrainOptions:
    small = {"model": MODEL, "input_px": PX, "epochs": 2, "batch_size": 8, "learning_rate": 0.05}
    return parse(PretrainOptions, small | changed, where="test")


def run(shards: Path, folder: Path, *, workers: int = 0, **changed: Any) -> dict[str, Any]:
    found = find_shards([str(shards)])
    return pretrain(found, folder, options(**changed), workers=workers, device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path) -> Path:
    """A finished folder of two epochs; read it, never change it."""
    folder = tmp_path_factory.mktemp("pretrain")
    with alone(folder / "scratch"):
        run(shards_dir, folder / "done")
    return folder / "done"


def test_leaves_weights_and_a_report_and_nothing_else(finished: Path, shards_dir: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    report = json.loads((finished / "pretrain.json").read_text(encoding="utf-8"))
    assert report["version"] == 1
    assert report["made_from"]["images"] == 24
    assert report["made_from"]["options"]["schedule"]["crop_scale"] == [0.08, 1.0]
    assert report["made_from"]["shards"].keys() == {"000000", "000001"}
    assert len(report["epochs"]) == 2
    assert report["loss"] == report["epochs"][-1]["loss"]
    assert report["left_out"] == {}
    assert {"torch", "timm"} <= report["made_with"]["versions"].keys()
    weights = load_file(finished / "backbone.safetensors")
    assert report["tensors_sha256"] == tensors_sha256(weights)
    assert "conv1.0.weight" in weights


def test_the_loss_falls(tmp_path: Path) -> None:
    """Blocks of colour under mild views: what 4 steps can learn to tell apart."""
    samples = []
    for number in range(64):
        generator = np.random.default_rng(number)
        count = int(generator.integers(1, 9))
        blocks = generator.integers(0, 256, (count, count, 3), dtype=np.uint8)
        pixels = np.kron(blocks, np.ones((40 // count, 40 // count, 1), np.uint8))
        samples.append((f"{number}", {"png": encode(pixels)}))
    write_shards(samples, tmp_path / "s", "train", per_shard=40)
    mild = {"name": "mild", "crop_scale": [0.5, 1], "jitter": 0, "grayscale": 0, "blur": 0}
    changed = {"learning_rate": 0.1, "batch_size": 32, "schedule": mild}
    first, second = run(tmp_path / "s", tmp_path / "p", **changed)["epochs"]
    assert first["loss"] < math.log(2 * 32 - 1)  # of embeddings that say nothing
    assert second["loss"] < first["loss"] - 0.2


def test_is_the_same_bytes_twice_and_with_worker_processes(
    finished: Path, shards_dir: Path, tmp_path: Path
) -> None:
    torch.rand(3)  # nothing global may matter
    before = torch.get_rng_state()
    run(shards_dir, tmp_path / "p", workers=2)
    assert torch.equal(torch.get_rng_state(), before)
    name = "backbone.safetensors"
    assert (tmp_path / "p" / name).read_bytes() == (finished / name).read_bytes()
    run(shards_dir, tmp_path / "q", seed=1)
    assert (tmp_path / "q" / name).read_bytes() != (finished / name).read_bytes()


def test_finished_work_is_left_as_it_is(finished: Path, shards_dir: Path) -> None:
    before = tree_digests(finished)
    assert run(shards_dir, finished)["made_from"]["images"] == 24
    assert tree_digests(finished) == before


def test_after_a_kill_it_goes_on_from_the_last_whole_epoch_bit_for_bit(
    finished: Path, shards_dir: Path, tmp_path: Path
) -> None:
    code = f"""
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests.test_pretrain import run
run(Path({str(shards_dir)!r}), Path({str(tmp_path / "p")!r}))
"""
    environment = {**os.environ, "BEAMCLIP_FAULT_POINT": "in-checkpoint:2"}
    killed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert RunDir(tmp_path / "p").load_checkpoint()["step"] == 3  # type: ignore[index]
    assert not (tmp_path / "p" / "backbone.safetensors").exists()
    run(shards_dir, tmp_path / "p")
    name = "backbone.safetensors"
    assert (tmp_path / "p" / name).read_bytes() == (finished / name).read_bytes()
    assert {path.name for path in (tmp_path / "p").iterdir()} == FILES


class TestRefuses:
    def test_a_folder_of_other_work_finished_or_begun(
        self, finished: Path, shards_dir: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(RunError, match=r"options\.epochs: it has 2, asked for 3"):
            run(shards_dir, finished, epochs=3)
        copy = Path(shutil.copytree(finished, tmp_path / "begun"))
        (copy / "backbone.safetensors").unlink()
        RunDir(copy).save_checkpoint(3, {"made_from": {"images": 7}})
        with pytest.raises(RunError, match="images: it has 7, asked for 24"):
            run(shards_dir, copy)

    def test_a_folder_with_other_files(self, shards_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(RunError, match=r"holds other files \(thesis\.tex\)"):
            run(shards_dir, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_folder_that_another_process_fills(self, shards_dir: Path, tmp_path: Path) -> None:
        with (
            held_elsewhere(tmp_path / "p" / ".lock"),
            pytest.raises(RunError, match="another process"),
        ):
            run(shards_dir, tmp_path / "p")

    def test_a_report_that_is_damaged(
        self, finished: Path, shards_dir: Path, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(finished, tmp_path / "copy"))
        (copy / "pretrain.json").write_text("{")
        with pytest.raises(RunError, match="damaged or gone"):
            run(shards_dir, copy)

    def test_a_loss_that_is_not_finite_and_keeps_the_last_epoch(
        self, shards_dir: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(StudentError, match=r"the loss is nan at step \d+: lower --learning-ra"):
            run(shards_dir, tmp_path / "p", learning_rate=1e30)

    @pytest.mark.parametrize(
        ("field", "value"),
        [("batch_size", 1), ("epochs", 0), ("learning_rate", 0.0), ("temperature", 0.0)],
    )
    def test_options_that_mean_nothing(self, field: str, value: float) -> None:
        with pytest.raises(RecipeError, match=field):
            options(**{field: value})

    def test_images_of_which_none_can_be_decoded(self, tmp_path: Path) -> None:
        broken = {"jpg": encode(square(0, 1), "JPEG")[:300]}
        write_shards([(f"{i}", broken) for i in range(4)], tmp_path / "s", "train", per_shard=4)
        with pytest.raises(StudentError, match="no two images"):
            run(tmp_path / "s", tmp_path / "p")


def test_an_image_that_cannot_be_decoded_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = labelled_samples(9)
    samples[3] = ("broken", {"jpg": encode(square(0, 1), "JPEG")[:300]})
    write_shards(samples, tmp_path / "s", "train", per_shard=9)
    report = run(tmp_path / "s", tmp_path / "p", batch_size=9)
    ((name, reason),) = report["left_out"].items()
    assert name.endswith("train-000000.tar: broken")
    assert "truncated" in reason
    assert caplog.text.count("left out") == 1  # not once an epoch


def test_the_rate_grows_with_the_batch_unless_stated() -> None:
    assert PretrainOptions().rate == pytest.approx(0.12)
    assert PretrainOptions(batch_size=64).rate == pytest.approx(0.03)
    assert PretrainOptions(batch_size=64, learning_rate=1.0).rate == 1.0


def test_a_student_starts_from_it_by_the_command_line(
    beamclip: Invoke, shards_dir: Path, sealed_cache: Path, recipe_file: Path, tmp_path: Path
) -> None:
    made = beamclip(
        *("pretrain", "--shards", shards_dir, "--model", MODEL, "--to", tmp_path / "ssl"),
        *("--epochs", 2, "--batch-size", 8, "--input-px", PX, "--stem", "small"),
        *("--learning-rate", 0.05, "--seed", 1, "--workers", 0, "--device", "cpu", "--json"),
    )
    assert made.code == 0, made.err
    report = json.loads(made.out)
    assert report["made_from"]["options"]["stem"] == "small"
    shared = ("--cache", sealed_cache, "--shards", shards_dir, "--recipe", recipe_file)
    start = ("--model", MODEL, "--set", f"student.init={tmp_path / 'ssl'}")
    quick = ("--set", "training.epochs=1", "--set", "student.stem=small")
    trained = beamclip("train-student", *shared, *start, *quick, "--run", tmp_path / "run")
    assert trained.code == 0, trained.err
    init = RunDir(tmp_path / "run").read_origin()["init"]
    assert init["source"] == str(tmp_path / "ssl" / "backbone.safetensors")
    assert (init["missing"], init["left_over"]) == (0, 0)
    assert beamclip("probe", "--run", tmp_path / "run").code == 0


def test_what_it_does_is_told_in_one_line(
    beamclip: Invoke, shards_dir: Path, finished: Path
) -> None:
    outcome = beamclip(
        *("pretrain", "--shards", shards_dir, "--model", MODEL, "--to", finished),
        *("--epochs", 2, "--batch-size", 8, "--input-px", PX, "--learning-rate", 0.05),
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{MODEL} pretrained in {finished}: loss ")
