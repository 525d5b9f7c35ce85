"""Observations: noisy values of a field at some points, their likelihood, and the likelihood as a reward.

    y = H x + s e,   e ~ N(0, 1),   ln p(y | x) = -|y - H x|^2 / (2 s^2) + constant

``python -m envs.observations FILE`` is the log-likelihood as a program for ``--reward command:...``: it reads batches of fields
from stdin and prints a number per field.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from envs.common.files import FileFormatError, read_json, write_json
from envs.numerics import seeding
from envs.numerics.conditions import Condition
from envs.pdes import PDE, make_pde
from envs.pdes.base import require
from envs.rewards.base import RewardOutput, Scope
from envs.rewards.serving import serve

STREAM = "observations"
"""Stream of simulated truths. No training uses it."""
POINT = ("channel", "row", "column")
"""Meaning of the columns of ``PointObservations.points``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PointObservations:
    """Observed values of one field of a PDE at m grid points, in physical units."""

    pde: PDE
    """The PDE, whose grid has the points."""
    points: torch.Tensor
    """Channel, row and column (m, 3) of each point, integers."""
    values: torch.Tensor
    """Observed values y (m,), float64."""
    std: torch.Tensor
    """Standard deviation s (m,) of the noise of each value, float64, positive."""

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 3 or self.points.is_floating_point():
            raise ValueError(f"points must be integers (m, 3), got {self.points.dtype} {tuple(self.points.shape)}")
        for name, tensor in (("values", self.values), ("std", self.std)):
            if tuple(tensor.shape) != (len(self.points),):
                raise ValueError(f"{name} must have the shape ({len(self.points)},) of the points, got {tuple(tensor.shape)}")
            if not tensor.isfinite().all():
                raise ValueError(f"{name} must be finite, got {float(tensor[~tensor.isfinite()][0])}")
        if not (self.std > 0).all():
            raise ValueError(f"std must be positive, got {float(self.std.min())}")
        outside = ((self.points < 0) | (self.points >= torch.tensor(self.pde.shape))).any(1)
        if outside.any():
            point = dict(zip(POINT, self.points[outside][0].tolist(), strict=True))
            raise ValueError(f"points must be inside the fields {self.pde.shape} of {self.pde.env_id}, got {point}")

    def __len__(self) -> int:
        return len(self.points)

    def H(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the values H x (b, m) of fields x (b, c, h, w) at the points. ValueError if the fields are another PDE's."""
        self.pde.check_fields(fields)
        channels, rows, columns = self.points.to(fields.device).T
        return fields[:, channels, rows, columns]

    def deviations(self, fields: torch.Tensor) -> torch.Tensor:
        """Return (y - H x) / s (b, m), float64, of fields x (b, c, h, w)."""
        return (self.values.to(fields.device) - self.H(fields).double()) / self.std.to(fields.device)

    def log_likelihood(self, fields: torch.Tensor) -> torch.Tensor:
        """Return -|y - H x|^2 / (2 s^2) (b,), summed over the points, without the constant, in the type of the fields."""
        return -0.5 * self.deviations(fields).square().sum(1).to(fields.dtype)

    def save(self, path: Path) -> None:
        """Write the observations to a JSON file, without loss."""
        pde = {"env_id": self.pde.env_id, "resolution": self.pde.resolution, "parameters": self.pde.parameters}
        rows = {name: column.tolist() for name, column in zip(POINT, self.points.T, strict=True)}
        rows["channel"] = [self.pde.channels[index] for index in rows["channel"]]
        write_json(path, {"pde": pde, **rows, "value": self.values.tolist(), "std": self.std.tolist()})

    @classmethod
    def load(cls, path: Path) -> "PointObservations":
        """Read the observations of a JSON file that ``save`` wrote. FileFormatError names the file and what is wrong."""
        data = read_json(path)
        try:
            pde = make_pde(data["pde"]["env_id"], data["pde"]["resolution"], **data["pde"]["parameters"])
            channels = [_channel(pde, name) for name in data["channel"]]
            return cls(
                pde=pde,
                points=torch.tensor([channels, data["row"], data["column"]], dtype=torch.int64).T,
                values=torch.tensor(data["value"], dtype=torch.float64),
                std=torch.tensor(data["std"], dtype=torch.float64),
            )
        except KeyError as error:
            raise FileFormatError(f"{path}: no entry {error}") from None
        except (TypeError, ValueError) as error:
            raise FileFormatError(f"{path}: {error}") from error


class ObservationReward:
    """The log-likelihood of observations as a reward."""

    differentiable = True
    """The reward has a gradient."""
    scope: Scope = "sample"
    """The reward of a sample does not depend on its batch."""

    def __init__(self, observations: PointObservations) -> None:
        self.observations = observations

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        """Return the log-likelihoods (b,) of fields (b, c, h, w).

        The part ``misfit`` is chi-square per point (b,). Its mean over the noise is 1 for the true field.
        """
        chi_square = self.observations.deviations(fields).square().sum(1)
        misfit = (chi_square / len(self.observations)).to(fields.dtype)
        return RewardOutput(reward=-0.5 * chi_square.to(fields.dtype), parts={"misfit": misfit})


def simulate_observations(
    pde: PDE, *, points: int, noise: float, seed: int, channel: str = ""
) -> tuple[PointObservations, torch.Tensor]:
    """Return observations of a solved field, and that field (1, c, h, w), float64.

    The points are drawn without replacement from one channel, or from all channels if ``channel`` is empty. ``noise`` is the
    standard deviation of the noise as a fraction of the standard deviation of the field's channel. ValueError if the channel is
    unknown, if there are fewer points than asked for, or if the noise is not positive.
    """
    channels = [_channel(pde, channel)] if channel else list(range(len(pde.channels)))
    if not noise > 0:
        raise ValueError(f"noise must be positive, got {noise}")
    cells = pde.grid.shape[0] * pde.grid.shape[1]
    if not 1 <= points <= len(channels) * cells:
        raise ValueError(f"points must be in [1, {len(channels) * cells}], got {points}")
    require(pde, "solve", "simulating observations")
    truth = pde.solve(seed, STREAM, [0])
    chosen = seeding.generator(seed, "observed points", 0).choice(len(channels) * cells, size=points, replace=False)
    place, row, column = np.unravel_index(chosen, (len(channels), *pde.grid.shape))
    where = torch.from_numpy(np.stack([np.array(channels)[place], row, column], axis=1))
    std = noise * truth[0].flatten(1).std(1)[where[:, 0]]
    disturbance = std * seeding.normal(seed, "observation noise", [0], (points,))[0]
    values = truth[0, where[:, 0], where[:, 1], where[:, 2]] + disturbance
    return PointObservations(pde=pde, points=where, values=values, std=std), truth


def _channel(pde: PDE, name: str) -> int:
    """Return the index of a channel. ValueError names the known channels."""
    if name not in pde.channels:
        raise ValueError(f"unknown channel {name!r} of {pde.env_id}; known: {', '.join(pde.channels)}")
    return pde.channels.index(name)


def main(arguments: list[str]) -> None:
    """Answer batches of fields on stdin with their log-likelihoods, for the observations of a file."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m envs.observations FILE")
    try:
        observations = PointObservations.load(Path(arguments[0]))
    except FileFormatError as error:
        raise SystemExit(f"error: {error}") from None
    serve(lambda fields: observations.log_likelihood(torch.from_numpy(fields)).numpy())


if __name__ == "__main__":
    main(sys.argv[1:])
