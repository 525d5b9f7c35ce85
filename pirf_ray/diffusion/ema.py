"""The exponential moving average of weights."""

import torch


class Ema:
    """Exponential moving average of named tensors.

    theta_ema <- d theta_ema + (1 - d) theta,  d = min(decay, (1 + updates) / (10 + updates))

    The small d of the first updates removes the start from the average.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: dict[str, torch.Tensor]) -> None:
        """Average the tensors after one update of the weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, average in self.tensors.items():
            average.lerp_(tensors[name].detach(), 1 - decay)

    def load(self, tensors: dict[str, torch.Tensor], updates: int) -> None:
        """Continue from the averaged tensors after ``updates`` updates. ValueError if their names differ."""
        if tensors.keys() != self.tensors.keys():
            raise ValueError("the averaged tensors do not fit the trained ones")
        self.updates = updates
        for name, average in self.tensors.items():
            average.copy_(tensors[name])
