"""Physics rewards: functions of fields in physical units that return a reward per sample."""

from envs.rewards.base import Reward, RewardOutput
from envs.rewards.physics import PhysicsReward, RewardForm, RewardSettings, Term, calibrated_term, physics_reward, shaped

__all__ = [
    "PhysicsReward",
    "Reward",
    "RewardForm",
    "RewardOutput",
    "RewardSettings",
    "Term",
    "calibrated_term",
    "physics_reward",
    "shaped",
]
