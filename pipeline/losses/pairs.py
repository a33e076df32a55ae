"""The contrastive loss of images and their texts.

Shape letters: B batch, G samples of all ranks in flight, E width, L levels.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pipeline.contracts import Branch, StudentOutputs, TargetBatch
from pipeline.losses.contract import Sizes, WeightOptions, both, own_keys
from pipeline.losses.contrast import Scales, contrast, normalised, twins
from pipeline.losses.gathering import gathered
from pipeline.options import options

Level = Literal["output", "inner"]
_LEVELS: tuple[Level, ...] = get_args(Level)


@options
class ItcOptions(WeightOptions):
    """Options of `itc`.

    levels: what is compared, `output` of the shared encoder or what its MLP has `inner`, before the
    activation; the mean over both is what the second document's code does. mask_same_image: other
    texts of the same image, and that image met again, are no negatives; off: as in its code.
    """

    levels: tuple[Level, ...] = ("output",)
    mask_same_image: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels are output, inner or both, each once, not {self.levels}")


class Itc(nn.Module):
    """The loss with a scale of its own for each level; a level left out keeps its first scale."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        # In one tensor, all of which is in every graph: DDP waits for a gradient of each parameter.
        self.scales = Scales(len(_LEVELS))

    def forward(self, outputs: StudentOutputs, batch: TargetBatch, spec: ItcOptions) -> Tensor:
        """Cross-entropy of finding the text of an image, and the image of a text, averaged: [B]
        (CLIP, Radford et al. 2021, Figure 3, arXiv 2103.00020; Cares et al. 2025).

        Among those of all ranks, with gradients into them. With training.accumulate those are the
        samples of the part in flight on every rank, not of the whole step: fewer negatives.
        """
        image, text = both(outputs)
        rows_B = own_keys(batch, len(outputs.embedding_BD))
        rows_G, first = gathered(rows_B)
        own_B = torch.arange(len(rows_B), device=rows_B.device) + first
        left_out_BG = twins(rows_B, rows_G, own_B) if spec.mask_same_image else None
        scales_L = self.scales()
        values = [
            _symmetric(
                _of(image, level),
                _of(text, level),
                scales_L[_LEVELS.index(level)],
                own_B,
                left_out_BG,
            )
            for level in spec.levels
        ]
        return torch.stack(values).mean(dim=0)


def _of(branch: Branch, level: Level) -> Tensor:
    return normalised(branch.output_BE if level == "output" else branch.inner_BI)


def _symmetric(
    image_BE: Tensor, text_BE: Tensor, scale: Tensor, own_B: Tensor, left_out_BG: Tensor | None
) -> Tensor:
    """Return the mean of both ways, [B], among all ranks' rows."""
    both_GE, _ = gathered(torch.cat([image_BE, text_BE], dim=1))  # one exchange, not two
    images_GE, texts_GE = both_GE.chunk(2, dim=1)
    to_text_B = contrast(image_BE, texts_GE, scale, own_B, left_out_BG)
    to_image_B = contrast(text_BE, images_GE, scale, own_B, left_out_BG)
    return (to_text_B + to_image_B) / 2
