"""Relational distillation is what its paper says, in bounded memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.losses import relations
from pipeline.losses.relations import RkdOptions, rkd
from tests.losses.samples import B, batch, rows

PARTS = [(1.0, 0.0), (0.0, 1.0), (1.0, 2.0), (25.0, 50.0)]


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def distances(x_BD: Tensor) -> list[list[float]]:
    found = [[float((one - other).norm()) for other in x_BD] for one in x_BD]
    positive = [d for row in found for d in row if d > 0]
    return [[d * len(positive) / sum(positive) for d in row] for row in found]


def cosine(x_BD: Tensor, i: int, j: int, k: int) -> float:
    """Return the cosine of the angle j-i-k, 0 where it has none."""
    one_D, other_D = x_BD[j] - x_BD[i], x_BD[k] - x_BD[i]
    norms = float(one_D.norm() * other_D.norm())
    return float(one_D @ other_D) / norms if norms else 0.0


def by_loops(outputs: StudentOutputs, targets: TargetBatch, spec: RkdOptions) -> list[float]:
    """Return the loss of every sample, pair by pair and triple by triple."""
    given_BD, wanted_BD = outputs.embedding_BD.detach(), targets.target_BD
    size = range(len(given_BD))
    given, wanted = distances(given_BD), distances(wanted_BD)
    losses = []
    for i in size:
        pairs = [huber(given[i][j] - wanted[i][j]) for j in size]
        triples = [
            huber(cosine(given_BD, i, j, k) - cosine(wanted_BD, i, j, k))
            for j in size
            for k in size
        ]
        losses.append(
            spec.distance * sum(pairs) / len(pairs) + spec.angle * sum(triples) / len(triples)
        )
    return losses


@pytest.mark.parametrize(("distance", "angle"), PARTS)
def test_is_the_papers_sum_over_pairs_and_triples(distance: float, angle: float) -> None:
    outputs, targets = batch()
    spec = RkdOptions(distance=distance, angle=angle)
    expected_B = torch.tensor(by_loops(outputs, targets, spec), dtype=torch.float64)
    torch.testing.assert_close(rkd(outputs, targets, spec), expected_B, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cone", [0.0, 0.99], ids=["spread", "narrow"])
def test_is_so_in_float32_even_in_a_narrow_cone(cone: float) -> None:
    """A student that has just begun gives all images nearly the same embedding."""
    outputs, targets = batch()
    axis_D = F.normalize(torch.ones(24, dtype=torch.float64), dim=0)
    near_BD = F.normalize((1 - cone) * outputs.embedding_BD.detach() + cone * axis_D, dim=1)
    outputs = replace(outputs, embedding_BD=near_BD.float())
    targets = replace(targets, target_BD=targets.target_BD.float())
    loss_B = rkd(outputs, targets, RkdOptions())
    wide = replace(outputs, embedding_BD=near_BD.float().double())
    expected_B = rkd(wide, replace(targets, target_BD=targets.target_BD.double()), RkdOptions())
    torch.testing.assert_close(loss_B.double(), expected_B, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("distance", "angle"), PARTS)
def test_is_the_loss_of_torchdistill(distance: float, angle: float) -> None:
    """Where it is installed: it asks for more (torch 2.12, Cython) than one comparison is worth."""
    library = pytest.importorskip("torchdistill.losses.mid_level")
    outputs, targets = batch()
    theirs = library.RKDLoss(
        student_output_path="x",
        teacher_output_path="x",
        dist_factor=distance,
        angle_factor=angle,
        reduction="mean",
    )
    expected = theirs({"x": {"output": outputs.embedding_BD}}, {"x": {"output": targets.target_BD}})
    found = rkd(outputs, targets, RkdOptions(distance=distance, angle=angle)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_is_nothing_where_the_student_has_the_teachers_relations() -> None:
    """Turned and mirrored space has the same distances and angles."""
    outputs, targets = batch()
    turn_DD, _ = torch.linalg.qr(rows(24, 9))
    turned = replace(outputs, embedding_BD=targets.target_BD @ turn_DD)
    assert rkd(turned, targets, RkdOptions()).abs().max() < 1e-12
    assert (rkd(outputs, targets, RkdOptions()) > 1e-3).all()


def test_samples_that_coincide_leave_all_gradients_finite() -> None:
    outputs, targets = batch(dtype=torch.float32)
    twins_BD = outputs.embedding_BD.detach().clone()
    twins_BD[1] = twins_BD[0]
    twins_BD.requires_grad_()
    rkd(replace(outputs, embedding_BD=twins_BD), targets, RkdOptions()).sum().backward()
    assert twins_BD.grad is not None
    assert twins_BD.grad.isfinite().all()
    assert twins_BD.grad.abs().max() < 100


class TestMemory:
    def loss_and_gradient(
        self, monkeypatch: pytest.MonkeyPatch, at_once: int
    ) -> tuple[Tensor, Tensor]:
        monkeypatch.setattr(relations, "_ANGLES_AT_ONCE", at_once)
        outputs, targets = batch()
        loss_B = rkd(outputs, targets, RkdOptions())
        (gradient_BD,) = torch.autograd.grad(loss_B.sum(), outputs.embedding_BD)
        return loss_B, gradient_BD

    @pytest.mark.parametrize("at_once", [1, B**2, 3 * B**2, 2 * B**3])
    def test_how_many_angles_are_made_at_once_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch, at_once: int
    ) -> None:
        found = self.loss_and_gradient(monkeypatch, at_once)
        for one, other in zip(found, self.loss_and_gradient(monkeypatch, B**3), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    def test_never_holds_all_angles(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither in one tensor, there and back, nor in what it keeps for the way back."""
        size = 48
        monkeypatch.setattr(relations, "_ANGLES_AT_ONCE", 4 * size**2)
        outputs, targets = batch(size)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with Largest() as largest:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = rkd(outputs, targets, RkdOptions()).mean()
            loss.backward()  # type: ignore[no-untyped-call]
        assert largest.numel == 4 * size**2
        assert sum(kept.values()) < 12 * size**2


class Largest(TorchDispatchMode):
    """Records how many numbers the largest tensor has that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numel = max(self.numel, made.numel())
        return made
