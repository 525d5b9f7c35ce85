"""Fields of the solver in place of a policy's samples, for objectives that learn from data."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from envs.common.checks import at_least
from envs.common.parts import PartSettings
from envs.denoising import DenoisingProcess
from envs.environments import DenoisingVectorEnv
from envs.numerics import seeding
from envs.pdes import PDE
from envs.pdes.base import require
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.rollouts.base import MakerContext, Requests, register
from pirf_ray.learning.rollouts.records import Sample

DATA_SEED, DATA_STREAM = 0, "train"
"""Seed and stream of the solver's fields, as in pretraining."""


@dataclass(frozen=True, kw_only=True)
class DataSettings(PartSettings):
    """Settings of the solver's fields."""

    data_fields: int = 1024
    """Number of solver fields that samples are drawn from. A random symmetry of the PDE moves each sample."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "data_fields")


@register("data")
class DataMaker:
    """Fields of the solver, each moved by a random symmetry of the PDE. They have no rewards."""

    Settings = DataSettings
    makes = Sample
    rewarded = False
    uses_policy = False

    def __init__(self, settings: DataSettings, context: MakerContext) -> None:
        self.settings = settings

    def make(self, env: DenoisingVectorEnv, policies: Policies, requests: Requests) -> Sample:
        """Return the fields of the requested samples, model units, with reward 0. Seed, stream and id decide a sample.

        NotProvided if the PDE has no solver.
        """
        require(env.pde, "solve", "--maker data")
        x = self.fields(env.pde, requests.seed, requests.stream, requests.sample_ids).to(env.device)
        return Sample(
            sample_ids=requests.sample_ids,
            groups=requests.groups,
            policy_version=requests.version,
            source="data",
            condition=requests.condition,
            x=x,
            reward=x.new_zeros(len(x)),
        )

    def fields(self, pde: PDE, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        """Return the fields (b, c, h, w) of samples, float32, model units."""
        solved, moved = _solved(pde, self.settings.data_fields), []
        for i in sample_ids:
            rng = seeding.generator(seed, f"{stream} data", i)
            row = int(rng.integers(len(solved)))
            moved.append(pde.augment(solved[row : row + 1], rng))
        return pde.normalizer.to_model(torch.cat(moved)).float()

    def cost(self, process: DenoisingProcess) -> float:
        """Return 0: no network is evaluated."""
        return 0.0


@lru_cache(maxsize=2)
def _solved(pde: PDE, count: int) -> torch.Tensor:
    """Return the first fields of the training data (count, c, h, w), float32, physical units; fewer if no more are there."""
    available = pde.available(DATA_STREAM)
    ids = range(count if available is None else min(count, available))
    return pde.solve(DATA_SEED, DATA_STREAM, ids).float()
