"""What a steerer is given: the denoisers, and what the samples are steered by."""

from dataclasses import dataclass

import torch

from envs.common.checks import ConfigError
from envs.numerics.conditions import Condition
from envs.numerics.normalization import Normalizer
from envs.rewards.base import Reward
from pirf_ray.metrics.cost import count_residual_gradients
from pirf_ray.steering.residuals import Residual, SoftValue
from pirf_ray.steering.search import StepPolicy


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeringContext:
    """What a steerer may use."""

    policy: StepPolicy
    """Denoisers of the steps: a policy, or ``OneDenoiser`` of a function D(x; sigma)."""
    reward: Reward | None = None
    """Reward of finished samples."""
    normalizer: Normalizer | None = None
    """Conversion to the physical units of the reward. None: model units are physical units."""
    residual: Residual | None = None
    """Function that guidance lowers to 0. None: minus the reward."""
    floor: float = 0.0
    """Mean residual of exact data. Corrections leave a sample below it alone."""
    soft_value: SoftValue | None = None
    """Exact soft value of a state, where it is known. It replaces the reward of the denoised state."""

    def rewards(self, x: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        """Return the rewards (b,) of x (b, c, h, w), model units, computed without a graph. ValueError on another shape."""
        with torch.no_grad():
            return self._reward(x.detach(), condition)

    def violation(self, x: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        """Return what guidance lowers (b,) at x (b, c, h, w), model units: the residual, or minus the reward.

        ValueError if a reward is positive, since guidance goes down to 0.
        """
        if self.residual is not None:
            return self.residual(x)
        lowered = -self._reward(x, condition)
        if (lowered < 0).any():
            highest = -lowered.min().item()
            raise ValueError(f"guidance raises a reward to 0, and {self._name} is {highest:g}; give a residual to lower instead")
        count_residual_gradients(lowered)
        return lowered

    def _reward(self, x: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        assert self.reward is not None, "checked by need_reward or need_gradient"
        made = self.reward(self.normalizer.to_physical(x) if self.normalizer else x, condition).reward
        if made.shape != x.shape[:1]:
            raise ValueError(f"{self._name} must return rewards of shape ({len(x)},), got {tuple(made.shape)}")
        return made

    @property
    def _name(self) -> str:
        return f"the reward {type(self.reward).__name__}"

    def need_reward(self, steerer: str) -> None:
        """Raise ConfigError, which names the steerer, unless there is a reward of single samples."""
        if self.reward is None:
            raise ConfigError(f"--steer {steerer} needs a reward, got none")
        if self.reward.scope != "sample":
            raise ConfigError(
                f"--steer {steerer} needs a reward of scope 'sample', and {self._name} has scope {self.reward.scope!r}"
            )

    def need_gradient(self, steerer: str) -> None:
        """Raise ConfigError, which names the steerer, unless there is a residual or a reward with a gradient."""
        if self.residual is not None:
            return
        self.need_reward(steerer)
        if not self.reward.differentiable:  # type: ignore[union-attr]
            raise ConfigError(
                f"--steer {steerer} follows a gradient, and {self._name} has none; known without a gradient: best-of-n, svdd"
            )
