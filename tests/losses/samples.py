"""What a student and a cache say of a few samples, random and small."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.contracts import Branch, StudentOutputs, TargetBatch, TeacherTargets
from pipeline.losses import LOSSES, Loss, Sizes, Term, parse_terms, resolve_tau

TAUS = (0.01, 1 / 13, 1.0)
DTYPES = (torch.float64, torch.float32)
B, D, A, M, NUM_FEATURES, C = 7, 24, 11, 9, 5, 3
WIDTH, INNER = 10, 13
SIZES = Sizes(num_features=NUM_FEATURES, dim=D, num_anchors=A, num_classes=C, width=WIDTH)


def rows(count: int, seed: int, dtype: torch.dtype = torch.float64, *, dim: int = D) -> Tensor:
    """Return random normalised rows [count, dim]."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=dtype), dim=1)


def batch(
    size: int = B, anchors: int = A, dtype: torch.dtype = torch.float64
) -> tuple[StudentOutputs, TargetBatch]:
    """Return what a student and a cache say of `size` samples; the student's wants gradients."""
    outputs = StudentOutputs(
        features_BF=rows(size, 4, dtype, dim=NUM_FEATURES).requires_grad_(),
        embedding_BD=rows(size, 0, dtype).requires_grad_(),
        image=branch(size, 30, dtype),
        text=branch(size, 40, dtype),
    )
    target_BD = rows(size, 1, dtype)
    targets = TargetBatch(
        target_BD=target_BD,
        anchors_AD=rows(anchors, 2, dtype),
        rows_B=torch.arange(size),
        labels_B=torch.arange(size) % C,
        keys_GD=target_BD,
        bank_MD=rows(M, 3, dtype),
        key_rows_G=torch.arange(size),
        bank_rows_M=torch.arange(100, 100 + M),
        norms_B=1 + torch.arange(size, dtype=dtype),
    )
    return outputs, targets


def branch(size: int, seed: int, dtype: torch.dtype = torch.float64) -> Branch:
    """Return what a model of images and texts says of one of them, not normalised."""
    return Branch(
        output_BE=(3 * rows(size, seed, dtype, dim=WIDTH)).requires_grad_(),
        inner_BI=(5 * rows(size, seed + 1, dtype, dim=INNER)).requires_grad_(),
    )


def chosen(outputs: StudentOutputs, index: Any) -> StudentOutputs:
    """Return what a student says of some of the samples: a slice, or their numbers."""
    image, text = (
        None if it is None else Branch(it.output_BE[index], it.inner_BI[index])
        for it in (outputs.image, outputs.text)
    )
    return StudentOutputs(
        outputs.features_BF[index], outputs.embedding_BD[index], image=image, text=text
    )


def part_of(
    outputs: StudentOutputs, targets: TargetBatch, part: slice
) -> tuple[StudentOutputs, TargetBatch]:
    """Return a part of a batch, which knows the keys of the whole."""
    return (
        chosen(outputs, part),
        replace(
            targets,
            target_BD=targets.target_BD[part],
            rows_B=targets.rows_B[part],
            labels_B=targets.labels_B[part],
            norms_B=targets.norms_B[part],
            first=part.start,
        ),
    )


def further_teachers(dtype: torch.dtype = torch.float64) -> tuple[TeacherTargets, ...]:
    """Return two more teachers of the same samples and classes, in spaces of other dimensions."""
    return tuple(
        TeacherTargets(
            target_BD=rows(B, 10 + dim, dtype, dim=dim),
            anchors_AD=rows(A, 20 + dim, dtype, dim=dim),
            logit_scale=scale,
        )
        for dim, scale in ((6, 30.0), (31, 5.0))
    )


def term_of(name: str, **fields: Any) -> Term:
    """Return one loss as a recipe gives it, tau resolved."""
    (term,) = resolve_tau(parse_terms({name: fields}, where="test"), 13.0)
    return term


def every_term() -> list[Term]:
    """Return each loss of LOSSES with its default options."""
    return [term_of(name) for name in LOSSES]


def built(term: Term, dtype: torch.dtype = torch.float64, sizes: Sizes = SIZES) -> Loss:
    """Return the loss of a term; its own parameters are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = term.build(sizes)
    return loss.to(dtype) if isinstance(loss, nn.Module) else loss


def value(term: Term, outputs: StudentOutputs, targets: TargetBatch) -> Tensor:
    """Return loss_B of a term."""
    return built(term, outputs.features_BF.dtype)(outputs, targets, term.spec)
