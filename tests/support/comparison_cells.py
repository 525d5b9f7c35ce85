"""A benchmark for tests: made-up cells whose metrics are known, a made-up method, and jobs that run in this process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs.common.parts import PartSettings
from envs.common.search import Range
from envs.numerics.conditions import Condition
from envs.rewards.base import Reward
from pirf_ray.comparison.cells import Cell, EvaluationCell, PDENames, Spectra, TrainingCell, TrialCell, TrialMetrics
from pirf_ray.comparison.chains import Chain
from pirf_ray.comparison.directory import BenchmarkDirectory
from pirf_ray.comparison.jobs import Job, JobResult, run_job
from pirf_ray.comparison.plan import EvaluationGrid, Plan, small, smoke
from pirf_ray.comparison.summaries import Header
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.learner import TrainingDiverged
from pirf_ray.learning.losses import Batch, Loss
from pirf_ray.learning.objectives import OBJECTIVES, Objective
from pirf_ray.learning.parameters import PARAMETERS, Group
from pirf_ray.methods import METHODS, Recipe
from pirf_ray.metrics.cost import Cost
from pirf_ray.metrics.results import Estimate, FidelityMetrics, ResidualMetrics, SetMetrics
from registries import restored
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

PLAN = replace(
    smoke(),
    resolution=RESOLUTION,
    samples=4,
    real=8,
    training=8,
    validation=4,
    train_steps=3,
    trials=3,
    trial_budget=6,
    budget=8,
)
"""Sizes of seconds. An update of the tilt costs 2, so a trial has 3 updates and a training 4."""
GRID = EvaluationGrid(num_steps=(2, 3), repeated=("tilt",), repeated_steps=(3,), seeds=2)
TOO_STEEP = 0.25
"""Learning rate with which the training of the tilt diverges."""
TILT = Recipe(
    name="tilt",
    title="tilt",
    paper="the tests",
    settings={
        "objective": "tilt",
        "maker": "data",
        "data_fields": 2,
        "parameters": "tilt",
        "regularizers": (),
        "scope": "all",
        "strategy": "fresh",
        "batch": 2,
        "micro_batch": 2,
        "chunk": 2,
        "workers": 1,
        "ema_decay": 0.0,
        "guard": "off",
        "learning_rate": 0.5,
    },
    search={"learning_rate": Range(0.05, 1.0, log=False)},
)
"""A method that learns one number, which is added to the base model's predictions: next to no work.

Adam's steps on a constant slope are the learning rate. So the number is the rate times the updates, negative for seed 1.
"""


class Tilted(AbstractDenoiser):
    """A denoiser whose predictions are shifted by a hundredth of a learned number."""

    def __init__(self, inner: AbstractDenoiser) -> None:
        super().__init__()
        self.inner, self.sigma_data = inner.requires_grad_(False), inner.sigma_data
        self.shift = torch.nn.Parameter(torch.zeros(1))

    def tensors(self) -> dict[str, torch.nn.Parameter]:
        return {"shift": self.shift}

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None) -> torch.Tensor:
        return self.inner(x, sigma) + 0.01 * self.shift


class TiltParameters:
    """The learned number alone."""

    def __init__(self, settings: PartSettings) -> None: ...

    def attach(self, denoiser: AbstractDenoiser) -> tuple[AbstractDenoiser, list[Group]]:
        tilted = Tilted(denoiser)
        return tilted, [Group(parameters=tilted.tensors())]


class TiltObjective(Objective):
    """Raises the learned number with seed 0, lowers it with seed 1."""

    makers, behaviour, needs_gradient = ("data",), "base", False

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        with torch.no_grad():
            policies.base.base(batch.rollouts.x, 1.0)
        shift = policies.tuned.tuned.tensors()["shift"].sum()
        return Loss(value=-shift if batch.key[0] == 0 else shift)

    def cost(self, batch: Batch) -> Cost:
        return Cost(network_forwards=len(batch))

    def advance(self, policies: Policies, update: int) -> None:
        if update == 1 and abs(policies.tuned.tuned.tensors()["shift"].abs().item() - TOO_STEEP) < 1e-6:
            raise TrainingDiverged("too steep")


def register_tilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the made-up method and its parts until the test ends."""
    for registry in (OBJECTIVES, PARAMETERS, METHODS):
        restored(registry, monkeypatch)
    OBJECTIVES.register("tilt")(TiltObjective)
    PARAMETERS.register("tilt")(TiltParameters)
    METHODS.add("tilt", TILT, owner=__name__)


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
