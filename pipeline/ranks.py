"""The processes that train one student together: which of them this is, and what they agree on."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.errors import BeamclipError

if TYPE_CHECKING:
    import torch

# How long a rank waits for the others before it gives up.
SECONDS_VARIABLE = "BEAMCLIP_RANK_SECONDS"
_SECONDS = 600


@dataclass(frozen=True)
class Ranks:
    """This process among `size` of them; `local` counts on this machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes what all of them have made."""
        return self.rank == 0

    def mean(self, values: "torch.Tensor") -> "torch.Tensor":
        """Return the mean over all ranks, in place; NaN and infinity of one reach every rank."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.all_reduce(values)
            values /= self.size
        return values

    def meet(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()

    def agree(self, value: int) -> bool:
        """Tell whether every rank has the same number."""
        if self.size == 1:
            return True
        import torch.distributed

        found: list[int] = [0] * self.size
        torch.distributed.all_gather_object(found, value)
        return len(set(found)) == 1


ALONE = Ranks()


def ranks_of_environment() -> Ranks:
    """Return what torchrun told this process; ALONE without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    return Ranks(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local=int(os.environ.get("LOCAL_RANK", "0")),
    )


@contextlib.contextmanager
def joined(ranks: Ranks, device: "torch.device") -> Iterator[None]:
    """Join the other ranks for as long as the block runs; raises BeamclipError if that fails."""
    if ranks.size == 1:
        yield
        return
    import torch
    import torch.distributed

    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    seconds = float(os.environ.get(SECONDS_VARIABLE, _SECONDS))
    try:
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=timedelta(seconds=seconds),
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise BeamclipError(
            f"rank {ranks.rank} of {ranks.size} cannot join the others ({error}): start all of "
            "them with torchrun"
        ) from None
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
