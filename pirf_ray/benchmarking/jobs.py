"""One piece of a benchmark's work, done in one process: a trial, a training, or the evaluation of a trained method."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from envs import seeding
from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from pirf_ray import checkpoints
from pirf_ray.benchmarking.cells import Cell
from pirf_ray.benchmarking.plan import Plan
from pirf_ray.benchmarking.tuning import REFUSED, score
from pirf_ray.evaluation import fidelity
from pirf_ray.evaluation.figures import evaluate_sets
from pirf_ray.learner import TrainingDiverged
from pirf_ray.methods import Follower, Problem, Sampler, Settings, Weights, find_method
from pirf_ray.methods.meter import Cost, Meter

TEST_NOISE, TEST_DATA = "benchmark", "benchmark test"
TRIAL_NOISE, TRIAL_DATA = "benchmark trial", "benchmark validation"
VALIDATION_REAL = 1024
SHOWN = 4
"""Samples of each method that are kept for pictures."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know; it reads the base model itself."""

    kind: Literal["tune", "train", "evaluate"]
    env: str
    method: str
    base: Path
    plan: Plan
    settings: Settings
    seed: int = 0
    trial: int = 0
    num_steps: tuple[int, ...] = ()
    weights: Weights = field(default_factory=dict)
    followers: tuple[str, ...] = ()
    """Methods that end this one's samples in their own way, evaluated beside it."""

    def described(self) -> str:
        """For the progress line."""
        which = {"tune": f"trial {self.trial}", "train": f"seed {self.seed}", "evaluate": f"seed {self.seed}"}[self.kind]
        steps = f", N = {', '.join(map(str, self.num_steps))}" if self.num_steps else ""
        return f"{self.kind} {self.env} {self.method}, {which}{steps}"

    def cell(self, **content: Any) -> Cell:
        return {"kind": self.kind, "env": self.env, "method": self.method, "settings": self.settings} | content


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a job gives back: its cells, and what a training learned or an evaluation shows."""

    cells: list[Cell]
    weights: Weights = field(default_factory=dict)
    shown: dict[str, torch.Tensor] = field(default_factory=dict)


def run_job(job: Job) -> Done:
    """Do the work. A training that diverges is a result, not an error: its cell says so."""
    torch.set_num_threads(job.plan.threads)
    work = {"tune": _tune, "train": _train, "evaluate": _evaluate}[job.kind]
    problem = make_problem(job)
    try:
        return work(job, problem)
    except (TrainingDiverged, FloatingPointError) as error:
        identity = {"trial": job.trial, "score": REFUSED} if job.kind == "tune" else {"seed": job.seed}
        return Done(cells=[job.cell(failed=str(error), cost=vars(Cost()), **identity)])


def make_problem(job: Job) -> Problem:
    info, denoiser = checkpoints.load_denoiser(job.base)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = denoiser.to(device).requires_grad_(False)
    if device.type == "cpu":
        base.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Problem(info=info, base=base, num_steps=job.plan.train_steps)


def _tune(job: Job, problem: Problem) -> Done:
    method = find_method(job.method)
    with Meter() as meter:
        weights = method.train(problem, job.settings, budget=job.plan.trial_budget, seed=job.seed)
    sampler = method.sampler(problem, job.settings, weights)
    fields, sampling = sample(problem, sampler, job.plan, TRIAL_NOISE, 0, job.plan.validation, job.plan.train_steps)
    base_energy = _base_validation(job.base, job.plan)
    real, floor = _validation_data(problem.pde)
    residual = problem.pde.residual(fields.double(), problem.pde.default_operator).mean().item()
    figures = {
        "residual": residual,
        "energy_ratio": fidelity.energy_distance(fields, real) / base_energy,
        "amplitude_ratio": fidelity.amplitude_ratio(fields, real).max().item(),
        "below_floor": residual < floor,
    }
    costs = {"cost": vars(meter.cost), "sampling": vars(sampling.per(job.plan.validation))}
    return Done(cells=[job.cell(trial=job.trial, figures=figures, score=score(figures), **costs)])


def _train(job: Job, problem: Problem) -> Done:
    with Meter() as meter:
        weights = find_method(job.method).train(problem, job.settings, budget=job.plan.budget, seed=job.seed)
    weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    return Done(cells=[job.cell(seed=job.seed, budget=job.plan.budget, cost=vars(meter.cost))], weights=weights)


def _evaluate(job: Job, problem: Problem) -> Done:
    """Every N and follower at once: real data are evaluated beside them only once."""
    plan, pde = job.plan, problem.pde
    made = _test_samples(job, problem)
    truth = _solved(pde, TEST_DATA, job.seed, plan.real + plan.samples)
    real, other = truth[: plan.real], truth[plan.real :]
    names = {pair: f"{pair[0]} {pair[1]}" for pair in made}
    result = evaluate_sets(pde, {name: made[pair][0] for pair, name in names.items()}, real=real, real_other=other)
    training = _training_data(job.base, plan.training)
    shared = {name: result[name] for name in ("operators", "default_operator", "unrewarded_operator", "conditions", "channels")}
    shared |= {"data": {**result["data"], **_nearest(other, training)}, "data_spectra": _spectra(pde, real)}
    cells = [
        job.cell(
            method=method,
            seed=job.seed,
            num_steps=steps,
            nfe=DenoisingProcess(steps).num_evaluations,
            samples=plan.samples,
            real=plan.real,
            figures={**result[names[method, steps]], **_nearest(fields, training)},
            spectra=_spectra(pde, fields),
            cost=vars(cost.per(plan.samples)),
            **shared,
        )
        for (method, steps), (fields, cost) in made.items()
    ]
    shown = {method: fields[:SHOWN] for (method, steps), (fields, _) in made.items() if steps == plan.train_steps}
    return Done(cells=cells, shown={**shown, "data": other[:SHOWN]} if shown else {})


def _test_samples(job: Job, problem: Problem) -> dict[tuple[str, int], tuple[torch.Tensor, Cost]]:
    """Samples (physical units) and their cost by method and N; a follower's cost includes what it follows."""
    plan, normalizer = job.plan, problem.pde.normalizer
    weights = {name: tensor.to(problem.device) for name, tensor in job.weights.items()}
    sampler = find_method(job.method).sampler(problem, job.settings, weights)
    made = {}
    for steps in job.num_steps:
        fields, cost = sample(problem, sampler, plan, TEST_NOISE, job.seed, plan.samples, steps)
        made[job.method, steps] = fields, cost
        for name in job.followers:
            x = normalizer.to_model(fields).to(problem.device)
            with Meter() as meter, torch.no_grad():
                ended = [_follower(name).finish(problem, part).cpu() for part in x.split(plan.batch)]
            made[name, steps] = normalizer.to_physical(torch.cat(ended)), cost + meter.cost
    return made


def _follower(name: str) -> Follower:
    method = find_method(name)
    if not isinstance(method, Follower):
        raise TypeError(f"{name} follows no method")
    return method


def sample(
    problem: Problem, sampler: Sampler, plan: Plan, stream: str, seed: int, count: int, num_steps: int
) -> tuple[torch.Tensor, Cost]:
    """Samples (count, c, h, w), physical units, and what they cost in all. The noise is the same for every method."""
    process, pde = DenoisingProcess(num_steps), problem.pde
    made, cost = [], Cost()
    for ids in seeding.chunks(count, plan.batch):
        noise = seeding.normal(seed, stream, ids, pde.shape).float().to(problem.device)
        with Meter() as meter, torch.no_grad():
            made.append(sampler(process, noise).cpu())
        cost = cost + meter.cost
    return pde.normalizer.to_physical(torch.cat(made).float()), cost


@lru_cache(maxsize=4)
def _solved(pde: PDE, stream: str, seed: int, count: int) -> torch.Tensor:
    return pde.solve(seed, stream, range(count)).float()


@lru_cache(maxsize=4)
def _validation_data(pde: PDE) -> tuple[torch.Tensor, float]:
    """Held-out fields of the trials, and their mean residual."""
    real = _solved(pde, TRIAL_DATA, 0, VALIDATION_REAL)
    return real, pde.residual(real.double(), pde.default_operator).mean().item()


@lru_cache(maxsize=8)
def _base_validation(base: Path, plan: Plan) -> float:
    """Energy distance of the base model on the trials' noise."""
    job = Job(kind="tune", env="", method="base", base=base, plan=plan, settings={})
    problem = make_problem(job)
    sampler = find_method("base").sampler(problem, {}, {})
    fields, _ = sample(problem, sampler, plan, TRIAL_NOISE, 0, plan.validation, plan.train_steps)
    return fidelity.energy_distance(fields, _validation_data(problem.pde)[0])


def _training_data(base: Path, count: int) -> torch.Tensor | None:
    """The first fields that the base model was trained on; None if it does not say which (an imported one)."""
    info, meta = checkpoints.load_meta(base)
    said = meta.get("data")
    return _solved(info.pde(), said["stream"], said["seed"], min(count, said["samples"])) if said else None


def _nearest(fields: torch.Tensor, training: torch.Tensor | None) -> dict[str, float]:
    return {} if training is None else {"fidelity/nearest_training_distance": fidelity.nearest_distance(fields, training)}


def _spectra(pde: PDE, fields: torch.Tensor) -> dict[str, list[list[float]]]:
    """Mean power of each channel by wavenumber, along rows and columns."""
    axes = {"rows": (-2, pde.grid.periodic[0]), "columns": (-1, pde.grid.periodic[1])}
    return {name: fidelity.spectrum(fields, axis, periodic=wraps).tolist() for name, (axis, wraps) in axes.items()}
