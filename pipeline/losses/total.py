"""The weighted sum of a recipe's losses, the one number that a step minimises.

Shape letters: B batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.losses.contract import Loss, Sizes
from pipeline.losses.terms import LOSSES, Term


class LossSum(nn.Module):
    """The terms of a recipe; the parameters that some of them own are its parameters.

    Own parameters are drawn from torch's global generator, in the order of the terms.
    """

    def __init__(self, terms: Sequence[Term], sizes: Sizes) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self._losses: dict[str, Loss] = {term.name: term.build(sizes) for term in terms}
        self.own = nn.ModuleDict(
            {name: loss for name, loss in self._losses.items() if isinstance(loss, nn.Module)}
        )

    def forward(
        self, outputs: StudentOutputs, batch: TargetBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the terms' means, and each mean before weighting (detached).

        A mean is over the samples of the batch, for `supervised` over those with a label.
        """
        means = {term.name: self._mean(term, outputs, batch) for term in self.terms}
        loss = torch.stack([term.spec.weight * means[term.name] for term in self.terms]).sum()
        return loss, {name: mean.detach() for name, mean in means.items()}

    @property
    def bank(self) -> int:
        """How many targets of earlier steps the terms look at; 0: none."""
        return max(getattr(term.spec, "bank", 0) for term in self.terms)

    @property
    def uses_embedding(self) -> bool:
        """Whether any term has a gradient into the embedding (else the projection has none).

        One of pairs reaches every parameter of a student of images and texts: those that make its
        output, which is its embedding before it is normalised.
        """
        return any(LOSSES[term.name].uses_embedding for term in self.terms)

    @property
    def pairs(self) -> bool:
        """Whether any term is of images and texts, and needs a student that is given both."""
        return any(LOSSES[term.name].pairs for term in self.terms)

    def _mean(self, term: Term, outputs: StudentOutputs, batch: TargetBatch) -> Tensor:
        loss_B = self._losses[term.name](outputs, batch, term.spec)
        counted = LOSSES[term.name].counted
        if counted is None:
            return loss_B.mean()
        return loss_B.sum() / counted(batch).sum().clamp(min=1)
