"""Evaluation of a model: its samples and the base model's from the same noise, against held-out real fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from envs.common.checks import ConfigError
from envs.common.files import write_json
from envs.data.datasets import FieldFile
from envs.pdes import PDE
from envs.pdes.base import require
from envs.rewards import PhysicsReward, Reward
from pirf_ray.diffusion.model import BASE, BASE_FINISHED, TUNED, Model
from pirf_ray.diffusion.sampling import Progress
from pirf_ray.evaluation.samples import write_samples
from pirf_ray.metrics.base import REWARD, Metric
from pirf_ray.metrics.evaluation import evaluate_sets
from pirf_ray.metrics.results import DATA, EvaluationResult, SamplerRecord
from pirf_ray.metrics.rewards import MeanReward
from pirf_ray.training.models import load_model
from pirf_ray.training.outcome import Outcome
from pirf_ray.training.runs import RunDirectory
from pirf_ray.training.settings import TrainConfig

EVALUATION_STREAM = "evaluation"
TEST_STREAM = "test"
GENERATE_STREAM = "generate"
SHOWN_SAMPLES = 64
PHYSICS = "physics"
"""Name of the reward whose terms are residuals and conditions."""
FEWEST = 2
"""Smallest number of samples and of real fields that have distances."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics by set, and the sets (physical units, float32): base, tuned, data."""

    result: EvaluationResult
    sets: dict[str, torch.Tensor]


def held_out_available(pde: PDE, data: Path | None) -> int | None:
    """Return the number of held-out fields, in a file or of the PDE. None if there is no limit.

    NotProvided if the PDE has no solver and there is no file. InvalidDataError if the file is not valid.
    """
    if data is None:
        require(pde, "solve", "the comparison with held-out fields", "give a file of them: --data FILE")
        return pde.available(TEST_STREAM)
    file = FieldFile(data, pde)
    count = len(file)
    file.close()
    return count


def held_out(pde: PDE, *, count: int, seed: int, data: Path | None) -> torch.Tensor:
    """Return real fields (count, c, h, w) that no training and no checkpoint choice has seen: solved, or from a file.

    NotProvided if the PDE has no solver and there is no file. ConfigError if there are fewer fields.
    """
    available = held_out_available(pde, data)
    if available is not None and available < count:
        held = f"{pde.env_id} has {available} stored test samples" if data is None else f"--data {data} holds {available} samples"
        raise ConfigError(f"{held}; --real and --samples need {count} together")
    if data is None:
        return pde.solve(seed, TEST_STREAM, range(count)).float()
    file = FieldFile(data, pde)
    fields = file.read(range(count))
    file.close()
    return fields


def fitting_counts(pde: PDE, *, samples: int, real: int, data: Path | None) -> tuple[int, int]:
    """Return the numbers of samples and of real fields, in proportion fewer if there are fewer held-out fields.

    NotProvided if the PDE has no solver and there is no file. ConfigError if there are fewer than 4 held-out fields.
    """
    available = held_out_available(pde, data)
    if available is None or available >= samples + real:
        return samples, real
    if available < 2 * FEWEST:
        raise ConfigError(f"{data or pde.env_id} has {available} held-out fields, an evaluation needs at least {2 * FEWEST}")
    fewer = min(max(FEWEST, available * samples // (samples + real)), available - FEWEST)
    return fewer, available - fewer


def evaluate_model(
    model: Model,
    *,
    samples: int,
    real: int,
    seed: int,
    data: Path | None = None,
    batch: int = 64,
    progress: Progress = iter,
    groups: Sequence[str] = (BASE, TUNED),
    metrics: Mapping[str, Metric] | None = None,
    reward: Reward | None = None,
) -> Evaluation:
    """Sample, solve, compare. Sampling and solver seeds are those of the evaluation streams, which nothing else uses.

    If the model has a finisher, the base model's samples are finished too, as a set of their own. ``metrics``: further metrics of
    each set, by name. ``reward``: a reward whose mean over each set is the metric ``reward``. NotProvided or ConfigError, before
    anything is sampled, if there are too few held-out fields.
    """
    pde = model.pde
    truth = held_out(pde, count=real + samples, seed=seed, data=data)
    if model.finisher is not None and TUNED in groups:
        groups = (*groups, BASE_FINISHED)
    sets = model.sample(range(samples), seed=seed, stream=EVALUATION_STREAM, groups=groups, batch=batch, progress=progress)
    named = {**({} if reward is None else {REWARD: MeanReward(reward)}), **(metrics or {})}
    result = evaluate_sets(pde, sets, real=truth[:real], real_other=truth[real:], rewarded=model.rewarded_operator, metrics=named)
    return Evaluation(result=replace(result, sampler=sampler_record(model), seed=seed), sets={**sets, DATA: truth[real:]})


def sampler_record(model: Model) -> SamplerRecord:
    """Return how a model's samples are made."""
    return SamplerRecord(
        num_steps=model.sampler.num_steps,
        solver=model.sampler.solver,
        nfe=model.process.num_evaluations,
        corrections=model.finisher.steps if model.finisher else 0,
    )


def reported_reward(config: TrainConfig, pde: PDE) -> Reward | None:
    """Return the reward of a run if it is no physics reward, whose residuals every evaluation reports anyway. Else None."""
    if config.reward == PHYSICS:
        return None
    reward = config.make_reward(pde)
    return None if isinstance(reward, PhysicsReward) else reward


def evaluate_run(
    run: RunDirectory,
    outcome: Outcome,
    *,
    data: Path | None,
    progress: Progress,
    device: str,
    reward: Reward | None = None,
) -> Evaluation:
    """Evaluate the kept model on seeds that nothing before has seen; write result.json, samples.h5 and report.png.

    ``reward``: the reward of a training from Python, which the settings do not name. Otherwise the run's own reward is reported
    if it is no physics reward. Samples and real fields are fewer than the settings say if there are fewer held-out fields.
    """
    from pirf_ray.evaluation.report import draw_report  # matplotlib takes seconds to import

    config = run.config
    model = load_model(run.paths.root).model.to(device)
    samples, real = fitting_counts(model.pde, samples=config.evaluation.samples, real=config.evaluation.real, data=data)
    evaluation = evaluate_model(
        model,
        samples=samples,
        real=real,
        seed=config.seed,
        data=data,
        progress=progress,
        reward=reward or reported_reward(config, model.pde),
    )
    ending = outcome.sentence(config.optimizer.updates)
    result = replace(evaluation.result, kept_update=outcome.kept_update, ending=ending)
    write_json(run.paths.result, result.to_json())
    write_samples(run.paths.samples, model.pde, evaluation.sets, {"seed": config.seed, "stream": EVALUATION_STREAM})
    shown = {name: fields[:SHOWN_SAMPLES].numpy() for name, fields in evaluation.sets.items()}
    draw_report(run.paths.report, pde=model.pde, history=run.history(), result=result, samples=shown)
    return replace(evaluation, result=result)
