"""``python -m pirf_ray.summary RUN ...``: finished runs side by side, as a Markdown table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pirf_ray.checkpoints import read_json
from pirf_ray.cli import parse, run_command
from pirf_ray.config import RunPaths

COLUMNS = (
    "PDE",
    "NFE",
    "`consistent` residual: base → tuned (floor)",
    "ratio",
    "as white noise, % of std: base → tuned",
    "witness: base → tuned (real data)",
    "conditions",
    "re-solve error: base → tuned (real data)",
    "amplitude over real data's: base → tuned",
    "energy distance, tuned / base",
    "log spectrum error, decades: base → tuned (real data)",
)


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
    """One run's cells; arrows lead from base to tuned, real data stand in brackets."""
    operator, witness = result["rewarded_operator"], result["unrewarded_operator"]
    base, tuned = result["base"], result["tuned"]

    def change(key: str) -> str:
        return f"{base[key]:.3g} → {tuned[key]:.3g} ({result['data'][key]:.2g})"

    conditions = [
        f"{name} {base[f'condition/{name}/mean']:.2g} → {tuned[f'condition/{name}/mean']:.2g}" for name in result["conditions"]
    ]
    key, noise = f"residual/{operator}/mean", f"residual/{operator}/noise_equivalent"
    floor = " below floor!" if tuned[f"residual/{operator}/below_floor"] else ""
    return [
        f"{result['env_id'].removesuffix('-v0')} {result['resolution']}²",
        str(result["sampler"]["nfe"]),
        change(key) + floor,
        f"1/{base[key] / tuned[key]:.3g}",
        f"{100 * base[noise]:.2g} → {100 * tuned[noise]:.2g}",
        f"{witness}: {change(f'residual/{witness}/mean')}",
        ", ".join(conditions) or "none",
        change("resolve/median"),
        f"{base['fidelity/amplitude_ratio']:.3f} → {tuned['fidelity/amplitude_ratio']:.3f}",
        f"{tuned['fidelity/energy_distance'] / base['fidelity/energy_distance']:.3f}",
        change("fidelity/log_spectrum_error"),
    ]


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    run_command(main)
