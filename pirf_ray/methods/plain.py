"""The base model as it is."""

import torch

from envs.denoising import DenoisingProcess
from pirf_ray.methods.base import Method, Problem, Sampler, Settings, Weights, register
from pirf_ray.policy import Policy
from pirf_ray.rollout import finish


class PolicySampler:
    """The sampler's steps with a policy's denoisers."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        return finish(process, self.policy.denoisers(process), process.initial(noise))


@register
class Base(Method):
    """What every other method starts from."""

    name = "base"
    title = "base"
    source = "EDM, Karras et al. 2022, arXiv 2206.00364"

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        return PolicySampler(Policy(problem.base))
