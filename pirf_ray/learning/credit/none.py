"""No credit, for objectives that differentiate the reward or read it themselves."""

from envs.common.parts import PartSettings
from pirf_ray.learning.credit.base import register
from pirf_ray.learning.losses import Batch, Context


@register("none")
class NoCredit:
    """No advantages."""

    min_group = 1

    def __init__(self, settings: PartSettings, context: Context) -> None:
        pass

    def advantages(self, batch: Batch) -> None:
        """Return None."""
        return
