"""Physics rewards: fields in physical units -> one reward a sample, with its breakdown.

A reward is a weighted sum of named terms. Each term is a violation v >= 0 (mean square residual, atypicality of the
initial condition, ...) with the floor that exact data has and a reference r_ref, the violation of exact data plus a
stated small noise. Below the floor nothing is gained: v is clipped there, and the gradient is zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, Protocol, get_args

import torch

from envs import seeding
from envs.pdes import PDE, make_pde

RewardForm = Literal["plain", "log", "saturating"]
Violation = Callable[[torch.Tensor], torch.Tensor]
CALIBRATION_SAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of a reward."""

    name: str
    weight: float
    violation: Violation
    """Fields (b, c, h, w) -> violation (b,), 0 where the physics holds."""
    floor: float
    """Mean violation of exact data."""
    reference: float
    """Mean violation r_ref of exact data with a small noise added; at least the floor."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight of reward term {self.name!r} must not be negative, got {self.weight}")
        if not 0 <= self.floor <= self.reference:
            raise ValueError(f"reward term {self.name!r} needs 0 <= floor <= reference, got {self.floor} and {self.reference}")


@dataclass(frozen=True, kw_only=True)
class RewardOutput:
    """Reward (b,) and the violation (b,) of each term, unweighted and unclipped."""

    reward: torch.Tensor
    violations: dict[str, torch.Tensor]


class Reward(Protocol):
    """The reward seam. ``differentiable`` and ``per_sample`` say what an objective may do with it."""

    differentiable: bool
    per_sample: bool

    def __call__(self, fields: torch.Tensor) -> RewardOutput: ...


def shaped(violation: torch.Tensor, form: RewardForm, *, floor: float, reference: float) -> torch.Tensor:
    """Reward of one term. With v = max(violation, floor):

    ``plain``       -v                   (Yuan et al. 2025, arXiv 2509.20570, without gain below the floor)
    ``log``         -log(v + r_ref)      weighs all samples alike; its slope ends at 1 / r_ref
    ``saturating``  -v / (v + r_ref)     bounded; samples far above r_ref weigh little
    """
    v = violation.clamp_min(floor)
    if form == "plain":
        return -v
    if form == "log":
        return -(v + reference).log()
    if form == "saturating":
        return -v / (v + reference)
    raise ValueError(f"unknown reward form {form!r}; known: {sorted(get_args(RewardForm))}")


class PhysicsReward:
    """Weighted sum of shaped terms. Differentiable, per sample."""

    differentiable = True
    per_sample = True

    def __init__(self, terms: list[Term], form: RewardForm = "plain") -> None:
        if not terms:
            raise ValueError("a reward needs at least one term")
        if form not in get_args(RewardForm):
            raise ValueError(f"unknown reward form {form!r}; known: {sorted(get_args(RewardForm))}")
        self.terms, self.form = terms, form

    def __call__(self, fields: torch.Tensor) -> RewardOutput:
        """Fields (b, c, h, w), physical units."""
        violations = {term.name: term.violation(fields) for term in self.terms}
        reward = fields.new_zeros(len(fields))
        for term in self.terms:
            shape = shaped(violations[term.name], self.form, floor=term.floor, reference=term.reference)
            reward = reward + term.weight * shape
        return RewardOutput(reward=reward, violations=violations)


@lru_cache(maxsize=64)
def _calibrate(env_id: str, resolution: int, name: str, noise: float) -> tuple[float, float]:
    """(floor, reference) of a violation: its mean over solver data, and over the same with white noise (model units)."""
    pde = make_pde(env_id, resolution)
    ids = range(CALIBRATION_SAMPLES)
    fields = pde.solve(0, "calibration", ids)
    disturbed = pde.normalizer.to_model(fields) + noise * seeding.normal(0, "calibration noise", ids, pde.shape)
    violation = _violation(pde, name)
    floor = float(violation(fields).mean())
    return floor, max(floor, float(violation(pde.normalizer.to_physical(disturbed)).mean()))


def _violation(pde: PDE, name: str) -> Violation:
    if name in pde.conditions:
        return pde.conditions[name]
    return partial(pde.residual, operator=name)


def physics_reward(
    pde: PDE,
    *,
    operator: str = "",
    form: RewardForm = "plain",
    condition_weight: float = 0.0,
    reference_noise: float = 3e-4,
) -> PhysicsReward:
    """The reward of a PDE: its residual with weight 1, and its conditions. Floors are measured on solver data (cached).

    Raises ValueError on an unknown operator or form.
    """
    operator = operator or pde.default_operator
    if operator not in pde.operators:
        raise ValueError(f"unknown operator {operator!r} of {pde.env_id}; known: {sorted(pde.operators)}")
    weights = {operator: 1.0, **(dict.fromkeys(pde.conditions, condition_weight) if condition_weight else {})}
    terms = []
    for name, weight in weights.items():
        floor, reference = _calibrate(pde.env_id, pde.resolution, name, reference_noise)
        terms.append(Term(name=name, weight=weight, violation=_violation(pde, name), floor=floor, reference=reference))
    return PhysicsReward(terms, form)
