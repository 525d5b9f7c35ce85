"""Rewards: functions of fields in physical units that return a reward per sample."""

from envs.rewards.base import REWARDS, Reward, RewardOutput, Scope, register
from envs.rewards.command import CommandReward, CommandSettings, RewardError, located
from envs.rewards.finding import find_reward, reward_settings
from envs.rewards.functions import Checked, FunctionReward, checked, require_reward, reward
from envs.rewards.physics import PhysicsReward, RewardForm, RewardSettings, Term, calibrated_term, physics_reward, shaped
from envs.rewards.serving import serve
from envs.rewards.zero import NoReward

__all__ = [
    "REWARDS",
    "Checked",
    "CommandReward",
    "CommandSettings",
    "FunctionReward",
    "NoReward",
    "PhysicsReward",
    "Reward",
    "RewardError",
    "RewardForm",
    "RewardOutput",
    "RewardSettings",
    "Scope",
    "Term",
    "calibrated_term",
    "checked",
    "find_reward",
    "located",
    "physics_reward",
    "register",
    "require_reward",
    "reward",
    "reward_settings",
    "serve",
    "shaped",
]
