"""One piece of a benchmark's work, done in one process: a trial, a training, or the evaluation of a trained method."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from envs.pdes import PDE
from pirf_ray.comparison.cells import Cell, EvaluationCell, PDENames, Spectra, TrainingCell, TrialCell, TrialMetrics
from pirf_ray.comparison.plan import Plan
from pirf_ray.comparison.tuning import REFUSED, score
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.model import TUNED, Model
from pirf_ray.diffusion.policy import Policy
from pirf_ray.learning.learner import TrainingDiverged
from pirf_ray.methods import Problem, Settings, Weights, find_method, running
from pirf_ray.metrics import distances, spectra, statistics
from pirf_ray.metrics.cost import Cost, Meter
from pirf_ray.metrics.evaluation import evaluate_sets
from pirf_ray.metrics.results import DATA, EvaluationResult, SetMetrics

TEST_NOISE, TEST_DATA = "benchmark", "benchmark test"
TRIAL_NOISE, TRIAL_DATA = "benchmark trial", "benchmark validation"
VALIDATION_REAL = 1024
SHOWN = 4
"""Samples of each method that are kept for plots."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know; it reads the base model itself."""

    kind: Literal["tune", "train", "evaluate"]
    env: str
    """The PDE."""
    method: str
    """Name of the method."""
    base: Path
    """Checkpoint of the base model."""
    plan: Plan
    settings: Settings
    """Settings of the method."""
    device: str
    """Device that the job computes on."""
    seed: int = 0
    """Seed of a training or an evaluation."""
    trial: int = 0
    """Number of a trial."""
    num_steps: tuple[int, ...] = ()
    """N at which the method is evaluated."""
    weights: Weights = field(default_factory=dict)
    """What the method has learned."""
    finished: tuple[str, ...] = ()
    """Methods that finish this method's samples, evaluated beside it."""

    def described(self) -> str:
        """Return the job's description for the progress line."""
        which = {"tune": f"trial {self.trial}", "train": f"seed {self.seed}", "evaluate": f"seed {self.seed}"}[self.kind]
        steps = f", N = {', '.join(map(str, self.num_steps))}" if self.num_steps else ""
        return f"{self.kind} {self.env} {self.method}, {which}{steps}"

    @property
    def identity(self) -> dict[str, Any]:
        """Return what the job's cells say of it."""
        return {"env": self.env, "method": self.method, "settings": self.settings}


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a job gives back."""

    cells: Sequence[Cell]
    """Finished cells."""
    weights: Weights = field(default_factory=dict)
    """What a training has learned."""
    shown: dict[str, torch.Tensor] = field(default_factory=dict)
    """A few samples of an evaluation by method, physical units."""


def run_job(job: Job) -> JobResult:
    """Do the work. A training that diverges is a result, not an error: its cell names the failure."""
    torch.set_num_threads(job.plan.threads)
    problem = make_problem(job)
    if job.kind == "evaluate":
        return _evaluate(job, problem)
    try:
        return _tune(job, problem) if job.kind == "tune" else _train(job, problem)
    except (TrainingDiverged, FloatingPointError) as error:
        return JobResult(cells=[_failed(job, str(error))])


def _failed(job: Job, why: str) -> Cell:
    if job.kind == "tune":
        return TrialCell(**job.identity, trial=job.trial, score=REFUSED, cost=Cost(), failed=why)
    return TrainingCell(**job.identity, seed=job.seed, cost=Cost(), failed=why)


def make_problem(job: Job) -> Problem:
    """Return the problem that the job's method is given, on the job's device."""
    info, denoiser = checkpoints.load_denoiser(job.base)
    base = denoiser.to(torch.device(job.device)).requires_grad_(False)
    if job.device == "cpu":
        base.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Problem(info=info, base=base, num_steps=job.plan.train_steps)


def method_model(problem: Problem, method: str, settings: Settings, weights: Weights) -> Model:
    """Return a method with what it has learned as a model, whose steps are those that methods train for."""
    recipe = find_method(method)
    return Model(
        info=problem.info,
        policy=Policy(problem.base, tuned=problem.base),
        sampler=running.config_of(recipe, problem, settings).sampler,
        own_sampler=running.sampler(recipe, problem, settings, weights),
    )


def sample(model: Model, *, count: int, seed: int, stream: str, batch: int) -> tuple[torch.Tensor, Cost]:
    """Return samples (count, c, h, w), physical units, and their cost in all. The noise is the same for every method."""
    with Meter() as meter:
        fields = model.sample(range(count), seed=seed, stream=stream, groups=(TUNED,), batch=batch)[TUNED]
    return fields, meter.cost


# --- trials and trainings ---


def _tune(job: Job, problem: Problem) -> JobResult:
    plan = job.plan
    with Meter() as meter:
        weights = running.train(find_method(job.method), problem, job.settings, budget=plan.trial_budget, seed=job.seed)
    fields, sampling = _validation_samples(method_model(problem, job.method, job.settings, weights), plan)
    metrics = _trial_metrics(problem.pde, fields, _base_validation(job.base, plan, job.device))
    cell = TrialCell(
        **job.identity,
        trial=job.trial,
        metrics=metrics,
        score=score(metrics),
        cost=meter.cost,
        sampling=sampling.per(plan.validation),
    )
    return JobResult(cells=[cell])


def _trial_metrics(pde: PDE, fields: torch.Tensor, base_energy: float) -> TrialMetrics:
    """Measure validation samples (n, c, h, w). ``base_energy``: energy distance of the base model's samples."""
    real, floor = _validation_data(pde)
    residual = pde.residual(fields.double(), pde.default_operator).mean().item()
    return TrialMetrics(
        residual=residual,
        energy_ratio=distances.energy_distance(fields, real) / base_energy,
        amplitude_ratio=statistics.amplitude_ratio(fields, real).max().item(),
        below_floor=residual < floor,
    )


def _validation_samples(model: Model, plan: Plan) -> tuple[torch.Tensor, Cost]:
    return sample(model, count=plan.validation, seed=0, stream=TRIAL_NOISE, batch=plan.batch)


@lru_cache(maxsize=8)
def _base_validation(base: Path, plan: Plan, device: str) -> float:
    """Return the energy distance of the base model on the trials' noise."""
    problem = make_problem(Job(kind="tune", env="", method="base", base=base, plan=plan, settings={}, device=device))
    fields, _ = _validation_samples(method_model(problem, "base", {}, {}), plan)
    return distances.energy_distance(fields, _validation_data(problem.pde)[0])


def _train(job: Job, problem: Problem) -> JobResult:
    with Meter() as meter:
        weights = running.train(find_method(job.method), problem, job.settings, budget=job.plan.budget, seed=job.seed)
    weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    cell = TrainingCell(**job.identity, seed=job.seed, budget=job.plan.budget, cost=meter.cost)
    return JobResult(cells=[cell], weights=weights)


# --- evaluations ---


@dataclass(frozen=True, kw_only=True)
class MadeSamples:
    """Samples of one method at one N."""

    method: str
    num_steps: int
    fields: torch.Tensor
    """(n, c, h, w), physical units."""
    cost: Cost
    """Cost in all; of a finished method with the samples that it finishes."""
    nfe: int
    """Network evaluations per sample of the plain sampler."""

    @property
    def name(self) -> str:
        """Return the name of the set."""
        return f"{self.method} {self.num_steps}"


def _evaluate(job: Job, problem: Problem) -> JobResult:
    """Evaluate every N and finished method at once, so that real data are measured beside them only once."""
    plan, pde = job.plan, problem.pde
    made = _test_samples(job, problem)
    truth = _solved(pde, TEST_DATA, job.seed, plan.real + plan.samples)
    real, other = truth[: plan.real], truth[plan.real :]
    result = evaluate_sets(pde, {m.name: m.fields for m in made}, real=real, real_other=other)
    training = _training_data(job.base, plan.training)
    names, data, data_spectra = _names(result), _with_nearest(result.data, other, training), _spectra(pde, real)
    cells = [
        EvaluationCell(
            **{**job.identity, "method": m.method},
            seed=job.seed,
            num_steps=m.num_steps,
            nfe=m.nfe,
            samples=plan.samples,
            real=plan.real,
            names=names,
            metrics=_with_nearest(result[m.name], m.fields, training),
            data=data,
            spectra=_spectra(pde, m.fields),
            data_spectra=data_spectra,
            cost=m.cost.per(plan.samples),
        )
        for m in made
    ]
    shown = {m.method: m.fields[:SHOWN] for m in made if m.num_steps == plan.train_steps}
    return JobResult(cells=cells, shown={**shown, DATA: other[:SHOWN]} if shown else {})


def _test_samples(job: Job, problem: Problem) -> list[MadeSamples]:
    """Return the samples of the method, and of each method that finishes them, at every N."""
    plan, made = job.plan, []
    model = method_model(problem, job.method, job.settings, job.weights)
    for num_steps in job.num_steps:
        stepped = replace(model, sampler=replace(model.sampler, num_steps=num_steps))
        fields, cost = sample(stepped, count=plan.samples, seed=job.seed, stream=TEST_NOISE, batch=plan.batch)
        which = {"num_steps": num_steps, "nfe": stepped.process.num_evaluations}
        made.append(MadeSamples(method=job.method, fields=fields, cost=cost, **which))
        for name in job.finished:
            ended, more = _finish(problem, name, fields, plan.batch)
            made.append(MadeSamples(method=name, fields=ended, cost=cost + more, **which))
    return made


def _finish(problem: Problem, name: str, fields: torch.Tensor, batch: int) -> tuple[torch.Tensor, Cost]:
    """Return the samples (n, c, h, w), physical units, that a finished method makes of another's, and the cost in all."""
    recipe = find_method(name)
    if not recipe.samples_of:
        raise TypeError(f"{name} does not finish another method's samples")
    normalizer, finisher = problem.pde.normalizer, running.finisher(recipe, problem)
    x = normalizer.to_model(fields).to(problem.device)
    with Meter() as meter, torch.no_grad():
        ended = [finisher(x[start : start + batch]).cpu() for start in range(0, len(x), batch)]
    return normalizer.to_physical(torch.cat(ended)), meter.cost


def _names(result: EvaluationResult) -> PDENames:
    return PDENames(
        operators=result.operators,
        default_operator=result.default_operator,
        unrewarded_operator=result.unrewarded_operator,
        conditions=result.conditions,
        channels=result.channels,
    )


def _with_nearest(metrics: SetMetrics, fields: torch.Tensor, training: torch.Tensor | None) -> SetMetrics:
    """Return the metrics of fields with their distance to the nearest training field, if the training data are known."""
    if training is None:
        return metrics
    nearest = distances.nearest_distance(fields, training)
    return replace(metrics, fidelity=replace(metrics.fidelity, nearest_training_distance=nearest))


def _spectra(pde: PDE, fields: torch.Tensor) -> Spectra:
    rows, columns = (spectra.spectrum(fields, axis, periodic=pde.grid.periodic[axis]).tolist() for axis in (-2, -1))
    return Spectra(rows=rows, columns=columns)


# --- solver data ---


@lru_cache(maxsize=4)
def _solved(pde: PDE, stream: str, seed: int, count: int) -> torch.Tensor:
    return pde.solve(seed, stream, range(count)).float()


@lru_cache(maxsize=4)
def _validation_data(pde: PDE) -> tuple[torch.Tensor, float]:
    """Return the held-out fields of the trials, and their mean residual."""
    real = _solved(pde, TRIAL_DATA, 0, VALIDATION_REAL)
    return real, pde.residual(real.double(), pde.default_operator).mean().item()


def _training_data(base: Path, count: int) -> torch.Tensor | None:
    """Return the first fields that the base model was trained on; None if it does not say which (an imported one)."""
    info, meta = checkpoints.load_meta(base)
    said = meta.get("data")
    return _solved(info.pde(), said["stream"], said["seed"], min(count, said["samples"])) if said else None
