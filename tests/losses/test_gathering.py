"""Rows of several ranks come together, and gradients go back to where they came from."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pipeline.contracts import Branch, StudentOutputs, TargetBatch
from pipeline.losses import LossSum
from pipeline.losses.gathering import gathered
from pipeline.ranks import Ranks, joined
from tests.losses.samples import INNER, NUM_FEATURES, SIZES, WIDTH, D, M, rows, term_of

RANKS, G, PIXELS, DTYPE = 2, 8, 6, torch.float64
# Images come twice, on one rank and on both.
ROWS = torch.tensor([4, 4, 5, 6, 5, 7, 8, 8])
LOSSES = {"itc": {"levels": ["output", "inner"]}, "kd_bank": {}, "kd_inbatch": {}}
LOSSES |= {"kd_mse": {}, "kd_kl": {}}
STEPS = 2


class Small(nn.Module):
    """A model of images and texts, and its losses: all of it in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(PIXELS, INNER), nn.Linear(PIXELS, INNER)
        self.shared = nn.Linear(INNER, WIDTH)
        self.losses = LossSum([term_of(name, **fields) for name, fields in LOSSES.items()], SIZES)
        self.to(DTYPE)

    def forward(self, pixels: Tensor, tokens: Tensor, targets: TargetBatch) -> Tensor:
        inner = self.image(pixels), self.text(tokens)
        image, text = (Branch(self.shared(x.relu()), x) for x in inner)
        outputs = StudentOutputs(
            features_BF=pixels[:, :NUM_FEATURES],
            embedding_BD=F.normalize(image.output_BE, dim=1),
            image=image,
            text=text,
        )
        loss: Tensor = self.losses(outputs, targets)[0]
        return loss


def share(first: int, count: int) -> tuple[Tensor, Tensor, TargetBatch]:
    """Return what one rank sees of a step: `count` samples from `first` on."""
    keys_GD, here = rows(G, 0), slice(first, first + count)
    targets = TargetBatch(
        target_BD=keys_GD[here],
        anchors_AD=rows(3, 1),
        rows_B=ROWS[here],
        labels_B=torch.zeros(count, dtype=torch.int64),
        keys_GD=keys_GD,
        bank_MD=rows(M, 2),
        key_rows_G=ROWS,
        bank_rows_M=torch.arange(M),
        norms_B=torch.arange(1, G + 1, dtype=DTYPE)[here],
        first=first,
    )
    return rows(G, 3, dim=PIXELS)[here], rows(G, 4, dim=PIXELS)[here], targets


def stepped(model: nn.Module, first: int, count: int) -> tuple[float, dict[str, Tensor]]:
    """Take steps; return the last one's loss and gradients. DDP raises if one had none."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(*share(first, count))
        loss.backward()
        optimizer.step()
    gradients = {
        name.removeprefix("module."): p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return loss.item(), gradients


def on_a_rank(rank: int, port: int, folder: Path) -> None:
    """Do what each rank does, and write down what it found."""
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    torch.set_num_threads(1)
    with joined(Ranks(rank, RANKS, rank), torch.device("cpu")):
        own = (rank + torch.arange(6.0).view(2, 3)).requires_grad_()
        whole, first = gathered(own)
        ((rank + 1) * whole * whole).sum().backward()
        numbers, _ = gathered(torch.tensor([10 * rank, 10 * rank + 1]))
        count = G // RANKS
        loss, gradients = stepped(DistributedDataParallel(Small()), rank * count, count)
        found = {"whole": whole.detach(), "first": first, "own": own.grad, "numbers": numbers}
        torch.save(found | {"loss": loss, "gradients": gradients}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(on_a_rank, (port, folder), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_alone_a_process_gets_its_rows_back() -> None:
    own = rows(3, 0)
    whole, first = gathered(own)
    assert whole is own
    assert first == 0


def test_every_rank_gets_the_rows_of_all_in_the_order_of_ranks(
    found: list[dict[str, Any]],
) -> None:
    expected = torch.cat([rank + torch.arange(6.0).view(2, 3) for rank in range(RANKS)])
    for rank, its in enumerate(found):
        torch.testing.assert_close(its["whole"], expected)
        assert its["first"] == 2 * rank
        assert torch.equal(torch.as_tensor(its["numbers"]), torch.tensor([0, 1, 10, 11]))


def test_the_gradient_of_a_row_is_what_all_ranks_say_of_it(
    found: list[dict[str, Any]],
) -> None:
    for rank, its in enumerate(found):
        torch.testing.assert_close(its["own"], (1 + 2) * 2 * (rank + torch.arange(6.0).view(2, 3)))


def test_two_ranks_have_the_losses_and_gradients_of_one(found: list[dict[str, Any]]) -> None:
    """The mean of their losses, and after DDP's averaging the same gradients, each of them."""
    loss, gradients = stepped(Small(), 0, G)
    losses = [its["loss"] for its in found]
    assert sum(losses) / RANKS == pytest.approx(loss, abs=1e-6)
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)
    for its in found:
        other = its["gradients"]
        assert other.keys() == gradients.keys() == dict(Small().named_parameters()).keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-6, atol=1e-8)
    assert gradients["image.weight"].shape == (INNER, PIXELS)
    assert gradients["losses.own.kd_bank.head.linear.weight"].shape == (D, WIDTH)
