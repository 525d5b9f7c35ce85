"""Physics rewards: weighted sums of named terms, as functions of fields in physical units.

A term has a violation v >= 0, such as the mean square residual, and two constants of its PDE. The floor is the violation of
exact data. The reference r_ref is the violation of exact data with a stated small noise. Below the floor v is clipped, so the
reward is constant and its gradient is zero.
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
"""A function of fields (b, c, h, w) in physical units that returns a violation (b,) >= 0."""
CALIBRATION_SAMPLES = 256
"""Exact samples from which the floor and the reference of a term are measured."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A term of a reward."""

    name: str
    """Name of the term in the reward's breakdown."""
    weight: float
    """Factor of the term in the reward, not negative."""
    violation: Violation
    """Function of fields (b, c, h, w) that returns the violation (b,): 0 if the physics holds."""
    floor: float
    """Mean violation of exact data."""
    reference: float
    """Mean violation r_ref of exact data with a small noise, at least the floor."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight of reward term {self.name!r} must not be negative, got {self.weight}")
        if not 0 <= self.floor <= self.reference:
            raise ValueError(f"reward term {self.name!r} needs 0 <= floor <= reference, got {self.floor} and {self.reference}")

    def __rmul__(self, factor: float) -> "Term":
        return replace(self, weight=factor * self.weight)


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """Settings of a physics reward."""

    operator: str = ""
    """Residual operator of the reward. Empty: the PDE's default operator, consistent."""
    reward_form: RewardForm = "log"
    """Form of a term with violation r: plain is -r, log is -log(r + r_ref), saturating is -r / (r + r_ref)."""
    reference_noise: float = 3e-4
    """Noise on exact data, model units, that defines r_ref. The log and saturating forms flatten out below r_ref."""
    condition_weight: float = 0.1
    """Weight of each condition, times the PDE's factor for the condition. The residual has the weight 1."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of single terms by name, in place of their weights by --condition-weight: --weights wall 0.3 conservation 0."""

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
        """Return the reward of a PDE with these settings."""
        return physics_reward(
            pde,
            operator=self.operator,
            form=self.reward_form,
            condition_weight=self.condition_weight,
            weights=self.weights,
            reference_noise=self.reference_noise,
        )


def shaped(violation: torch.Tensor, form: RewardForm, *, floor: float, reference: float) -> torch.Tensor:
    """Return the reward (b,) of a term from its violation (b,). With v = max(violation, floor) the forms are:

    ==========  ================  ========================================================================
    form        reward            property
    ==========  ================  ========================================================================
    plain       -v                reward of Yuan et al. 2025 (arXiv 2509.20570) above the floor
    log         -log(v + r_ref)   all samples weigh alike far above r_ref; the slope is at most 1 / r_ref
    saturating  -v / (v + r_ref)  bounded; samples far above r_ref weigh little
    ==========  ================  ========================================================================
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
    """A weighted sum of shaped terms. ``reward + 0.3 * term`` is a reward with a further term."""

    differentiable = True
    """The reward has a gradient."""
    per_sample = True
    """The reward of a sample does not depend on its batch."""

    def __init__(self, terms: list[Term], form: RewardForm = "plain") -> None:
        """Set the terms and their form. ValueError if they do not fit together."""
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
                f"small noise on exact data does not violate the term; give a larger reference_noise, or use the plain form"
            )
        self.terms, self.form = terms, form

    def __add__(self, term: Term) -> "PhysicsReward":
        return PhysicsReward([*self.terms, term], self.form)

    def __call__(self, fields: torch.Tensor) -> RewardOutput:
        """Return the rewards (b,) and violations of fields (b, c, h, w) in physical units."""
        violations = {term.name: term.violation(fields) for term in self.terms}
        reward = fields.new_zeros(len(fields))
        for term in self.terms:
            shape = shaped(violations[term.name], self.form, floor=term.floor, reference=term.reference)
            reward = reward + term.weight * shape
        return RewardOutput(reward=reward, violations=violations)


@lru_cache(maxsize=64)
def _calibrate(pde: PDE, name: str, violation: Violation, noise: float) -> tuple[float, float]:
    """Return (floor, reference): the mean violation of exact data, and of exact data with white noise (model units).

    Both are computed in float32, like the rewards of samples. The floor of an exact operator is the rounding of float32.
    ValueError if the function ``violation`` returns no violations.
    """
    ids = range(CALIBRATION_SAMPLES)
    fields = _calibration_fields(pde)
    probe = violation(fields[:2])
    if tuple(probe.shape) != (2,) or not torch.isfinite(probe).all() or (probe < 0).any():
        raise ValueError(f"violation {name!r} must return a finite value >= 0 per sample, shape (2,), got {probe.tolist()}")
    disturbed = pde.normalizer.to_model(fields) + noise * seeding.normal(0, "calibration noise", ids, pde.shape)
    floor = float(violation(fields.float()).mean())
    return floor, max(floor, float(violation(pde.normalizer.to_physical(disturbed).float()).mean()))


@lru_cache(maxsize=2)
def _calibration_fields(pde: PDE) -> torch.Tensor:
    return pde.solve(0, "calibration", range(CALIBRATION_SAMPLES))


def calibrated_term(
    pde: PDE, name: str, violation: Violation | None = None, *, weight: float = 1.0, reference_noise: float = 3e-4
) -> Term:
    """Return a term whose floor and reference are measured on the PDE's exact data. Both are cached.

    ``name`` is an operator or a condition of the PDE. With ``violation`` it is a name of your own. ValueError if the name is
    unknown, or if the violation of exact data is negative, not finite or not of the shape (b,).
    """
    if violation is None:
        violation = _violations(pde).get(name)
        if violation is None:
            raise ValueError(f"{pde.env_id} has no reward term {name!r}; known: {sorted(_violations(pde))}")
    floor, reference = _calibrate(pde, name, violation, reference_noise)
    return Term(name=name, weight=weight, violation=violation, floor=floor, reference=reference)


@lru_cache(maxsize=16)
def _violations(pde: PDE) -> dict[str, Violation]:
    """Return the mean square residual of each operator, and each condition, by name."""
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
    """Return the reward of a PDE: its residual with the weight 1, and its conditions.

    A condition has the weight ``condition_weight`` times the PDE's factor for the condition. ``weights`` sets the weights of
    single terms, of other operators too. Terms of weight 0 are left out. Floors are measured on exact data and cached.
    ValueError if an operator, term or form is unknown.
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
