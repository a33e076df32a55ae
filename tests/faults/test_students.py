"""Students and probes: what goes wrong in stage two is told, and nothing half-done counts.

More of the same: tests/test_train.py (kills, checkpoints, exact resume), tests/test_ranks.py (ranks
that die or blow up), tests/test_evaluate.py (shared images), tests/test_end_to_end.py (shuffled).
"""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.contracts import Features
from pipeline.errors import ProbeError
from pipeline.probes import PROBES, ProbeOptions
from pipeline.probes.contract import Subject
from pipeline.rundir import RunDir
from tests.faults.commands import beamclip
from tests.runs import said_elsewhere, small_recipe, train

EMBED = """
import sys, io
sys.modules["open_clip"] = None  # importing it fails
import numpy as np, torch
from pathlib import Path
from pipeline.recipe import recipe_from
from pipeline.rundir import RunDir
from pipeline.stage_two import rebuild_student
torch.set_num_threads(1)
run = RunDir(Path({run!r}))
student = rebuild_student(run, recipe_from(run.read_recipe(), where="run")).eval()
views = torch.arange(2 * 3 * 32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8)
with torch.inference_mode():
    embedding = student(views.view(2, 3, 32, 32)).embedding_BD
print(embedding.numpy().tobytes().hex())
"""


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
) -> Path:
    folder = tmp_path_factory.mktemp("students")
    train(small_recipe(recipe_file), sealed_cache, shards_dir, folder / "run")
    return folder / "run"


def test_a_student_reloads_in_fresh_processes_without_teacher_and_gives_the_same_vectors(
    finished: Path,
) -> None:
    code = EMBED.format(run=str(finished))
    one, other = said_elsewhere(code), said_elsewhere(code)
    assert one == other
    found = np.frombuffer(bytes.fromhex(one.strip()), np.float32).reshape(2, -1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["student", "student_raw"])
def test_damaged_weights_are_an_error_that_names_the_file(
    finished: Path, tmp_path: Path, name: str
) -> None:
    import shutil

    run = Path(shutil.copytree(finished, tmp_path / "run"))
    file = run / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    done = beamclip("probe", "--run", run)
    assert done.returncode == 1
    assert f"{file} is damaged or gone" in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_of_another_architecture_are_an_error(finished: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(finished, tmp_path / "run"))
    recipe = run / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8").replace("test_resnet", "test_efficientnet")
    recipe.write_text(text, encoding="utf-8")
    done = beamclip("probe", "--run", run)
    assert done.returncode == 1
    assert "are not this student's" in done.stderr


def features(labels: list[int], *, bad: float | None = None) -> Features:
    generator = np.random.default_rng(0)
    found = generator.normal(size=(len(labels), 16)).astype(np.float32)
    if bad is not None:
        found[0, 0] = bad
    return Features(found, found, np.array(labels), np.arange(len(labels)))


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_an_error_of_every_probe(
    name: str, bad: float, sealed_cache: Path
) -> None:
    from pipeline.cache.reader import TargetCache

    anchors = TargetCache.open(sealed_cache).anchors("shapes-plain")
    good, broken = features([0, 1, 2] * 5), features([0, 1, 2] * 5, bad=bad)
    options = getattr(ProbeOptions(), name)
    for fitted in (good, broken):
        subject = Subject(test=broken, train=fitted, anchors=anchors, teacher=good)
        with pytest.raises(ProbeError, match="NaN or Inf"):
            PROBES[name].run(subject, options)


@pytest.mark.parametrize(("train_labels", "message"), [([1] * 9, "class"), ([-1] * 9, "label")])
def test_a_linear_probe_of_one_class_or_none_is_an_error(
    train_labels: list[int], message: str
) -> None:
    with pytest.raises(ProbeError, match=message):
        PROBES["linear"].run(
            Subject(test=features([0, 1, 2]), train=features(train_labels)), ProbeOptions().linear
        )


def test_a_foreign_checkpoint_never_runs_code(finished: Path, tmp_path: Path) -> None:
    """A pickle in the place of a checkpoint is refused, its payload not run."""
    import pickle
    import shutil

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "ran",))

    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for file in run.glob("*.safetensors"):
        file.unlink()
    for file in run.glob("checkpoint-*.pt"):
        buffer = io.BytesIO()
        torch.save({"step": Payload()}, buffer)
        file.write_bytes(buffer.getvalue())
    assert pickle.dumps(Payload())
    from pipeline.errors import RunError

    with pytest.raises(RunError, match="no checkpoint is left"):
        RunDir(run).load_checkpoint()
    assert not (tmp_path / "ran").exists()
