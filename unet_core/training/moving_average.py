"""The moving average of the weights."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ModelEMA:
    """Exponential moving average of weights and of BatchNorm's statistics: steadier than any step's own weights.

    The decay grows from 2/11 at the first step to its full value, as (1 + steps) / (10 + steps), so that the random
    initial weights are forgotten soon. BatchNorm's running mean and variance are averaged with the same decay as the
    weights that they belong to.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averaged, self._current = (list(side) for side in zip(*floats, strict=True))
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]  # BatchNorm's batches seen

    @torch.no_grad()
    def update(self) -> None:
        """Add the network's weights after a step to the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(self._averaged, self._current, self.steps)  # type: ignore[no-untyped-call]
        for count, new in self._counts:
            count.copy_(new)
