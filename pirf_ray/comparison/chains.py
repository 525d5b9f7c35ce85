"""The order of a benchmark's work: for each PDE and method its trials, then its trainings, then their evaluations.

A chain is a generator of jobs that is sent the result of each. It does not ask again for what is finished. Chains are
independent of each other.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from envs.pdes import PDE
from pirf_ray.comparison.cells import Cell
from pirf_ray.comparison.directory import BenchmarkDirectory
from pirf_ray.comparison.jobs import Job, JobResult
from pirf_ray.comparison.plan import EvaluationGrid
from pirf_ray.comparison.tuning import best_settings, next_settings
from pirf_ray.diffusion import checkpoints
from pirf_ray.methods import Settings, Weights, find_method

Chain = Generator[Job, JobResult, None]


class ChainMaker:
    """Makes the chain of one PDE and method. The methods that finish its samples are evaluated with it."""

    def __init__(
        self, directory: BenchmarkDirectory, grid: EvaluationGrid, methods: Sequence[str], *, device: str = "cpu"
    ) -> None:
        """``device``: what jobs compute on."""
        self.directory, self.grid, self.methods, self.device = directory, grid, methods, device

    def finished(self, method: str) -> tuple[str, ...]:
        """Return the methods that finish this method's samples."""
        return tuple(name for name in self.methods if samples_of(name) == method)

    def chain(self, env: str, method: str, base: Path) -> Chain:
        """Yield the jobs still to do; each result is written into the directory."""
        info, _ = checkpoints.load_meta(base)
        plan = self.directory.plan
        job = Job(kind="tune", env=env, method=method, base=base, plan=plan, settings={}, device=self.device)
        settings = yield from self._tune(job)
        for seed in self.grid.seeds_of(method):
            yield from self._seed(replace(job, settings=settings, seed=seed), info.pde())

    def _tune(self, job: Job) -> Generator[Job, JobResult, Settings]:
        """Make the trials that are missing; return the best settings."""
        recipe = find_method(job.method)
        if not recipe.search:
            return {}
        while len(trials := self.directory.trials(job.env, job.method)) < job.plan.trials:
            settings = next_settings(recipe, trials)
            self._keep((yield replace(job, settings=settings, trial=len(trials))))
        return best_settings(trials[: job.plan.trials])

    def _seed(self, job: Job, pde: PDE) -> Chain:
        """Train with the job's seed and evaluate, if an evaluation is missing."""
        finished = self.finished(job.method)
        num_steps = unfinished(self.directory, self.grid, job.env, (job.method, *finished), job.seed)
        if not num_steps:
            return
        weights: Weights | None = {}
        if find_method(job.method).trains:
            weights = yield from self._train(replace(job, kind="train"))
        if weights is None:
            return
        result = yield replace(job, kind="evaluate", num_steps=num_steps, weights=weights, finished=finished)
        if job.seed == 0 and result.shown:
            self.directory.save_samples(pde, job.method, result.shown)
        self._keep(result)

    def _train(self, job: Job) -> Generator[Job, JobResult, Weights | None]:
        """Return what was learned; None if the training failed."""
        key = job.env, job.method, job.seed
        cell = self.directory.training(*key)
        if cell is not None and cell.failed:
            return None
        stored = self.directory.load_weights(*key) if cell is not None else None
        if stored is not None:
            return stored
        result = yield job
        if result.weights:
            self.directory.save_weights(*key, result.weights)
        self._keep(result)
        return result.weights or None

    def _keep(self, result: JobResult) -> None:
        for cell in result.cells:
            self.directory.add(cell)


def samples_of(name: str) -> str:
    """Return the method whose samples the named method finishes; empty if it makes its own."""
    return find_method(name).samples_of


def unfinished(
    directory: BenchmarkDirectory, grid: EvaluationGrid, env: str, methods: Sequence[str], seed: int
) -> tuple[int, ...]:
    """Return the N at which one of the methods is still to be evaluated."""
    return tuple(n for n in grid.steps_of(seed) if any(directory.evaluation(env, name, n, seed) is None for name in methods))


def count_jobs(maker: ChainMaker, pairs: Sequence[tuple[str, str]], tunable: Sequence[str]) -> int:
    """Return the number of jobs still to do for PDEs and methods. It does not foresee lost weights."""
    directory, total = maker.directory, 0
    for env, method in pairs:
        total += max(0, directory.plan.trials - len(directory.trials(env, method))) if method in tunable else 0
        for seed in maker.grid.seeds_of(method):
            todo = bool(unfinished(directory, maker.grid, env, (method, *maker.finished(method)), seed))
            untrained = find_method(method).trains and directory.training(env, method, seed) is None
            total += todo + (todo and untrained)
    return total


def failures(cells: Sequence[Cell]) -> list[str]:
    """Return what failed, a line each."""
    return [f"{cell.kind} {cell.env} {cell.method}: {cell.failed}" for cell in cells if cell.failed]
