"""The shipped table of floors and references, ``constants.json``: printed, measured anew and compared.

    python -m envs.rewards.constants                                  print the table
    python -m envs.rewards.constants --write Burgers-v0:32            measure these grids anew and write them, else all grids
    python -m envs.rewards.constants --check Burgers-v0:32            measure these grids anew and compare, else all grids

The table holds the grids of the presets, with the reference noises of the presets. Kolmogorov flow on 128 x 128 points takes
minutes. The default grid of Kolmogorov flow, 256 x 256, is not shipped: its first reward on a machine measures the constants.
"""

import argparse
from dataclasses import dataclass, field
from typing import Any

from envs.common.files import write_json
from envs.pdes import PDE, make_pde
from envs.rewards.calibration import SAMPLES, TABLE, VERSION, Constants, measured, read_table, table_key, violations

NOISES = (3e-4, 1e-4, 3e-5)
"""Reference noises of the fine-tuning presets, model units. The first is the default."""
ROUNDING = 0.02
"""Tolerated difference between processors, relative to the reference."""
CHAOS = 1.1
"""Tolerated difference of a chaotic flow, whose data on another processor are other draws of the same law.

The mean over 8 trajectories of Kolmogorov flow at Re 40 has a standard error of 15 %. Five of them in both means are 1.1.
"""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A PDE on a grid of the shipped table."""

    env_id: str
    resolution: int
    parameters: dict[str, float] = field(default_factory=dict)
    tolerance: float = ROUNDING
    """Tolerated difference of a new measurement, relative to the reference."""

    @property
    def name(self) -> str:
        """Name on the command line."""
        return f"{self.env_id}:{self.resolution}"

    def pde(self) -> PDE:
        """Return the PDE on this grid."""
        return make_pde(self.env_id, self.resolution, **self.parameters)


SHIPPED = (
    *(Grid(env_id=f"{name}-v0", resolution=n) for n in (32, 128) for name in ("Burgers", "Darcy", "Helmholtz", "Poisson")),
    Grid(env_id="Kolmogorov-v0", resolution=32, parameters={"reynolds": 40.0}, tolerance=CHAOS),
    Grid(env_id="Kolmogorov-v0", resolution=128, tolerance=CHAOS),
)
"""The shipped models' grids and parameters, and the paper preset's grids, which are the default grids of four PDEs."""
Terms = dict[str, dict[str, Any]]
"""Entry of a grid: term name -> floor, and references by noise."""


def measure(grid: Grid) -> Terms:
    """Return the entry of a grid, measured now."""
    pde, entry = grid.pde(), {}
    for name, violation in violations(pde).items():
        found = {repr(noise): measured(pde, name, violation, noise) for noise in NOISES}
        entry[name] = {
            "floor": next(iter(found.values())).floor,
            "references": {noise: constants.reference for noise, constants in found.items()},
        }
    return entry


def rows(entry: Terms) -> dict[tuple[str, str], Constants]:
    """Return the constants of an entry by term and noise."""
    return {
        (name, noise): Constants(term["floor"], reference)
        for name, term in entry.items()
        for noise, reference in term["references"].items()
    }


def differences(old: Terms, new: Terms) -> dict[tuple[str, str], float]:
    """Return the largest difference of floor and reference, relative to the old reference, by term and noise."""
    before, now = rows(old), rows(new)
    if before.keys() != now.keys():
        raise ValueError(f"the table has the terms {sorted(before)}, and the PDE has {sorted(now)}")
    return {
        key: max(abs(a - b) for a, b in zip(before[key], now[key], strict=True)) / (before[key].reference or 1.0)
        for key in before
    }


def write(grids: list[Grid]) -> None:
    """Measure the grids, and write their entries into the table, one after another."""
    for grid in grids:
        entry = measure(grid)
        write_json(TABLE, {"version": VERSION, "samples": SAMPLES, "constants": {**read_table(), table_key(grid.pde()): entry}})
        print(f"{grid.name}: written")


def check(grids: list[Grid]) -> bool:
    """Measure the grids, print their largest differences from the table, and return whether all are within tolerance."""
    good, entries = True, read_table()
    for grid in grids:
        found = differences(entries.get(table_key(grid.pde()), {}), measure(grid))
        (name, noise), largest = max(found.items(), key=lambda item: item[1])
        good &= largest <= grid.tolerance
        print(f"{grid.name}: {largest:.2g} of the reference ({name}, noise {noise}), tolerance {grid.tolerance:g}")
    return good


def main(words: list[str] | None = None) -> int:
    """Run the command. Return 1 if a check finds a difference, else 0."""
    known = {grid.name: grid for grid in SHIPPED}
    parser = argparse.ArgumentParser(prog="python -m envs.rewards.constants", description=(__doc__ or "").partition("\n")[0])
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="measure, and write the table")
    action.add_argument("--check", action="store_true", help="measure, and compare with the table")
    parser.add_argument("grids", nargs="*", help=f"grids, by default all: {', '.join(known)}")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.grids if name not in known]
    if unknown:
        parser.error(f"unknown grid {', '.join(unknown)}; known: {', '.join(known)}")
    chosen = [known[name] for name in arguments.grids or known]
    if arguments.write:
        write(chosen)
    elif arguments.check:
        return 0 if check(chosen) else 1
    else:
        _print(chosen)
    return 0


def _print(grids: list[Grid]) -> None:
    entries = read_table()
    for grid in grids:
        for (name, noise), found in rows(entries.get(table_key(grid.pde()), {})).items():
            print(f"{grid.name:18} {name:18} noise {noise:7} floor {found.floor:.3e}  reference {found.reference:.3e}")


if __name__ == "__main__":
    raise SystemExit(main())
