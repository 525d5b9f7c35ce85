"""Credits by name: how a reward is shared among samples and transitions."""

from pirf_ray.learning.credit import group, none  # noqa: F401  (each registers itself)
from pirf_ray.learning.credit.base import CREDITS, Credit, register

__all__ = ["CREDITS", "Credit", "register"]
