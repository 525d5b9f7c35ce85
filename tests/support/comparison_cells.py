"""A benchmark for tests: made-up cells whose metrics are known, a made-up method, and jobs that run in this process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from envs.common.search import Range, Spec
from pirf_ray.comparison.cells import Cell, EvaluationCell, PDENames, Spectra, TrainingCell, TrialCell, TrialMetrics
from pirf_ray.comparison.chains import Chain
from pirf_ray.comparison.directory import BenchmarkDirectory
from pirf_ray.comparison.jobs import Job, JobResult, run_job
from pirf_ray.comparison.plan import EvaluationGrid, Plan, small, smoke
from pirf_ray.comparison.summaries import Header
from pirf_ray.diffusion.sampling import Sampler
from pirf_ray.learning.learner import TrainingDiverged
from pirf_ray.methods import METHODS, Method, Problem, Settings, Weights
from pirf_ray.metrics.cost import Cost
from pirf_ray.metrics.results import Estimate, FidelityMetrics, ResidualMetrics, SetMetrics
from tiny_models import RESOLUTION

# --- made-up cells ---

NAMES = {
    env: PDENames(
        operators=["consistent", "simpson", "paper"],
        default_operator="consistent",
        unrewarded_operator="simpson",
        conditions=["wall"],
        channels=channels,
    )
    for env, channels in {"Burgers-v0": ["u"], "Poisson-v0": ["f", "phi"]}.items()
}
FLOOR = 1e-5


def estimate(mean: float, median: float) -> Estimate:
    """Return an estimate with intervals from half to twice each number."""
    return Estimate(mean=mean, median=median, mean_interval=(mean / 2, mean * 2), median_interval=(median / 2, median * 2))


def set_metrics(residual: float, energy: float, *, below_floor: bool = False, channels: Sequence[str] = ("u",)) -> SetMetrics:
    """Return a set's metrics: each operator's residual, and the energy distance."""
    residuals = ResidualMetrics(
        **vars(estimate(residual, residual / 2)), over_floor=residual / FLOOR, below_floor=below_floor, noise_equivalent=0.1
    )
    return SetMetrics(
        num_samples=8,
        num_nonfinite=0,
        residuals=dict.fromkeys(("consistent", "simpson", "paper"), residuals),
        conditions={"wall": estimate(0.01, 0.005)},
        resolve=estimate(0.2, residual**0.5),
        resolve_trivial=0.9,
        fidelity=FidelityMetrics(
            energy_distance=energy,
            energy_distance_unbiased=1.0,
            energy_distance_same_law=0.08,
            energy_distance_ratio_to_data=1.09,
            marginal_energy_distance=1.01,
            log_spectrum_error=1.02,
            mean_field_error=1.03,
            std_field_error=1.04,
            diversity_ratio=1.05,
            nearest_distance=1.06,
            nearest_training_distance=0.7,
            amplitude_ratio=1.07,
            high_wavenumber_ratio=1.08,
            amplitude_ratios=dict.fromkeys(channels, 1.07),
            high_wavenumber_ratios=dict.fromkeys(channels, 1.08),
        ),
    )


def spectra(channels: Sequence[str], level: float = 1.0) -> Spectra:
    """Return spectra that fall with the wavenumber."""
    power = [[level / (1 + k) ** 3 for k in range(17)] for _ in channels]
    return Spectra(rows=power, columns=power)


def evaluated(
    env: str, method: str, num_steps: int, seed: int, residual: float, energy: float, *, below_floor: bool = False
) -> EvaluationCell:
    """Return the cell of an evaluation."""
    channels = NAMES[env].channels
    return EvaluationCell(
        env=env,
        method=method,
        settings={},
        num_steps=num_steps,
        seed=seed,
        nfe=2 * num_steps - 1,
        samples=8,
        real=64,
        names=NAMES[env],
        metrics=set_metrics(residual, energy, below_floor=below_floor, channels=channels),
        data=set_metrics(FLOOR, 0.09, channels=channels),
        spectra=spectra(channels, 1 + residual),
        data_spectra=spectra(channels),
        cost=Cost(network_forwards=2 * num_steps - 1, residual_gradients=20, seconds=0.25),
    )


def trained(env: str, method: str, seed: int = 0, *, failed: str = "") -> TrainingCell:
    """Return the cell of a training."""
    return TrainingCell(
        env=env,
        method=method,
        settings={"learning_rate": 1e-4},
        seed=seed,
        budget=None if failed else 2000,
        cost=Cost(network_forwards=1000, network_gradients=500, seconds=60.0),
        failed=failed,
    )


def tried(env: str, method: str, trial: int, residual: float, energy_ratio: float) -> TrialCell:
    """Return the cell of a trial."""
    return TrialCell(
        env=env,
        method=method,
        settings={},
        trial=trial,
        score=0.0,
        metrics=TrialMetrics(residual=residual, energy_ratio=energy_ratio, amplitude_ratio=1.0, below_floor=False),
        cost=trained(env, method).cost,
    )


def header(envs: Sequence[str], methods: Sequence[str], num_steps: Sequence[int] = (10, 20)) -> Header:
    """Return the header of a benchmark of the small plan."""
    return Header(
        command="python -m pirf_ray.benchmark",
        date="2026-11-25",
        machine="2 CPU cores",
        versions={"pirf_ray": "0.1.0"},
        plan=small(),
        envs=list(envs),
        methods=list(methods),
        num_steps=list(num_steps),
        parameters={},
        seeds=dict.fromkeys(methods, 1),
    )


# --- jobs in this process ---

PLAN = replace(smoke(), resolution=RESOLUTION, samples=4, real=8, training=8, validation=4, train_steps=3, trials=3)
GRID = EvaluationGrid(num_steps=(2, 3), repeated=("tilt",), repeated_steps=(3,), seeds=2)
TOO_STEEP = 0.25
"""Setting of the tilt with which its training diverges."""


class Tilt(Method):
    """A method that adds a learned number to the base model's samples: known metrics for next to no work."""

    name, title, source, trains = "tilt", "tilt", "the tests", True

    def defaults(self, problem: Problem) -> Settings:
        return {"shift": 0.5}

    def search(self, problem: Problem) -> Mapping[str, Spec]:
        return {"shift": Range(0.0, 1.0, log=False)}

    def train(self, problem: Problem, settings: Settings, *, budget: float, seed: int) -> Weights:
        if settings["shift"] == TOO_STEEP:
            raise TrainingDiverged("too steep")
        return {"shift": torch.tensor([settings["shift"] + seed])}

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        return lambda process, noise: METHODS["base"].sampler(problem, {}, {})(process, noise) + weights["shift"]


@contextmanager
def benchmark_at(path: Path, plan: Plan = PLAN) -> Iterator[BenchmarkDirectory]:
    """Open and lock the benchmark below a path."""
    directory = BenchmarkDirectory.open(path / "benchmark", plan)
    with directory.locked():
        yield directory


def drive(chain: Chain, stop_after: int | None = None) -> list[Job]:
    """Run each job of a chain here, as Ray would; with ``stop_after`` die before the next job's result is sent."""
    jobs: list[Job] = []
    result: JobResult | None = None
    while True:
        try:
            job = chain.send(result)  # type: ignore[arg-type]
        except StopIteration:
            return jobs
        if len(jobs) == stop_after:
            return jobs
        jobs.append(job)
        result = run_job(job)


def without_seconds(cells: Sequence[Cell]) -> list[dict]:
    """Return the cells' JSON without what they cost."""
    return [{name: value for name, value in cell.to_json().items() if name not in ("cost", "sampling")} for cell in cells]
