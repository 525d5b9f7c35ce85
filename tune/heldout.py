"""Best trial and preset, on noise and held-out data that no trial has seen: what a sweep found, without what it chose by luck."""

from dataclasses import asdict
from typing import Any

from pirf_ray.checkpoints import write_json
from pirf_ray.cli import progress_bar
from pirf_ray.evaluation.pages import Table
from pirf_ray.evaluation.run import evaluate_policy
from pirf_ray.runs import load_policy
from tune.directory import Sweep
from tune.goals import Figures, kept
from tune.studies import SweepStudy, best_first

TEST = "test.json"
TEST_SEED = 10_000
"""Added to the runs' seed."""


def compare(sweep: Sweep, study: SweepStudy, *, samples: int) -> dict[str, Any]:
    """Figures of both, each by its own sampler; written to test.json."""
    numbers = {"preset": study.own()[0].number, "best": best_first(study.study)[0].number}
    seed = sweep.config.seed + TEST_SEED
    found: dict[str, Any] = {"samples": samples, "real": sweep.arguments.real, "seed": seed}
    done: dict[int, dict[str, Any]] = {}
    for name, number in numbers.items():
        if number not in done:
            done[number] = _measure(sweep, study, number, samples, seed, name)
        found[name] = done[number]
    write_json(sweep.root / TEST, found)
    return found


def _measure(sweep: Sweep, study: SweepStudy, number: int, samples: int, seed: int, name: str) -> dict[str, Any]:
    info, policy, config = load_policy(sweep.run(number))
    if config is None:
        raise RuntimeError(f"trial {number} has no settings")
    evaluation = evaluate_policy(
        info.pde(),
        policy,
        config.sampler,
        samples=samples,
        real=sweep.arguments.real,
        seed=seed,
        progress=progress_bar(f"testing {name}, trial {number}"),
        rewarded=config.pirf.operator or None,
    )
    figures = Figures.of(evaluation.result)
    inside = kept(figures.constraints(study.goal, study.limits))
    return {"trial": number, "nfe": evaluation.result["sampler"]["nfe"], "inside": inside, "figures": asdict(figures)}


def heldout_table(found: dict[str, Any]) -> Table:
    """Of what ``compare`` found."""
    rows = []
    for name in ("preset", "best"):
        row = found[name]
        f = row["figures"]
        rows.append(
            [
                name,
                str(row["trial"]),
                str(row["nfe"]),
                f"{f['residual']:.4g}",
                f"{f['over_floor']:.3g}" + (" below floor!" if f["below_floor"] else ""),
                f"{f['energy_ratio']:.3f}",
                f"{f['amplitude_ratio']:.3f}",
                f"{f['spectrum_rise']:+.3f}",
                f"{f['resolve']:.4g}",
                "inside" if row["inside"] else "outside",
            ]
        )
    return Table(
        title=f"held-out: {found['samples']} samples, {found['real']} real fields that no trial has seen",
        columns=[
            "",
            "trial",
            "NFE",
            "residual",
            "over floor",
            "energy / base",
            "amplitude / base",
            "spectrum rise",
            "re-solve",
            "limits",
        ],
        rows=rows,
    )
