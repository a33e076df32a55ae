"""SimCLR (Chen et al. 2020): its views, its head and its loss.

Shape letters: B images, S side in pixels, F feature dimension, E embedding dimension.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import LibraryError
from pipeline.order import noise_seed
from pipeline.schedule import Schedule
from pipeline.students import StudentOptions, build_image_student

EMBEDDING_DIM = 128  # section 4.2

# Appendix A, colour jitter of strength 1; blur as a fraction of the side, there 0.1 to 2 px of 224.
SIMCLR = Schedule(
    name="simclr",
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter=0.8,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    grayscale=0.2,
    blur=0.5,
)


class Contrasted(nn.Module):
    """A student's backbone under SimCLR's head of two layers, which is thrown away."""

    def __init__(self, spec: StudentOptions, *, input_px: int, seed: int) -> None:
        super().__init__()
        self.student = build_image_student(spec, dim=EMBEDDING_DIM, input_px=input_px, seed=seed)
        width = self.student.projection.in_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise_seed(seed, 0))
            self.hidden = nn.Linear(width, width)

    def forward(self, views_B3SS: Tensor) -> Tensor:
        """Embed uint8 views as float32 [B,E], not normalised."""
        hidden_BF = F.relu(self.hidden(self.student.features(views_B3SS)))
        embedding_BE: Tensor = self.student.projection(hidden_BF)
        return embedding_BE


def nt_xent(temperature: float) -> Callable[[Tensor], Tensor]:
    """Return SimCLR's loss (Eq. 1) of float32 [2B,E], whose halves are views of the same images.

    Raises LibraryError if pytorch-metric-learning is not installed.
    """
    try:
        from pytorch_metric_learning.losses import SupConLoss
        from pytorch_metric_learning.reducers import MeanReducer
    except ImportError as error:
        raise LibraryError(
            f"SimCLR's loss comes from pytorch-metric-learning ({error}): "
            "pip install 'beamclip[ssl]'"
        ) from None
    # With one positive for each, supervised contrast is NT-Xent. The library's own NTXentLoss takes
    # memory by the cube of the batch.
    loss = SupConLoss(temperature, reducer=MeanReducer())

    def contrast(embedding_2BE: Tensor) -> Tensor:
        images = torch.arange(len(embedding_2BE) // 2, device=embedding_2BE.device).repeat(2)
        mean: Tensor = loss(embedding_2BE, images)
        return mean

    return contrast
