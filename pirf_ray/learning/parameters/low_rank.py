"""Low-rank adaptation (LoRA, Hu et al. 2021, arXiv 2106.09685) without a change of the network's modules.

    W = W_0 + B A,  A (r, n), B (m, r), W a weight of the network flattened to (m, n) = (out, in * kernel)

A starts random with variance 1/n and B at zero, so W starts at W_0. The gradient G of W is pulled back to the factors:
dL/dA = B^T G, dL/dB = G A^T. After the optimizer's step W is written again. The network's tensors keep their names, so weights
are published, saved and evaluated as without factors. One-dimensional tensors (biases, norms) do not change.
"""

import torch

from envs.numerics import seeding


class LowRank:
    """Low-rank factors A and B of a network's parameters with at least two dimensions."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], rank: int, *, seed: int = 0) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.targets = {name: p for name, p in parameters.items() if p.ndim >= 2}
        self.start = {name: p.detach().clone() for name, p in self.targets.items()}
        self.factors: dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
        for index, (name, p) in enumerate(self.targets.items()):
            m, n = p.shape[0], p[0].numel()
            r = min(rank, m, n)
            drawn = seeding.normal(seed, "low rank", [index], (r, n))[0] / n**0.5
            down = torch.nn.Parameter(drawn.to(p))
            self.factors[name] = down, torch.nn.Parameter(torch.zeros(m, r, dtype=p.dtype, device=p.device))

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return A and B of each target. The optimizer updates them."""
        return [factor for pair in self.factors.values() for factor in pair]

    @torch.no_grad()
    def pull_back(self) -> None:
        """Set the gradients of the factors from the gradients of the targets."""
        for name, p in self.targets.items():
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            g = gradient.reshape(len(p), -1)
            down, up = self.factors[name]
            down.grad, up.grad = up.T @ g, g @ down.T

    @torch.no_grad()
    def write(self) -> None:
        """Write W = W_0 + B A into the network."""
        for name, p in self.targets.items():
            down, up = self.factors[name]
            p.copy_(self.start[name] + (up @ down).reshape(p.shape))

    def state(self) -> list[torch.Tensor]:
        """Return the factors, in the order of ``parameters``."""
        return [factor.detach() for factor in self.parameters()]

    @torch.no_grad()
    def load(self, state: list[torch.Tensor]) -> None:
        """Continue from ``state()`` and write the targets."""
        for factor, stored in zip(self.parameters(), state, strict=True):
            factor.copy_(stored)
        self.write()
