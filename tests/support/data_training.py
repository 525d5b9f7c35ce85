"""What tests of training on solver data share: a batch of data, and the policies that learn from it."""

import torch

from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.policies import Policies
from pirf_ray.diffusion.policy import PolicySettings
from pirf_ray.learning.losses import Batch, Context
from pirf_ray.learning.parameters.attach import ParameterChoice, make_policies
from pirf_ray.learning.rollouts import MakerContext, Sample
from pirf_ray.learning.rollouts.data import DataMaker, DataSettings
from tiny_models import tiny_info

PDE8: PDE = tiny_info().pde()
"""Burgers' equation on 8 x 8 points."""
PROCESS = DenoisingProcess(4)
CONTEXT = Context(process=PROCESS, pde=PDE8, truncation=1)
FIELDS = 32
"""Solver fields of the tests."""


def maker() -> DataMaker:
    """Return the maker of few fields."""
    return DataMaker(DataSettings(data_fields=FIELDS), MakerContext(stop_step=3))


def data_batch(update: int = 0, size: int = 16, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    """Return the batch of an update, whose sample ids follow those of the update before."""
    ids = tuple(range(update * size, (update + 1) * size))
    x = maker().fields(PDE8, seed, "rollout", ids).to(dtype)
    sample = Sample(sample_ids=ids, groups=ids, source="data", x=x, reward=x.new_zeros(size))
    return Batch(rollouts=sample, key=(seed, update))


def policies_of(base: AbstractDenoiser, parameters: str = "layers") -> Policies:
    """Return policies whose tuned weights act at every sigma."""
    settings = PolicySettings(truncation=1, scope="all")
    return make_policies(base, PROCESS, settings, ParameterChoice(name=parameters))[0]
