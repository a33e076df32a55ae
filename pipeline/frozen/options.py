"""How the shared part behind two frozen encoders is trained, and its size."""

from pipeline.optimizing import TrainOptions
from pipeline.options import options

_BETAS, _WEIGHT_DECAY, _WARMUP = (0.9, 0.98), 0.01, 0.1  # the second document's


@options
class FrozenOptions:
    """Options of the ablation with frozen encoders, which is in neither document.

    Betas, weight decay and the share of warm-up are those of the second document; rate, batch and
    epochs are chosen for what takes seconds.
    """

    epochs: int = 20  # every caption once in each
    batch_size: int = 512  # captions of a step: each has the others as negatives
    learning_rate: float = 1e-3  # of AdamW, cosine to 0
    seed: int = 0
    width: int = 256  # of the space of both
    mlp_ratio: float = 4.0  # the shared MLP's inner width, in widths

    def __post_init__(self) -> None:
        if self.width < 1 or self.inner < 1:
            raise ValueError(f"width and mlp_ratio x width are at least 1, not {self.width}")
        self.training()  # which checks the others

    @property
    def inner(self) -> int:
        """The shared MLP's inner width I."""
        return int(self.width * self.mlp_ratio)

    def training(self) -> TrainOptions:
        """Return the same as the trainer has it, for its rates and its optimiser."""
        return TrainOptions(
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
            optimizer="adamw",
            learning_rate=self.learning_rate,
            betas=_BETAS,
            weight_decay=_WEIGHT_DECAY,
            warmup_epochs=_WARMUP * self.epochs,
        )
