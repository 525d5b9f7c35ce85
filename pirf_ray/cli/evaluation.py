"""Flags of ``evaluate``, and what it prints: a comparison of sets, or a frontier of interpolated weights."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from envs.common.checks import ConfigError, at_least, not_negative, require
from envs.common.files import write_json
from envs.data.datasets import validate
from envs.pdes import PDE
from envs.rewards import Reward, find_reward
from envs.rewards.finding import COMMAND
from pirf_ray.cli.devices import available
from pirf_ray.cli.flags import not_there
from pirf_ray.cli.progress import print_table, progress_bar
from pirf_ray.diffusion.model import BASE, TUNED, Model
from pirf_ray.evaluation.interpolation import draw_frontier, frontier_table, interpolate, parse_alphas
from pirf_ray.evaluation.models import evaluate_model, reported_reward
from pirf_ray.evaluation.tables import TABLE_WIDTH, result_table
from pirf_ray.metrics import Metric, find_metrics
from pirf_ray.training.models import load_model, with_sampling
from pirf_ray.training.settings import TrainConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Evaluate a model: residuals over their floors, fidelity to held-out real data, re-solve error, mean reward.

    Noise and held-out data come from random streams that neither training nor the choice of the checkpoint uses. The mean reward
    is reported if the run's reward is no physics reward. Metrics of parts that the PDE leaves out are left out.
    """

    checkpoint: Path
    """A run directory (its kept model is used), one of its checkpoints, a base model, or a shipped model's name."""
    samples: int = 1024
    """Samples of the base and of the tuned model, from the same noise."""
    real: int = 2048
    """Held-out fields that they are compared with. A second set, of --samples fields, is the column real data."""
    metrics: tuple[str, ...] = ()
    """Further metrics of each set (train --list metric); your own: module:name. In JSON they are metric/NAME."""
    reward: str = ""
    """Reward whose mean is reported, as in train. Default: the run's own. A run's own program is started only if it is named here."""
    num_steps: int | None = None
    """N, steps of the sampler; default: those of the run."""
    corrections: int | None = None
    """Steps down each finished sample's own residual; default: those of the run."""
    interpolate: str | None = None
    """START:STOP:STEP, such as 0:1:0.1: compare theta_0 + alpha (theta - theta_0) instead, theta_0 the base and theta the run's
    weights, and name the best alpha inside the run's fidelity guard. With --out, FILE.png is its plot."""
    seed: int = 1000
    """Seed of the noise and of the held-out data."""
    data: Path | None = None
    """HDF5 file of held-out fields instead of solving them. A PDE without a solver needs one."""
    out: Path | None = None
    """JSON file for all metrics."""
    batch: int = 64
    """Samples at once."""
    threads: int = torch.get_num_threads()
    """Torch threads."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""

    def __post_init__(self) -> None:
        at_least(self, 2, "samples", "real")
        at_least(self, 1, "batch", "threads", *(["num_steps"] if self.num_steps is not None else []))
        if self.corrections is not None:
            not_negative(self, "corrections")
        given = "--metrics" if self.metrics else "--reward" if self.reward else ""
        require(self.interpolate is None or not given, f"--interpolate has metrics of its own, leave out {given}")

    @property
    def plot(self) -> Path | None:
        """Return the file of the plot of interpolated weights."""
        return self.out.with_suffix(".png") if self.out and self.interpolate is not None else None


def evaluate(a: EvaluateArguments) -> None:
    """Check everything, sample, measure and print."""
    not_there(a.out, "out", "results")
    not_there(a.plot, "out", "results")
    device = available(a.device)
    metrics = find_metrics(a.metrics)
    loaded = load_model(a.checkpoint)
    model = with_sampling(loaded.model, num_steps=a.num_steps, corrections=a.corrections)
    if a.data is not None:
        validate(a.data, model.pde)
    reward = _reward(a.reward, loaded.config, model.pde)
    torch.set_num_threads(a.threads)
    model.to(device)
    if a.interpolate is not None:
        _print_frontier(a, model, loaded.config, parse_alphas(a.interpolate))
    else:
        _print_sets(a, model, groups=(BASE, TUNED) if loaded.config else (BASE,), metrics=metrics, reward=reward)


def _reward(named: str, config: TrainConfig | None, pde: PDE) -> Reward | None:
    """Return the reward that is named, or else the run's own. None if nothing is to be reported.

    ConfigError or ValueError if it cannot be made. A settings file starts no program.
    """
    try:
        if named:
            return config.make_reward(pde) if config and named == config.reward else find_reward(named, pde)
        if config is None:
            return None
        if config.reward.startswith(COMMAND):
            print(f"the run's reward is a program; --reward {config.reward!r} starts it and reports its mean", file=sys.stderr)
            return None
        return reported_reward(config, pde)
    except TypeError as error:  # an object that is not a reward
        raise ConfigError(f"--reward {named}: {error}") from None


def _print_sets(
    a: EvaluateArguments, model: Model, *, groups: tuple[str, ...], metrics: dict[str, Metric], reward: Reward | None
) -> None:
    evaluation = evaluate_model(
        model,
        samples=a.samples,
        real=a.real,
        seed=a.seed,
        data=a.data,
        batch=a.batch,
        groups=groups,
        progress=progress_bar("generating"),
        metrics=metrics,
        reward=reward,
    )
    if a.out is not None:
        write_json(a.out, evaluation.result.to_json())
    print_table(result_table(evaluation.result), TABLE_WIDTH)


def _print_frontier(a: EvaluateArguments, model: Model, config: TrainConfig | None, alphas: list[float]) -> None:
    """Print the table of the alphas and name the best one; with ``--out`` write metrics and plot."""
    if config is None:
        raise ConfigError(f"--interpolate needs a fine-tuned run: {a.checkpoint} is a base model")
    frontier = interpolate(
        model,
        config.guard,
        alphas,
        samples=a.samples,
        real=a.real,
        seed=a.seed,
        data=a.data,
        batch=a.batch,
        progress=progress_bar("generating"),
    )
    if a.out is not None and a.plot is not None:
        write_json(a.out, frontier.to_json())
        draw_frontier(a.plot, frontier, config.guard)
    print_table(frontier_table(frontier), TABLE_WIDTH)
    none = "no alpha is inside the guard's limits"
    print(none if frontier.best is None else f"best inside the guard's limits: {frontier.best:g}")
