"""Losses between a student's outputs and cached targets, each one entry of LOSSES.

Notation of the source document (000, BeamCLIP): q student embedding, k target, a_j anchors, all
normalised; P(x|A) = softmax_j(x . a_j / tau). Every loss returns one value per sample, loss_B.
Shape letters: B batch, D teacher dimension, A anchors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.errors import RecipeError
from pipeline.options import nearest, options, parse


@options
class WeightOptions:
    """Options of a loss with nothing to set but its weight; 0 switches it off."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight is at least 0, not {self.weight}")


@options
class AnchorOptions(WeightOptions):
    """Options of a loss over the anchors. tau null: the teacher's own 1 / logit_scale."""

    tau: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is not None and self.tau <= 0:
            raise ValueError(f"tau must be positive, not {self.tau}")


def csm_ce(outputs: StudentOutputs, batch: TargetBatch, spec: AnchorOptions) -> Tensor:
    """Cross-modal similarity matching, H(P(k|A), P(q|A)): [B] (BeamCLIP, Eq. 5-7)."""
    wanted_BA = (_logits(batch.target_BD, batch.anchors_AD, spec)).softmax(dim=1)
    log_given_BA = _logits(outputs.embedding_BD, batch.anchors_AD, spec).log_softmax(dim=1)
    return -(wanted_BA * log_given_BA).sum(dim=1)


def entmin(outputs: StudentOutputs, batch: TargetBatch, spec: AnchorOptions) -> Tensor:
    """Entropy of the student's own distribution, H(P(q|A)): [B] (BeamCLIP, Eq. 7)."""
    log_given_BA = _logits(outputs.embedding_BD, batch.anchors_AD, spec).log_softmax(dim=1)
    return -(log_given_BA.exp() * log_given_BA).sum(dim=1)


def ism(outputs: StudentOutputs, batch: TargetBatch, spec: WeightOptions) -> Tensor:
    """Instance similarity matching, -q . k: [B], at least -1 (BeamCLIP, Eq. 4)."""
    return -(outputs.embedding_BD * batch.target_BD).sum(dim=1)


def _logits(embedding_BD: Tensor, anchors_AD: Tensor, spec: AnchorOptions) -> Tensor:
    if spec.tau is None:
        raise ValueError("tau is not resolved: see resolve_tau")
    return embedding_BD @ anchors_AD.T / spec.tau


Loss = Callable[[StudentOutputs, TargetBatch, Any], Tensor]
LOSSES: Mapping[str, tuple[Loss, type[Any]]] = {
    "csm_ce": (csm_ce, AnchorOptions),
    "entmin": (entmin, AnchorOptions),
    "ism": (ism, WeightOptions),
}


@dataclass(frozen=True)
class Term:
    """One loss of a recipe with its options."""

    name: str
    spec: Any

    def __call__(self, outputs: StudentOutputs, batch: TargetBatch) -> Tensor:
        return LOSSES[self.name][0](outputs, batch, self.spec)


def parse_terms(losses: Mapping[str, Mapping[str, Any]], *, where: str) -> list[Term]:
    """Read a recipe's `losses`; weight 0 switches one off; raises RecipeError."""
    every = [parse_term(name, fields, where=where) for name, fields in losses.items()]
    terms = [term for term in every if term.spec.weight != 0]
    if not terms:
        raise RecipeError(f"{where}: no loss has a weight: expected one of {', '.join(LOSSES)}")
    return terms


def parse_term(name: str, fields: Mapping[str, Any], *, where: str) -> Term:
    """Read one loss of a recipe, switched off or not; raises RecipeError."""
    if name not in LOSSES:
        raise RecipeError(f"{where}: unknown loss {name!r}: {nearest(name, LOSSES)}")
    return Term(name, parse(LOSSES[name][1], fields, where=f"{where}: losses.{name}"))


def resolve_tau(terms: list[Term], logit_scale: float) -> list[Term]:
    """Give every loss over anchors that leaves tau open the teacher's own, 1 / logit_scale."""
    return [
        Term(term.name, replace(term.spec, tau=1 / logit_scale))
        if isinstance(term.spec, AnchorOptions) and term.spec.tau is None
        else term
        for term in terms
    ]
