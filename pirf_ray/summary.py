"""``python -m pirf_ray.summary RUN ...``: finished runs side by side, as a Markdown table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pirf_ray.checkpoints import read_json
from pirf_ray.cli import parse, run_command
from pirf_ray.config import RunPaths
from pirf_ray.rollout import BASE_CORRECTED

COLUMNS = (
    "PDE",
    "NFE",
    "`consistent` residual (floor)",
    "ratio",
    "as white noise, % of std",
    "witness (real data)",
    "conditions",
    "re-solve error (real data)",
    "amplitude over real data's",
    "energy distance, tuned / base",
    "log spectrum error, decades (real data)",
)
LEGEND = "Arrows lead from the base model, by its samples with the same corrections where there are any, to the tuned model."


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Print base and tuned figures of finished runs (result.json), or of evaluations (``evaluate --out FILE``), one a line."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories or result files."""


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.summary", description=Arguments.__doc__)
    if not arguments.runs:
        raise ValueError("give at least one run directory or result file")
    results = [read_result(path) for path in arguments.runs]
    print(LEGEND + "\n")
    print("\n".join([_line(COLUMNS), _line(["---"] * len(COLUMNS)), *(_line(row(result)) for result in results)]))


def read_result(path: Path) -> dict[str, Any]:
    """The figures of a run or of a result file; ValueError if they hold no tuned model."""
    file = RunPaths(root=path).result if path.is_dir() else path
    result = read_json(file)
    missing = [name for name in ("base", "tuned", "data") if name not in result]
    if missing:
        raise ValueError(f"{file}: holds no figures of {', '.join(missing)}")
    return result


def row(result: dict[str, Any]) -> list[str]:
    """One run's cells; arrows lead through the sets in the legend's order, real data stand in brackets."""
    operator, witness = result["rewarded_operator"], result["unrewarded_operator"]
    shown = [result[name] for name in ("base", BASE_CORRECTED, "tuned") if name in result]
    base, tuned = result["base"], result["tuned"]

    def arrows(key: str, digits: str = ".3g", factor: float = 1) -> str:
        return " → ".join(f"{factor * figures[key]:{digits}}" for figures in shown)

    def beside_real(key: str) -> str:
        return f"{arrows(key)} ({result['data'][key]:.2g})"

    key = f"residual/{operator}/mean"
    floor = " below floor!" if tuned[f"residual/{operator}/below_floor"] else ""
    return [
        f"{result['env_id'].removesuffix('-v0')} {result['resolution']}²",
        str(result["sampler"]["nfe"]),
        beside_real(key) + floor,
        f"1/{base[key] / tuned[key]:.3g}",
        arrows(f"residual/{operator}/noise_equivalent", ".2g", 100),
        f"{witness}: {beside_real(f'residual/{witness}/mean')}",
        ", ".join(f"{name} {arrows(f'condition/{name}/mean', '.2g')}" for name in result["conditions"]) or "none",
        beside_real("resolve/median"),
        arrows("fidelity/amplitude_ratio", ".3f"),
        f"{tuned['fidelity/energy_distance'] / base['fidelity/energy_distance']:.3f}",
        beside_real("fidelity/log_spectrum_error"),
    ]


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    run_command(main)
