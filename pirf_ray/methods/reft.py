"""ReFT: the reward of a one-step prediction from a late step."""

from pirf_ray.methods.base import register
from pirf_ray.methods.reward_tuned import ByReward


@register
class ReFT(ByReward):
    """The one-step prediction from a random late step is rewarded."""

    name = "reft"
    title = "ReFT"
    source = "ReFL, Xu et al. 2023, arXiv 2304.05977"
    objective = "reft"
