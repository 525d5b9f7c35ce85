"""Evaluation of a model: its samples and the base model's from the same noise, against held-out solver data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from envs.common.checks import ConfigError
from envs.common.files import write_json
from envs.data.datasets import FieldFile
from envs.pdes import PDE
from pirf_ray.diffusion.model import BASE, BASE_FINISHED, TUNED, Model
from pirf_ray.diffusion.sampling import Progress
from pirf_ray.evaluation.samples import write_samples
from pirf_ray.metrics.evaluation import evaluate_sets
from pirf_ray.metrics.results import DATA, EvaluationResult, SamplerRecord
from pirf_ray.training.models import load_model
from pirf_ray.training.outcome import Outcome
from pirf_ray.training.runs import RunDirectory

EVALUATION_STREAM = "evaluation"
TEST_STREAM = "test"
GENERATE_STREAM = "generate"
SHOWN_SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics by set, and the sets (physical units, float32): base, tuned, data."""

    result: EvaluationResult
    sets: dict[str, torch.Tensor]


def held_out(pde: PDE, *, count: int, seed: int, data: Path | None) -> torch.Tensor:
    """Return real fields (count, c, h, w) that no training and no checkpoint choice has seen: solved, or from a file."""
    if data is None:
        return pde.solve(seed, TEST_STREAM, range(count)).float()
    file = FieldFile(data, pde)
    if len(file) < count:
        raise ConfigError(f"--data {data} holds {len(file)} samples; --real and --samples need {count} together")
    fields = file.read(range(count))
    file.close()
    return fields


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
) -> Evaluation:
    """Sample, solve, compare. Sampling and solver seeds are those of the evaluation streams, which nothing else uses.

    If the model has a finisher, the base model's samples are finished too, as a set of their own.
    """
    pde = model.pde
    truth = held_out(pde, count=real + samples, seed=seed, data=data)
    if model.finisher is not None and TUNED in groups:
        groups = (*groups, BASE_FINISHED)
    sets = model.sample(range(samples), seed=seed, stream=EVALUATION_STREAM, groups=groups, batch=batch, progress=progress)
    result = evaluate_sets(pde, sets, real=truth[:real], real_other=truth[real:], rewarded=model.rewarded_operator)
    return Evaluation(result=replace(result, sampler=sampler_record(model), seed=seed), sets={**sets, DATA: truth[real:]})


def sampler_record(model: Model) -> SamplerRecord:
    """Return how a model's samples are made."""
    return SamplerRecord(
        num_steps=model.sampler.num_steps,
        solver=model.sampler.solver,
        nfe=model.process.num_evaluations,
        corrections=model.finisher.steps if model.finisher else 0,
    )


def evaluate_run(run: RunDirectory, outcome: Outcome, *, data: Path | None, progress: Progress, device: str) -> Evaluation:
    """Evaluate the kept model on seeds that nothing before has seen; write result.json, samples.h5 and report.png."""
    from pirf_ray.evaluation.report import draw_report  # matplotlib takes seconds to import

    config = run.config
    model = load_model(run.paths.root).model.to(device)
    e = config.evaluation
    evaluation = evaluate_model(model, samples=e.samples, real=e.real, seed=config.seed, data=data, progress=progress)
    ending = outcome.sentence(config.optimizer.updates)
    result = replace(evaluation.result, kept_update=outcome.kept_update, ending=ending)
    write_json(run.paths.result, result.to_json())
    write_samples(run.paths.samples, model.pde, evaluation.sets, {"seed": config.seed, "stream": EVALUATION_STREAM})
    shown = {name: fields[:SHOWN_SAMPLES].numpy() for name, fields in evaluation.sets.items()}
    draw_report(run.paths.report, pde=model.pde, history=run.history(), result=result, samples=shown)
    return replace(evaluation, result=result)
