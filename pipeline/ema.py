"""An exponential moving average of a model's parameters and buffers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """The averaged state of a model (BeamCLIP, Eq. 9, with a warm-up).

    momentum: m of Eq. 9. After t updates m_t = min(m, (1 + t) / (10 + t)): taken literally, 22% of
    the random start would be left after 152 steps at m = 0.99. Float buffers (batch statistics) are
    averaged too; whole-number ones (counters) are copied.
    """

    def __init__(self, model: nn.Module, momentum: float, *, warm_up: bool = True) -> None:
        self.momentum, self.warm_up, self.updates = momentum, warm_up, 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present state."""
        m = self.momentum
        if self.warm_up:
            m = min(m, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, values = [], []
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                averages.append(self.state[name])
                values.append(value)
            else:
                self.state[name].copy_(value)
        # All at once, so that a GPU starts few kernels.
        get_ema_multi_avg_fn(m)(averages, values, 0)  # type: ignore[no-untyped-call]

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on from a saved average."""
        for name, value in state.items():
            self.state[name].copy_(value)
        self.updates = updates
