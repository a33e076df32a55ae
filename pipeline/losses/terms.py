"""The losses by name, as a recipe weighs them.

One more is one entry of LOSSES.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from pipeline.contracts import TargetBatch
from pipeline.errors import RecipeError, StudentError
from pipeline.losses.anchors import AnchorOptions, KdOptions, csm_ce, entmin, kd
from pipeline.losses.contract import Loss, Sizes, WeightOptions
from pipeline.losses.heads import (
    KdBankOptions,
    KdContrast,
    KdInbatchOptions,
    KdKl,
    KdKlOptions,
    KdMse,
)
from pipeline.losses.labels import Supervised, SupervisedOptions, labelled
from pipeline.losses.pairs import Itc, ItcOptions
from pipeline.losses.relations import RkdOptions, rkd
from pipeline.losses.targets import CrdOptions, SeedOptions, crd, ism, mse, seed
from pipeline.options import nearest, parse


@dataclass(frozen=True)
class Entry:
    """One loss: a function, or a module that Sizes build.

    uses_embedding: whether it has a gradient into the embedding, or the output that is made one,
    not into the features alone.
    counted: says which samples its mean is over, bool [B]; None: over all.
    pairs: whether it is of images and texts: it needs outputs.image and outputs.text.
    """

    loss: Loss | type[nn.Module]
    options: type[WeightOptions]
    uses_embedding: bool = True
    counted: Callable[[TargetBatch], Tensor] | None = None
    pairs: bool = False


LOSSES: Mapping[str, Entry] = {
    "csm_ce": Entry(csm_ce, AnchorOptions),
    "entmin": Entry(entmin, AnchorOptions),
    "ism": Entry(ism, WeightOptions),
    "kd": Entry(kd, KdOptions),
    "mse": Entry(mse, WeightOptions),
    "crd": Entry(crd, CrdOptions),
    "seed": Entry(seed, SeedOptions),
    "rkd": Entry(rkd, RkdOptions),
    "supervised": Entry(Supervised, SupervisedOptions, uses_embedding=False, counted=labelled),
    "itc": Entry(Itc, ItcOptions, pairs=True),
    "kd_bank": Entry(KdContrast, KdBankOptions, pairs=True),
    "kd_inbatch": Entry(KdContrast, KdInbatchOptions, pairs=True),
    "kd_mse": Entry(KdMse, WeightOptions, pairs=True),
    "kd_kl": Entry(KdKl, KdKlOptions, pairs=True),
}


@dataclass(frozen=True)
class Term:
    """One loss of a recipe with its options."""

    name: str
    spec: Any

    def build(self, sizes: Sizes) -> Loss:
        """Return the loss; one with parameters is made anew, an nn.Module.

        Raises StudentError if it is of images and texts and the student of images alone.
        """
        loss = LOSSES[self.name].loss
        if LOSSES[self.name].pairs and not sizes.width:
            raise StudentError(
                f"losses.{self.name} needs a student that reads texts, and captions for it; this "
                "one sees images alone: take such a student, or leave the loss out"
            )
        return loss(sizes) if isinstance(loss, type) else loss


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
    return Term(name, parse(LOSSES[name].options, fields, where=f"{where}: losses.{name}"))


def resolve_tau(terms: Sequence[Term], logit_scale: float) -> list[Term]:
    """Give every loss over anchors that leaves tau open the teacher's own, 1 / logit_scale."""
    return [
        Term(term.name, replace(term.spec, tau=1 / logit_scale))
        if isinstance(term.spec, AnchorOptions) and term.spec.tau is None
        else term
        for term in terms
    ]
