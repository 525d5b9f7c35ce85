"""Physics rewards: fields in physical units -> one reward a sample, with its breakdown.

A reward is a weighted sum of named terms. Each term is a violation v >= 0 (mean square residual, atypicality of the
initial condition, ...) with the floor that exact data has and a reference r_ref, the violation of exact data plus a
stated small noise. Below the floor nothing is gained: v is clipped there, and the gradient is zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Literal, get_args

import torch

from envs.common.checks import ConfigError, not_negative, positive, require
from envs.numerics import seeding
from envs.pdes import PDE
from envs.rewards.base import RewardOutput

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

    def __rmul__(self, factor: float) -> "Term":
        return replace(self, weight=factor * self.weight)


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """What is rewarded."""

    operator: str = ""
    """Residual operator that is rewarded; empty: the PDE's default, consistent."""
    reward_form: RewardForm = "log"
    """plain: -r. log: -log(r + r_ref). saturating: -r / (r + r_ref). None gains below the data floor."""
    reference_noise: float = 3e-4
    """Noise (model units) on exact data whose residual is r_ref: where the log and saturating rewards flatten out."""
    condition_weight: float = 0.1
    """Weight of the conditions (wall, initial condition, ...) beside the residual's weight of 1, times the PDE's factor for each."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of single reward terms, by name, instead of theirs by --condition-weight: --weights wall 0.3 conservation 0."""

    def __post_init__(self) -> None:
        positive(self, "reference_noise")
        not_negative(self, "condition_weight")
        for name, weight in self.weights.items():
            require(weight >= 0, f"--weights: {name} must not be negative, got {weight}")

    def check(self, pde: PDE) -> None:
        """Raise ConfigError on an operator or term that the PDE does not have."""
        if self.operator and self.operator not in pde.operators:
            raise ConfigError(f"--operator {self.operator!r} is not one of {pde.env_id}; known: {sorted(pde.operators)}")
        known = {*pde.operators, *pde.conditions}
        unknown = sorted(self.weights.keys() - known)
        if unknown:
            raise ConfigError(f"--weights: {pde.env_id} has no term {', '.join(unknown)}; known: {', '.join(sorted(known))}")

    def make(self, pde: PDE) -> "PhysicsReward":
        """Return the reward of a PDE by these settings."""
        return physics_reward(
            pde,
            operator=self.operator,
            form=self.reward_form,
            condition_weight=self.condition_weight,
            weights=self.weights,
            reference_noise=self.reference_noise,
        )


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
    """Weighted sum of shaped terms. Differentiable, per sample. ``reward + 0.3 * term`` is a reward with one term more."""

    differentiable = True
    per_sample = True

    def __init__(self, terms: list[Term], form: RewardForm = "plain") -> None:
        if not terms:
            raise ValueError("a reward needs at least one term")
        if form not in get_args(RewardForm):
            raise ValueError(f"unknown reward form {form!r}; known: {sorted(get_args(RewardForm))}")
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise ValueError(f"the terms of a reward need different names, got {names}")
        unfelt = [term.name for term in terms if not term.reference]
        if form != "plain" and unfelt:
            raise ValueError(
                f"the {form} form divides by the reference of each term, which is 0 for {', '.join(unfelt)}: "
                f"small noise on exact data does not violate it; give a larger reference_noise, or use the plain form"
            )
        self.terms, self.form = terms, form

    def __add__(self, term: Term) -> "PhysicsReward":
        return PhysicsReward([*self.terms, term], self.form)

    def __call__(self, fields: torch.Tensor) -> RewardOutput:
        """Fields (b, c, h, w), physical units."""
        violations = {term.name: term.violation(fields) for term in self.terms}
        reward = fields.new_zeros(len(fields))
        for term in self.terms:
            shape = shaped(violations[term.name], self.form, floor=term.floor, reference=term.reference)
            reward = reward + term.weight * shape
        return RewardOutput(reward=reward, violations=violations)


@lru_cache(maxsize=64)
def _calibrate(pde: PDE, violation: Violation, noise: float) -> tuple[float, float]:
    """(floor, reference) of a violation: its mean over solver data, and over the same with white noise (model units).

    Both in float32, as the samples that are rewarded: the floor of an exact operator is their rounding.
    """
    ids = range(CALIBRATION_SAMPLES)
    fields = _calibration_fields(pde)
    disturbed = pde.normalizer.to_model(fields) + noise * seeding.normal(0, "calibration noise", ids, pde.shape)
    floor = float(violation(fields.float()).mean())
    return floor, max(floor, float(violation(pde.normalizer.to_physical(disturbed).float()).mean()))


@lru_cache(maxsize=2)
def _calibration_fields(pde: PDE) -> torch.Tensor:
    return pde.solve(0, "calibration", range(CALIBRATION_SAMPLES))


def calibrated_term(
    pde: PDE, name: str, violation: Violation | None = None, *, weight: float = 1.0, reference_noise: float = 3e-4
) -> Term:
    """A term with floor and reference measured on the PDE's solver data (cached).

    ``name``: one of the PDE's operators or conditions, or with ``violation`` a name of your own. Raises ValueError on an
    unknown name, and on a violation that is negative, not finite or not of shape (b,) on solver data.
    """
    if violation is None:
        violation = _violations(pde).get(name)
        if violation is None:
            raise ValueError(f"{pde.env_id} has no reward term {name!r}; known: {sorted(_violations(pde))}")
    probe = violation(_calibration_fields(pde)[:2])
    if tuple(probe.shape) != (2,) or not torch.isfinite(probe).all() or (probe < 0).any():
        raise ValueError(f"violation {name!r} must give one finite value >= 0 a sample, shape (2,), got {probe.tolist()}")
    floor, reference = _calibrate(pde, violation, reference_noise)
    return Term(name=name, weight=weight, violation=violation, floor=floor, reference=reference)


@lru_cache(maxsize=16)
def _violations(pde: PDE) -> dict[str, Violation]:
    """Mean square residual of each operator, and each condition, by name."""
    residuals: dict[str, Violation] = {name: partial(pde.residual, operator=name) for name in pde.operators}
    return residuals | pde.conditions


def physics_reward(
    pde: PDE,
    *,
    operator: str = "",
    form: RewardForm = "plain",
    condition_weight: float = 0.0,
    weights: dict[str, float] | None = None,
    reference_noise: float = 3e-4,
) -> PhysicsReward:
    """The reward of a PDE: its residual with weight 1, and its conditions. Floors are measured on solver data (cached).

    Each condition weighs ``condition_weight`` times the PDE's own factor for it; ``weights`` sets single terms whole, other
    operators too. Terms of weight 0 are left out. Raises ValueError on an unknown
    operator, term or form.
    """
    operator = operator or pde.default_operator
    if operator not in pde.operators:
        raise ValueError(f"unknown operator {operator!r} of {pde.env_id}; known: {sorted(pde.operators)}")
    conditions = {name: condition_weight * pde.condition_weights.get(name, 1.0) for name in pde.conditions}
    chosen = {operator: 1.0, **conditions, **(weights or {})}
    terms = [
        calibrated_term(pde, name, weight=weight, reference_noise=reference_noise) for name, weight in chosen.items() if weight
    ]
    return PhysicsReward(terms, form)
