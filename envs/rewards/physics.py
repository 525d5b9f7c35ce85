"""Physics rewards: weighted sums of named terms, as functions of fields in physical units.

A term has a violation v >= 0, such as the mean square residual, and two constants of its PDE. The floor is the violation of
exact data. The reference r_ref is the violation of exact data with a stated small noise. Below the floor v is clipped, so the
reward is constant and its gradient is zero.
"""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch

from envs.common.checks import ConfigError, not_negative, positive, require
from envs.common.parts import PartSettings
from envs.numerics.conditions import Condition
from envs.pdes import PDE
from envs.pdes.base import require as require_part
from envs.rewards.base import RewardOutput, Scope
from envs.rewards.calibration import Violation, constants_of, violations

RewardForm = Literal["plain", "log", "saturating"]


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
class RewardSettings(PartSettings):
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
        super().__post_init__()
        positive(self, "reference_noise")
        not_negative(self, "condition_weight")
        for name, weight in self.weights.items():
            require(weight >= 0, f"--weights: {name} must not be negative, got {weight}")

    def check(self, pde: PDE) -> None:
        """Raise ConfigError on an operator or term that the PDE does not have, or on a form that it cannot measure."""
        if self.operator and self.operator not in pde.operators:
            raise ConfigError(f"--operator {self.operator!r} is not one of {pde.env_id}; known: {sorted(pde.operators)}")
        known = {*pde.operators, *pde.conditions}
        unknown = sorted(self.weights.keys() - known)
        if unknown:
            raise ConfigError(f"--weights: {pde.env_id} has no term {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        _chosen(pde, self.operator, self.reward_form, self.condition_weight, self.weights)

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
    scope: Scope = "sample"
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
                f"there are no exact data, or small noise on them does not violate the term; "
                f"give a larger reference_noise, or use the plain form"
            )
        self.terms, self.form = terms, form

    def __add__(self, term: Term) -> "PhysicsReward":
        return PhysicsReward([*self.terms, term], self.form)

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        """Return the rewards (b,) of fields (b, c, h, w) in physical units, the shaped terms and their violations."""
        violations = {term.name: term.violation(fields) for term in self.terms}
        parts = {
            term.name: shaped(violations[term.name], self.form, floor=term.floor, reference=term.reference) for term in self.terms
        }
        reward = fields.new_zeros(len(fields))
        for term in self.terms:
            reward = reward + term.weight * parts[term.name]
        return RewardOutput(reward=reward, parts=parts, violations=violations)


def calibrated_term(
    pde: PDE, name: str, violation: Violation | None = None, *, weight: float = 1.0, reference_noise: float = 3e-4
) -> Term:
    """Return a term whose floor and reference are measured once on the PDE's exact data (envs.rewards.calibration).

    ``name`` is an operator or a condition of the PDE. With ``violation`` it is a name of your own. Both constants are 0 if the
    PDE has no solver. ValueError if the name is unknown, or if the violation of exact data is negative, not finite or not of
    the shape (b,).
    """
    known = violations(pde)
    if violation is None and name not in known:
        raise ValueError(f"{pde.env_id} has no reward term {name!r}; known: {sorted(known)}")
    floor, reference = constants_of(pde, name, reference_noise, violation)
    return Term(name=name, weight=weight, violation=violation or known[name], floor=floor, reference=reference)


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
    single terms, of other operators too. Terms of weight 0 are left out. Floors are measured once on exact data.
    ValueError if an operator, term or form is unknown. NotProvided if the PDE has no operator, or no solver for the form.
    """
    chosen = _chosen(pde, operator, form, condition_weight, weights or {})
    terms = [calibrated_term(pde, name, weight=weight, reference_noise=reference_noise) for name, weight in chosen.items()]
    return PhysicsReward(terms, form)


def _chosen(pde: PDE, operator: str, form: RewardForm, condition_weight: float, weights: dict[str, float]) -> dict[str, float]:
    """Return the weights of a reward's terms by name, those of weight 0 left out. ValueError if there can be no such reward."""
    operator = operator or pde.default_operator
    if operator and operator not in pde.operators:
        raise ValueError(f"unknown operator {operator!r} of {pde.env_id}; known: {sorted(pde.operators)}")
    residual = {operator: 1.0} if operator else {}
    conditions = {name: condition_weight * pde.condition_weights.get(name, 1.0) for name in pde.conditions}
    chosen = {name: weight for name, weight in {**residual, **conditions, **weights}.items() if weight}
    if not chosen:
        require_part(pde, "operators", "the physics reward", "give another reward (--reward), or the weight of a condition")
    unmeasured = ", ".join(name for name in chosen if name not in pde.constants)
    if form != "plain" and unmeasured:
        instead = f"give --reward-form plain, or state floor and reference of {unmeasured} in `constants` of the class"
        require_part(pde, "solve", f"the {form} form of the reward", instead)
    return chosen
