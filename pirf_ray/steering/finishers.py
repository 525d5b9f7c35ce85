"""Finishers by name: what is done to a finished sample, without the network. A class is made with (settings, pde, operator)."""

import torch

from envs.common.parts import PartRegistry, PartSettings
from envs.numerics.conditions import Condition
from envs.pdes import PDE
from envs.pdes.base import require
from pirf_ray.diffusion.model import Finisher
from pirf_ray.steering.correction import Correction, CorrectionSettings

FINISHERS: PartRegistry[Finisher] = PartRegistry("finisher", Finisher, flag="finish")
"""Finishers by name."""
register = FINISHERS.register


@register("none")
class NoFinisher:
    """Samples stay as the sampler made them."""

    steps = 0

    def __init__(self, settings: PartSettings, pde: PDE, operator: str = "") -> None:
        """Ignore the PDE and the operator."""

    def __call__(self, x: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        """Return x (b, c, h, w)."""
        return x


@register("correct")
class Correct(Correction):
    """Descent on each sample's own residual, no further than to the residual of exact data."""

    Settings = CorrectionSettings

    def __init__(self, settings: CorrectionSettings, pde: PDE, operator: str = "") -> None:
        """Correct by the named operator, by default the PDE's default operator."""
        super().__init__(pde, settings.corrections, operator)


@register("solve")
class Solve:
    """The solver's fields for the inputs of each sample: exact, where the PDE has a solver."""

    steps = 1

    def __init__(self, settings: PartSettings, pde: PDE, operator: str = "") -> None:
        """Solve the PDE; the operator is ignored. ConfigError if the PDE cannot solve from a sample's own inputs."""
        require(pde, "resolve", "--finish solve", "known: correct, none")
        self.pde = pde

    def __call__(self, x: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        """Return the solved samples of x (b, c, h, w), model units, of the type of x. A sample that is not finite stays."""
        solved, usable = x.clone(), x.isfinite().flatten(1).all(1)
        if usable.any():
            normalizer = self.pde.normalizer
            fields = self.pde.resolve(normalizer.to_physical(x[usable].double()))
            solved[usable] = normalizer.to_model(fields).to(x)
        return solved
