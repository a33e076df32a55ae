"""SimCLR's loss is the paper's; its views and head are as the paper says."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.schedule import Schedule
from pipeline.simclr import EMBEDDING_DIM, SIMCLR, Contrasted, nt_xent
from pipeline.students import StudentOptions


def embeddings(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def equation_1(embedding: Tensor, temperature: float) -> float:
    """Compute the paper's Eq. 1 pair by pair, in plain Python."""
    z = F.normalize(embedding.double(), dim=1)
    half, total = len(z) // 2, 0.0
    for i in range(len(z)):
        j = (i + half) % len(z)
        similar = [math.exp(float(z[i] @ z[k]) / temperature) for k in range(len(z))]
        total -= math.log(similar[j] / (sum(similar) - similar[i]))
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
@pytest.mark.parametrize("images", [2, 7])
def test_the_loss_is_equation_1(images: int, temperature: float) -> None:
    embedding = embeddings(2 * images)
    loss = nt_xent(temperature)(embedding)
    assert loss.item() == pytest.approx(equation_1(embedding, temperature), rel=1e-5)


def test_the_loss_is_the_librarys_own_nt_xent() -> None:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    embedding = embeddings(20)
    theirs = SelfSupervisedLoss(NTXentLoss(0.5))(embedding[:10], embedding[10:])
    assert nt_xent(0.5)(embedding).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_equal_views_of_unlike_images_cost_least() -> None:
    apart = torch.eye(16)[:8]
    close = nt_xent(0.1)(torch.cat([apart, apart]))
    crossed = nt_xent(0.1)(torch.cat([apart, apart.roll(1, 0)]))
    assert close < 0.01 < crossed


def test_the_loss_takes_memory_by_the_square_of_the_batch() -> None:
    embedding = embeddings(2 * 1024).requires_grad_()
    nt_xent(0.5)(embedding).backward()
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()


def test_views_are_the_papers() -> None:
    assert SIMCLR.crop_scale == (0.08, 1.0)
    assert SIMCLR.crop_ratio == (3 / 4, 4 / 3)
    assert (SIMCLR.brightness, SIMCLR.contrast, SIMCLR.saturation, SIMCLR.hue) == (
        0.8,
        0.8,
        0.8,
        0.2,
    )
    chances = (SIMCLR.flip, SIMCLR.jitter, SIMCLR.grayscale, SIMCLR.blur)
    assert chances == (0.5, 0.8, 0.2, 0.5)
    assert SIMCLR.blur_sigma == (0.1 / 224, 2.0 / 224)
    assert Schedule(name="simclr", seed=SIMCLR.seed).interpolation == SIMCLR.interpolation


def test_the_head_has_two_layers_and_128_dimensions() -> None:
    spec = StudentOptions(model="test_resnet")
    model = Contrasted(spec, input_px=32, seed=0).eval()
    views = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        embedding = model(views)
        features = model.student.features(views)
        hidden = (features @ model.hidden.weight.T + model.hidden.bias).clamp(min=0)
        expected = hidden @ model.student.projection.weight.T
    assert embedding.shape == (3, EMBEDDING_DIM)
    torch.testing.assert_close(embedding, expected)


def test_a_seed_decides_every_weight() -> None:
    spec = StudentOptions(model="test_resnet")
    before = torch.get_rng_state()
    one, same, other = (Contrasted(spec, input_px=32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(one.hidden.weight, other.hidden.weight)


def test_without_the_extra_the_command_says_what_to_install(
    shards_dir: Path, tmp_path: Path
) -> None:
    code = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pytorch_metric_learning":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from pipeline.cli import main
main(["pretrain", "--shards", sys.argv[1], "--to", sys.argv[2]])
"""
    command = [sys.executable, "-c", code, str(shards_dir), str(tmp_path / "to")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install 'beamclip[ssl]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "to").exists()
