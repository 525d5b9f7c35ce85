"""Evaluation of a policy: samples of base and tuned model from the same noise, against held-out solver data."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from envs.datasets import FieldFile
from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from pirf_ray.config import ConfigError, SamplerSettings
from pirf_ray.correction import make_correction
from pirf_ray.evaluation.figures import evaluate_sets
from pirf_ray.policy import Policy
from pirf_ray.rollout import BASE_CORRECTED, generate

EVALUATION_STREAM = "evaluation"
TEST_STREAM = "test"
Progress = Callable[[Iterable[range]], Iterable[range]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures by set, and the sets (physical units, float32): base, tuned, data."""

    result: dict[str, Any]
    sets: dict[str, torch.Tensor]


def held_out(pde: PDE, *, count: int, seed: int, data: Path | None) -> torch.Tensor:
    """Real fields (count, c, h, w) that no training and no checkpoint choice has seen: solved, or from the user's file."""
    if data is None:
        return pde.solve(seed, TEST_STREAM, range(count)).float()
    file = FieldFile(data, pde)
    if len(file) < count:
        raise ConfigError(f"--data {data} holds {len(file)} samples; --real and --samples need {count} together")
    fields = file.read(range(count))
    file.close()
    return fields


def evaluate_policy(
    pde: PDE,
    policy: Policy,
    sampler: SamplerSettings,
    *,
    samples: int,
    real: int,
    seed: int,
    data: Path | None = None,
    batch: int = 64,
    progress: Progress = iter,
    groups: Sequence[str] = ("base", "tuned"),
    rewarded: str | None = None,
) -> Evaluation:
    """Sample, solve, compare. Sampling and solver seeds are those of the evaluation streams, which nothing else uses.

    Where tuned samples are corrected, the base's are too, as a set of their own.
    """
    truth = held_out(pde, count=real + samples, seed=seed, data=data)
    process = DenoisingProcess(sampler.num_steps, sampler.solver)
    correction = None
    if sampler.corrections:
        correction = make_correction(pde, sampler.corrections, rewarded or "")
        groups = (*groups, BASE_CORRECTED) if "tuned" in groups else groups
    outputs = generate(
        policy,
        process,
        shape=pde.shape,
        seed=seed,
        stream=EVALUATION_STREAM,
        sample_ids=range(samples),
        batch=batch,
        progress=progress,
        groups=groups,
        correction=correction,
    )
    sets = {name: pde.normalizer.to_physical(x.float()) for name, x in outputs.items()}
    result = evaluate_sets(pde, sets, real=truth[:real], real_other=truth[real:], rewarded=rewarded)
    result["sampler"] = {**asdict(sampler), "nfe": process.num_evaluations}
    result["seed"] = seed
    return Evaluation(result=result, sets={**sets, "data": truth[real:]})
