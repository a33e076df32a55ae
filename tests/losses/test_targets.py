"""Losses between an embedding and targets are what their equations say."""

import math
from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor
from torch.nn import functional as F

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.losses import WeightOptions
from pipeline.losses.targets import CrdOptions, SeedOptions, crd, ism, mse, seed
from pipeline.students import StudentOptions, build_student
from tests.losses.samples import DTYPES, B, D, M, batch, rows

TAUS = (0.01, 0.07, 0.2, 1.0)


def on_a_rank(dtype: torch.dtype = torch.float64) -> tuple[StudentOutputs, TargetBatch]:
    """Return the second part of a step: its keys begin before it and end after it."""
    outputs, targets = batch(dtype=dtype)
    keys_GD = torch.cat([rows(4, 5, dtype), targets.target_BD, rows(2, 6, dtype)])
    return outputs, replace(targets, keys_GD=keys_GD, first=4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_ism_is_least_and_minus_one_where_the_student_is_the_target(
    dtype: torch.dtype, tolerance: float
) -> None:
    outputs, targets = batch(dtype=dtype)
    same = replace(outputs, embedding_BD=targets.target_BD)
    least_B = ism(same, targets, WeightOptions())
    torch.testing.assert_close(least_B, torch.full_like(least_B, -1), rtol=0, atol=tolerance)
    assert (ism(outputs, targets, WeightOptions()) > least_B).all()


def test_a_student_given_its_own_embedding_as_target_has_an_ism_of_minus_one() -> None:
    """A real student in evaluation mode, float32: -1 within 1e-6 for every sample."""
    student = build_student(StudentOptions(model="test_resnet"), dim=D, input_px=32, seed=0).eval()
    views = torch.randint(0, 256, (B, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        outputs = student(views)
        _, targets = batch(dtype=torch.float32)
        loss_B = ism(
            outputs, replace(targets, target_BD=student(views).embedding_BD), WeightOptions()
        )
    torch.testing.assert_close(loss_B, torch.full((B,), -1.0), rtol=0, atol=1e-6)


def test_ism_is_the_negative_cosine() -> None:
    outputs, targets = batch()
    expected_B = -F.cosine_similarity(outputs.embedding_BD, targets.target_BD)
    torch.testing.assert_close(ism(outputs, targets, WeightOptions()), expected_B)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mse_is_torchs(dtype: torch.dtype) -> None:
    outputs, targets = batch(dtype=dtype)
    found = mse(outputs, targets, WeightOptions()).mean()
    expected = F.mse_loss(outputs.embedding_BD, targets.target_BD)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_mse_of_normalised_vectors_is_ism_on_another_scale() -> None:
    outputs, targets = batch()
    expected_B = 2 * (1 + ism(outputs, targets, WeightOptions())) / D
    torch.testing.assert_close(mse(outputs, targets, WeightOptions()), expected_B)


class TestCrd:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("tau", TAUS)
    @pytest.mark.parametrize("bank", [0, 4, M, 100])
    def test_is_the_cross_entropy_of_finding_its_own_target(
        self, tau: float, bank: int, dtype: torch.dtype
    ) -> None:
        """In plain loops: the positive among the step's targets and the newest of the bank."""
        outputs, targets = on_a_rank(dtype)
        keys = [*targets.keys_GD, *reversed([*reversed(targets.bank_MD)][:bank])]
        expected = []
        for q_D, k_D in zip(outputs.embedding_BD.detach(), targets.target_BD, strict=True):
            terms = [float(q_D @ key_D) / tau for key_D in keys]
            top = max(terms)
            total = math.log(sum(math.exp(term - top) for term in terms)) + top
            expected.append(total - float(q_D @ k_D) / tau)
        loss_B = crd(outputs, targets, CrdOptions(tau=tau, bank=bank))
        tolerance = 1e-6 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(
            loss_B, torch.tensor(expected, dtype=dtype), rtol=1e-6, atol=tolerance
        )

    @pytest.mark.parametrize("tau", TAUS)
    @pytest.mark.parametrize("bank", [0, M])
    def test_is_the_ntxent_loss_of_pytorch_metric_learning(self, tau: float, bank: int) -> None:
        outputs, targets = on_a_rank()
        keys_ND = torch.cat([targets.keys_GD, targets.bank_MD[M - bank :]])
        expected = NTXentLoss(temperature=tau)(
            outputs.embedding_BD,
            torch.arange(B) + targets.first,
            ref_emb=keys_ND,
            ref_labels=torch.arange(len(keys_ND)),
        )
        found = crd(outputs, targets, CrdOptions(tau=tau, bank=bank)).mean()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    def test_takes_the_newest_of_the_bank(self) -> None:
        outputs, targets = batch()
        older = replace(targets, bank_MD=torch.cat([rows(50, 8), targets.bank_MD]))
        spec = CrdOptions(bank=M)
        assert torch.equal(crd(outputs, older, spec), crd(outputs, targets, spec))

    def test_a_step_in_two_parts_is_the_whole_step(self) -> None:
        outputs, targets = batch()
        whole_B = crd(outputs, targets, CrdOptions())
        parts = [
            crd(
                StudentOutputs(outputs.features_BF[part], outputs.embedding_BD[part]),
                replace(targets, target_BD=targets.target_BD[part], first=part.start),
                CrdOptions(),
            )
            for part in (slice(0, 3), slice(3, B))
        ]
        torch.testing.assert_close(torch.cat(parts), whole_B)

    def test_one_key_alone_is_found_for_nothing(self) -> None:
        outputs, targets = batch(1)
        assert crd(outputs, targets, CrdOptions()).item() == 0


class TestSeed:
    def by_hand(self, x_BD: Tensor, targets: TargetBatch, bank: int) -> Tensor:
        """Return similarities to the own target and the newest of the bank, row by row."""
        newest = targets.bank_MD[-bank:]
        return torch.stack(
            [
                torch.cat([k_D[None], newest]) @ x_D
                for x_D, k_D in zip(x_BD, targets.target_BD, strict=True)
            ]
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("tau_teacher", [1e-4, 0.01, 0.1])
    @pytest.mark.parametrize("bank", [4, M])
    def test_is_torchs_cross_entropy_over_the_queue(
        self, bank: int, tau_teacher: float, dtype: torch.dtype
    ) -> None:
        outputs, targets = batch(dtype=dtype)
        wanted_BQ = (self.by_hand(targets.target_BD, targets, bank) / tau_teacher).softmax(dim=1)
        given_BQ = self.by_hand(outputs.embedding_BD, targets, bank) / 0.2
        expected_B = F.cross_entropy(given_BQ, wanted_BQ, reduction="none")
        loss_B = seed(outputs, targets, SeedOptions(bank=bank, tau_teacher=tau_teacher))
        torch.testing.assert_close(loss_B, expected_B, rtol=1e-6, atol=1e-6)

    def test_at_a_sharp_teacher_is_crd_against_the_bank(self) -> None:
        """The teacher is then sure of the sample's own target."""
        outputs, targets = batch(1)
        found = seed(outputs, targets, SeedOptions(tau_teacher=1e-4, tau_student=0.07))
        torch.testing.assert_close(found, crd(outputs, targets, CrdOptions(bank=M)))

    def test_does_not_look_at_the_other_targets_of_the_step(self) -> None:
        outputs, targets = batch()
        fewer = replace(targets, keys_GD=targets.keys_GD[:0])
        assert torch.equal(
            seed(outputs, targets, SeedOptions()), seed(outputs, fewer, SeedOptions())
        )

    def test_is_nothing_before_there_are_earlier_targets(self) -> None:
        outputs, targets = batch()
        empty = replace(targets, bank_MD=targets.bank_MD[:0])
        assert (seed(outputs, empty, SeedOptions()) == 0).all()
