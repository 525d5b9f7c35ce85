"""Correction of finished samples: descent on each sample's own residual, no network involved.

    x <- x - a dr/dx,  a = <s, s> / <s, y>,  s = x_i - x_{i-1}, y = g_i - g_{i-1}

After CoCoGen's correction steps (Jacobsen et al. 2024, arXiv 2312.10527), with steps by Barzilai & Borwein (1988) instead of
a fixed size, at most twice Polyak's r / ||g||^2, whose quarter is the first. It ends the small scales, where a residual is
decided; the large ones, which a residual hardly sees, are the learned weights' part. Three rules keep it honest: channels
that the equation takes as given stay as they are, the best iterate of each sample is kept, and none goes under the floor of
exact data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from envs.common.checks import not_negative
from envs.common.parts import PartSettings
from envs.numerics.conditions import Condition
from envs.pdes import PDE
from envs.pdes.base import require
from envs.rewards import calibrated_term
from pirf_ray.steering.residuals import Residual, polyak, residual_gradient, wide


@dataclass(frozen=True, kw_only=True)
class CorrectionSettings(PartSettings):
    """What ends each sample of the tuned model."""

    corrections: int = 0
    """Steps down each finished sample's own residual, after the tuned model's last: no network evaluation, a residual gradient each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "corrections")


FIRST_STEP = 0.25
"""Of Polyak's step, which would end the residual if it were linear in x along its gradient."""
LARGEST_STEP = 2.0
WORSE = 4.0
"""A sample whose residual rises to so many times its best goes back there and on with a tenth of Polyak's step."""
BACK_STEP = 0.1
BISECTIONS = 10


def residual_floor(pde: PDE, operator: str) -> float:
    """Mean residual of exact data under the operator, measured on solver data in float32 (cached)."""
    return calibrated_term(pde, operator).floor


class Correction:
    """The finisher of a PDE's samples by so many steps of its named or default operator."""

    def __init__(self, pde: PDE, steps: int, operator: str = "", residual: Residual | None = None) -> None:
        """``residual``: the residual that is lowered, x (b, c, h, w), model units; default: the operator's."""
        require(pde, "operators", "corrections", "give --corrections 0")
        operator = operator or pde.default_operator
        self.steps, self.given = steps, pde.input_channels
        self.floor = residual_floor(pde, operator)
        self.residual = residual or (lambda x: pde.residual(pde.normalizer.to_physical(x), operator))

    def __call__(self, x: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        """Return the corrected samples of x (b, c, h, w), model units."""
        return correct(x, self.residual, steps=self.steps, floor=self.floor, given=self.given)


def correct(x: torch.Tensor, residual: Residual, *, steps: int, floor: float, given: Sequence[int] = ()) -> torch.Tensor:
    """Samples (b, c, h, w) whose residual is the lowest of ``steps`` iterates, at or above ``floor``; ``given`` channels stay.

    A sample that starts under the floor stays as it is, as does one whose residual is not finite. Each step is one gradient
    of the residual. No sample's result depends on another's.
    """
    if steps < 0:
        raise ValueError(f"corrections must not be negative, got {steps}")
    if steps == 0 or not len(x):
        return x
    gradient, r = _gradient(x, residual, given)
    best, best_gradient, best_r = x, gradient, r
    resting = ~(r > floor)  # nan too
    step = FIRST_STEP * polyak(r, gradient)
    for _ in range(steps - 1):
        moved = torch.where(wide(resting), x, x - wide(step) * gradient)
        new_gradient, new_r = _gradient(moved, residual, given)
        best, best_gradient, best_r, resting = _keep_best(
            (best, best_gradient, best_r, resting), (moved, new_gradient, new_r), residual, floor
        )
        back = ~(new_r <= WORSE * best_r)
        step = torch.where(
            back, BACK_STEP * polyak(best_r, best_gradient), _step(moved - x, new_gradient - gradient, new_gradient, new_r)
        )
        x, gradient = torch.where(wide(back), best, moved), torch.where(wide(back), best_gradient, new_gradient)
    moved = torch.where(wide(resting), x, x - wide(step) * gradient)
    with torch.no_grad():
        last = residual(moved)
    return _keep_best((best, best_gradient, best_r, resting), (moved, gradient, last), residual, floor)[0]


Kept = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _keep_best(kept: Kept, new: tuple[torch.Tensor, torch.Tensor, torch.Tensor], residual: Residual, floor: float) -> Kept:
    """(x, gradient, residual, resting) of each sample's best iterate; one that would go under the floor rests on it."""
    best, best_gradient, best_r, resting = kept
    moved, gradient, r = new
    under = ~resting & (r < floor)
    better = ~resting & ~under & (r < best_r)
    best = torch.where(wide(better), moved, best)
    best_gradient, best_r = torch.where(wide(better), gradient, best_gradient), torch.where(better, r, best_r)
    if under.any():
        landed, landed_r = _land(best[under], moved[under], residual, floor, best_r[under])
        best, best_r = best.index_put((under,), landed), best_r.index_put((under,), landed_r)
    return best, best_gradient, best_r, resting | under


@torch.no_grad()
def _land(
    above: torch.Tensor, below: torch.Tensor, residual: Residual, floor: float, above_r: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last point on the way from ``above`` to ``below`` whose residual is not under the floor, by bisection."""
    low = torch.zeros_like(above_r)
    high, low_r = torch.ones_like(low), above_r
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        r = residual(torch.lerp(above, below, wide(middle)))
        allowed = r >= floor
        low, high, low_r = torch.where(allowed, middle, low), torch.where(allowed, high, middle), torch.where(allowed, r, low_r)
    return torch.lerp(above, below, wide(low)), low_r


def _gradient(x: torch.Tensor, residual: Residual, given: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    gradient, r = residual_gradient(residual, x)
    gradient[:, list(given)] = 0
    return gradient, r


def _step(s: torch.Tensor, y: torch.Tensor, gradient: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Barzilai & Borwein's step (b,), at most twice Polyak's; where the curvature is not positive, the first step's part of it."""
    curvature, size = (s * y).flatten(1).sum(1), polyak(r, gradient)
    borwein = s.flatten(1).square().sum(1) / curvature.clamp_min(torch.finfo(s.dtype).tiny)
    return torch.where(curvature > 0, torch.minimum(borwein, LARGEST_STEP * size), FIRST_STEP * size)
