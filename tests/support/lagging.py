"""An objective with everything that a learner carries beside the weights, and a regularizer that moves the reference."""

from collections.abc import Mapping

import torch

from envs.common.parts import PartSettings
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.learnables import Learnable
from pirf_ray.learning.losses import Batch, Context, Loss
from pirf_ray.learning.objectives import Objective
from pirf_ray.learning.objectives import register as register_objective
from pirf_ray.learning.regularizers import Regularizer
from pirf_ray.learning.regularizers import register as register_regularizer
from pirf_ray.metrics.cost import Cost

SIGMA = 0.3


class Baseline(Learnable):
    """Mean reward of the batches so far."""

    learning_rate, steps = 0.1, 2

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(()))

    def loss(self, batch: Batch) -> torch.Tensor:
        return (batch.rollouts.reward - self.value).square().mean()


class Lagging(Objective):
    """Denoising errors weighted by the reward over a learned baseline, on samples of a lagged policy."""

    makers = ("samples",)
    behaviour = "old"
    needs_gradient = False

    def __init__(self, settings: PartSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.baseline = Baseline()

    def learnables(self) -> Mapping[str, Learnable]:
        return {"baseline": self.baseline}

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        x = batch.rollouts.x
        error = (policies.tuned.tuned(x, SIGMA) - x).square().flatten(1).mean(1)
        good = (batch.rollouts.reward - self.baseline.value).detach()
        return Loss(value=(good * error).mean(), metrics={"error": error.detach()})

    def cost(self, batch: Batch) -> Cost:
        return Cost(network_forwards=len(batch), network_gradients=len(batch))

    def advance(self, policies: Policies, update: int) -> None:
        policies.move_old(0.5)


class Moving(Regularizer):
    """Distance of the denoised samples to the reference's. The reference moves after every second update."""

    def penalty(self, batch: Batch, policies: Policies, loss: Loss) -> Loss:
        x = batch.rollouts.x
        with torch.no_grad():
            reference = policies.base.tuned(x, SIGMA)
        distance = (policies.tuned.tuned(x, SIGMA) - reference).square().flatten(1).mean(1)
        return Loss(value=distance.mean(), metrics={"distance": distance.detach()})

    def advance(self, policies: Policies, update: int) -> None:
        if update % 2 == 0:
            policies.reset_reference()


def register_lagging() -> None:
    """Register both, as ``lagging`` and ``moving``."""
    register_objective("lagging")(Lagging)
    register_regularizer("moving")(Moving)
