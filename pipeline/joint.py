"""Student and losses as one module, whose gradients all ranks share."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.losses import LossSum
from pipeline.ranks import Ranks
from pipeline.students import AnyStudent


class Joint(nn.Module):
    """Views and targets in, losses out."""

    def __init__(self, student: AnyStudent, losses: LossSum) -> None:
        super().__init__()
        self.student, self.losses = student, losses

    def forward(self, views_B3SS: Tensor, targets: TargetBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and each term's mean before weighting."""
        outputs: StudentOutputs = (
            self.student(views_B3SS)
            if targets.tokens is None
            else self.student(views_B3SS, targets.tokens)
        )
        found: tuple[Tensor, dict[str, Tensor]] = self.losses(outputs, targets)
        return found


def over_ranks(joint: Joint, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return the module to call: one that averages gradients over all ranks, if there are several.

    On GPUs batch norm then takes its statistics over all ranks (SyncBatchNorm); on CPUs, where
    torch has none, each rank normalises by its own share, and the first rank's averages count.
    """
    if ranks.size == 1:
        return joint
    on_gpu = device.type == "cuda"
    if on_gpu:
        joint.student = nn.SyncBatchNorm.convert_sync_batchnorm(joint.student)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(
        joint,
        device_ids=[device.index or 0] if on_gpu else None,
        # Then a projection has no gradient, nor has what reads texts, nor a shared encoder.
        find_unused_parameters=not joint.losses.uses_embedding,
    )


@contextlib.contextmanager
def unsynchronised(module: nn.Module, when: bool) -> Iterator[None]:
    """Leave gradients on this rank, when more of the same step are to come."""
    if when and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield
