"""The base model as it is."""

from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import PolicySampler, Sampler
from pirf_ray.methods.base import Method, Problem, Settings, Weights, register


@register
class Base(Method):
    """The model that every other method starts from."""

    name = "base"
    title = "base"
    source = "EDM, Karras et al. 2022, arXiv 2206.00364"

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        return PolicySampler(Policy(problem.base))
