"""The order of a benchmark's work: for each PDE and method its trials, then its trainings, then their evaluations.

A chain is a generator of jobs that is sent the result of each: what is finished already is not asked for again. Chains are
independent of each other.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pirf_ray import checkpoints
from pirf_ray.benchmarking.cells import Benchmark, Cell
from pirf_ray.benchmarking.jobs import Done, Job
from pirf_ray.benchmarking.tuning import best_settings, next_settings
from pirf_ray.methods import Follower, Problem, Settings, Weights, find_method

Chain = Generator[Job, Done, None]


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Which seeds and which N are evaluated."""

    num_steps: tuple[int, ...]
    repeated: tuple[str, ...]
    """Methods that are trained and evaluated with every seed; the others with seed 0 alone."""
    repeated_steps: tuple[int, ...]
    """N at which seeds after the first are evaluated."""
    seeds: int

    def of(self, seed: int) -> tuple[int, ...]:
        return self.num_steps if seed == 0 else tuple(n for n in self.num_steps if n in self.repeated_steps)

    def seeds_of(self, method: str) -> range:
        return range(self.seeds if method in self.repeated else 1)


class ChainMaker:
    """Makes the chain of one PDE and method, its followers evaluated with it."""

    def __init__(self, benchmark: Benchmark, extent: Extent, methods: Sequence[str]) -> None:
        self.benchmark, self.extent, self.methods = benchmark, extent, methods

    def followers(self, method: str) -> tuple[str, ...]:
        return tuple(name for name in self.methods if leader(name) == method)

    def chain(self, env: str, method: str, base: Path) -> Chain:
        """Jobs still to do, each result written into the benchmark."""
        info, denoiser = checkpoints.load_denoiser(base)
        problem = Problem(info=info, base=denoiser, num_steps=self.benchmark.plan.train_steps)
        settings = yield from self._tune(env, method, base, problem)
        for seed in self.extent.seeds_of(method):
            yield from self._seed(env, method, base, problem, settings, seed)

    def _tune(self, env: str, method: str, base: Path, problem: Problem) -> Generator[Job, Done, Settings]:
        plan, found = self.benchmark.plan, find_method(method)
        if not found.defaults(problem):
            return {}
        while len(trials := self.benchmark.trials(env, method)) < plan.trials:
            settings = next_settings(found, problem, trials)
            job = Job(kind="tune", env=env, method=method, base=base, plan=plan, settings=settings, trial=len(trials))
            self._keep((yield job))
        return best_settings(self.benchmark.trials(env, method)[: plan.trials])

    def _seed(self, env: str, method: str, base: Path, problem: Problem, settings: Settings, seed: int) -> Chain:
        benchmark = self.benchmark
        steps = unfinished(benchmark, self.extent, env, (method, *self.followers(method)), seed)
        if not steps:
            return
        weights: Weights = {}
        if find_method(method).trains:
            trained = yield from self._train(env, method, base, settings, seed)
            if trained is None:
                return
            weights = trained
        plan = benchmark.plan
        done = yield Job(
            kind="evaluate",
            env=env,
            method=method,
            base=base,
            plan=plan,
            settings=settings,
            seed=seed,
            num_steps=steps,
            weights=weights,
            followers=self.followers(method),
        )
        if seed == 0 and done.shown:
            benchmark.save_samples(problem.pde, method, done.shown)
        self._keep(done)

    def _train(self, env: str, method: str, base: Path, settings: Settings, seed: int) -> Generator[Job, Done, Weights | None]:
        """What was learned; None if the training failed."""
        cell = self.benchmark.get("train", env, method, seed)
        if cell is not None and "failed" in cell:
            return None
        stored = self.benchmark.load_weights(env, method, seed) if cell is not None else None
        if stored is not None:
            return stored
        plan = self.benchmark.plan
        done = yield Job(kind="train", env=env, method=method, base=base, plan=plan, settings=settings, seed=seed)
        if done.weights:
            self.benchmark.save_weights(env, method, seed, done.weights)
        self._keep(done)
        return done.weights or None

    def _keep(self, done: Done) -> None:
        for cell in done.cells:
            self.benchmark.add(cell)


def leader(name: str) -> str:
    """The method that a follower follows; empty for any other."""
    method = find_method(name)
    return method.follows if isinstance(method, Follower) else ""


def unfinished(benchmark: Benchmark, extent: Extent, env: str, methods: Sequence[str], seed: int) -> tuple[int, ...]:
    """N at which one of the methods, a leader and its followers, is still to be evaluated."""
    return tuple(n for n in extent.of(seed) if any(benchmark.get("evaluate", env, method, n, seed) is None for method in methods))


def count_jobs(maker: ChainMaker, pairs: Sequence[tuple[str, str]], tunable: Sequence[str]) -> int:
    """Jobs still to do for PDEs and methods (a training whose weights were lost is not foreseen)."""
    benchmark, total = maker.benchmark, 0
    for env, method in pairs:
        total += max(0, benchmark.plan.trials - len(benchmark.trials(env, method))) if method in tunable else 0
        for seed in maker.extent.seeds_of(method):
            todo = bool(unfinished(benchmark, maker.extent, env, (method, *maker.followers(method)), seed))
            untrained = find_method(method).trains and benchmark.get("train", env, method, seed) is None
            total += todo + (todo and untrained)
    return total


def failures(cells: Sequence[Cell]) -> list[str]:
    """What failed, a line each."""
    return [f"{c['kind']} {c['env']} {c['method']}: {c['failed']}" for c in cells if "failed" in c]
