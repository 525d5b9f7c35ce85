"""The policies of a training, with the learning parameters attached to their networks."""

import copy
from dataclasses import dataclass, field

from envs.common.parts import PartSettings
from envs.denoising import DenoisingProcess
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.policies import Policies
from pirf_ray.diffusion.policy import Policy, PolicySettings, make_policy
from pirf_ray.learning.parameters import PARAMETERS, Group


@dataclass(frozen=True, kw_only=True)
class ParameterChoice:
    """Name and settings of the learning parameters. It travels to the actors."""

    name: str = "layers"
    settings: PartSettings = field(default_factory=PartSettings)

    def attach(self, denoiser: AbstractDenoiser) -> tuple[AbstractDenoiser, list[Group]]:
        """Return the denoiser with the parts that the choice attaches, and the groups of learning parameters."""
        settings = None if type(self.settings) is PartSettings else self.settings
        return PARAMETERS.make(self.name, settings).attach(denoiser)


def tuned_policy(
    base: AbstractDenoiser, process: DenoisingProcess, settings: PolicySettings, learning: ParameterChoice
) -> Policy:
    """Return a policy that equals the base model, with the learning parameters attached to its tuned denoiser."""
    tuned, _ = learning.attach(copy.deepcopy(base))
    return make_policy(base, process, settings, tuned)


def make_policies(
    base: AbstractDenoiser, process: DenoisingProcess, settings: PolicySettings, learning: ParameterChoice, *, old: bool = False
) -> tuple[Policies, list[Group]]:
    """Return the policies of a training, and the groups of the learning parameters of its tuned policy.

    ``old``: keep a lagged snapshot. ValueError if two groups share a tensor, or if a group has a tensor of no name.
    """
    tuned, groups = learning.attach(copy.deepcopy(base))
    names = [name for group in groups for name in group.parameters]
    if not names or len(set(names)) < len(names) or set(names) - tuned.tensors().keys():
        raise ValueError(f"--parameters {learning.name}: groups must hold tensors of the denoiser, each once; got {names[:4]}")
    policy = make_policy(base, process, settings, tuned)
    return Policies(policy, lambda: tuned_policy(base, process, settings, learning), names, old=old), groups
