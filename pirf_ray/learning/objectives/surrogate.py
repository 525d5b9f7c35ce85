"""A learned surrogate of a black-box reward, whose gradient trains the policy (TDM-R1: Luo et al. 2026, arXiv 2603.07700).

    surrogate: min E |S(x_0) - (r - mean r) / std r|^2 on the rollouts,   policy: loss = -S(x_0) + beta sum_i KL(p_i | p_i^base)

x_0 of the policy's loss is the replay of the last K steps from the rollouts' own states, so the gradient passes the few-step
path. Every reward that was paid for teaches the surrogate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from envs.common.checks import at_least, not_negative, positive
from envs.common.parts import PartSettings
from envs.denoising import State
from envs.numerics import seeding
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.learnables import Learnable
from pirf_ray.learning.losses import Batch, Context, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.replaying import replay_cost, replay_from
from pirf_ray.learning.objectives.steps import trajectory_of
from pirf_ray.metrics.cost import Cost


@dataclass(frozen=True, kw_only=True)
class SurrogateSettings(PartSettings):
    """Settings of the surrogate."""

    surrogate_width: int = 32
    """Channels of the surrogate's convolutions."""
    surrogate_rate: float = 1e-3
    """Learning rate of the surrogate."""
    surrogate_steps: int = 4
    """Steps of the surrogate per update of the policy."""
    surrogate_kl: float = 0.0
    """beta of the KL of the chain to the reference's, in units of the reward's standard deviation, for --solver stochastic."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "surrogate_width", "surrogate_steps")
        positive(self, "surrogate_rate")
        not_negative(self, "surrogate_kl")


class SurrogateReward(Learnable):
    """Small network from a finished sample (b, c, h, w), model units, to its standardized reward (b,).

    Coordinates enter as channels, since a reward may look at single places.
    """

    def __init__(self, shape: tuple[int, int, int], settings: SurrogateSettings, seed: int = 0) -> None:
        super().__init__()
        channels, rows, columns = shape
        width, cells = settings.surrogate_width, 4
        self.learning_rate, self.steps = settings.surrogate_rate, settings.surrogate_steps
        self.pool = nn.AdaptiveAvgPool2d((min(cells, rows), min(cells, columns)))
        with torch.random.fork_rng(devices=[]):  # layers are born with random weights, which are replaced at once
            layers = [nn.Conv2d(channels + 2, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)]
            self.convolutions = nn.ModuleList(layers)
            self.linear = nn.Linear(channels * rows * columns, 1)
            self.head = nn.Linear(width * min(cells, rows) * min(cells, columns), 1)
        place = torch.stack(torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij"))
        self.register_buffer("place", place)
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))
        self._initialize(seed)

    sums: torch.Tensor
    """Number, sum and sum of squares of all rewards so far."""
    place: torch.Tensor
    """Coordinates (2, h, w)."""

    def _initialize(self, seed: int) -> None:
        """Draw the weights from the house's own streams: the same on every rank, nothing global is reseeded."""
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
                drawn = seeding.normal(seed, "surrogate", [index], tuple(parameter.shape))[0]
                parameter.copy_(drawn * fan_in**-0.5 if fan_in else torch.zeros_like(drawn))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the standardized rewards (b,) of samples x (b, c, h, w), model units."""
        hidden = torch.cat([x, self.place.to(x).expand(len(x), -1, -1, -1)], dim=1)
        for layer in self.convolutions:
            hidden = nn.functional.silu(layer(hidden))
        value: torch.Tensor = self.linear(x.flatten(1)) + self.head(self.pool(hidden).flatten(1))
        return value[:, 0]

    def statistics(self, batch: Batch) -> torch.Tensor:
        """Return number, sum and sum of squares of the rewards."""
        reward = trajectory_of(batch).reward.double()
        return torch.stack([torch.as_tensor(reward.numel(), dtype=torch.float64).to(reward), reward.sum(), reward.square().sum()])

    def absorb(self, total: torch.Tensor) -> None:
        """Add the batch's sums."""
        self.sums += total

    def standardized(self, reward: torch.Tensor) -> torch.Tensor:
        """Return rewards minus the mean of all rewards so far, over their standard deviation."""
        mean = self.sums[1] / self.sums[0]
        std = (self.sums[2] / self.sums[0] - mean**2).clamp_min(1e-12).sqrt()
        return ((reward.double() - mean) / std).to(reward)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean square error on the rollouts' finished samples."""
        trajectory = trajectory_of(batch)
        x = torch.cat([trajectory.x[leaf] for leaf in trajectory.leaves])
        target = torch.cat([self.standardized(reward) for reward in trajectory.reward])
        error: torch.Tensor = self(x) - target
        return error.square().mean()


@register("surrogate")
class Surrogate(Objective):
    """Gradient of a learned surrogate of the reward through the last K steps (TDM-R1)."""

    Settings = SurrogateSettings
    makers = ("trajectories",)
    needs_gradient = False

    def __init__(self, settings: SurrogateSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.surrogate = SurrogateReward(context.pde.shape, settings)

    def learnables(self) -> Mapping[str, Learnable]:
        """Return the surrogate."""
        return {"surrogate": self.surrogate}

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return minus the surrogate's reward of the replayed samples, and the path's KL."""
        trajectory, beta = trajectory_of(batch), self.settings.surrogate_kl
        node = self._start(trajectory.steps)
        state = State(x=trajectory.x[node], step=trajectory.steps[node])
        replay = replay_from(self.context, policies, batch, state, with_kl=beta > 0)
        self.surrogate.requires_grad_(False)
        value = self.surrogate(replay.x)
        self.surrogate.requires_grad_(True)
        metrics: dict[str, Any] = {"surrogate": value.detach()}
        if beta:
            metrics["path_kl"] = replay.kl.detach()
        return Loss(value=(beta * replay.kl - value).mean(), metrics=metrics, samples=[replay.x], kl=replay.kl)

    def _start(self, steps: tuple[int, ...]) -> int:
        """Return the first node at the start of the last K steps."""
        return steps.index(self.context.process.num_steps - self.context.truncation)

    def cost(self, batch: Batch) -> Cost:
        """Return the evaluations of the replay."""
        step = self.context.process.num_steps - self.context.truncation
        return replay_cost(self.context, step, len(batch), with_kl=self.settings.surrogate_kl > 0)
