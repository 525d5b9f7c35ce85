"""Rollouts: the plan of samples, their makers by name, records, sources."""

from pirf_ray.learning.rollouts import data, prefixes, samples, trajectories  # noqa: F401  (each registers itself)
from pirf_ray.learning.rollouts.base import MAKERS, MakerContext, Requests, RolloutMaker, register
from pirf_ray.learning.rollouts.prefixes import replay
from pirf_ray.learning.rollouts.records import Prefix, Rollouts, Sample, Trajectory, join

__all__ = [
    "MAKERS",
    "MakerContext",
    "Prefix",
    "Requests",
    "RolloutMaker",
    "Rollouts",
    "Sample",
    "Trajectory",
    "join",
    "register",
    "replay",
]
