"""Model cards: the training data and the measured quality of a base model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.model import BASE, Model
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import Progress, SamplerSettings
from pirf_ray.evaluation.models import evaluate_model
from pirf_ray.metrics.results import EvaluationResult

CARD_STEPS = (10, 20, 40)
"""Numbers of sampler steps that a card measures."""
CARD_SEED = 1000
"""Seed of the evaluations of a card."""


def measure_card(
    info: ModelInfo,
    denoiser: Denoiser,
    *,
    samples: int,
    real: int,
    progress: Callable[[str], Progress],
    device: str,
) -> dict[int, EvaluationResult]:
    """Return an evaluation of a base model for each number of sampler steps.

    ``progress`` returns the progress to show under a label.
    """
    policy = Policy(denoiser).to(device)
    return {
        steps: evaluate_model(
            Model(info=info, policy=policy, sampler=SamplerSettings(num_steps=steps)),
            samples=samples,
            real=real,
            seed=CARD_SEED,
            groups=(BASE,),
            progress=progress(f"evaluating N={steps}"),
        ).result
        for steps in CARD_STEPS
    }


def write_card(
    path: Path,
    info: ModelInfo,
    meta: dict[str, Any],
    config: dict[str, Any],
    results: dict[int, EvaluationResult],
    *,
    command: str,
) -> None:
    """Write a model card. ``results`` holds an evaluation for each number of sampler steps."""
    parameters = sum(p.numel() for p in info.build().parameters())
    first = next(iter(results.values()))
    operator, unrewarded = first.default_operator, first.unrewarded_operator
    data = meta["data"]
    lines = [
        f"# Base model: {info.env_id} at {info.resolution}x{info.resolution}",
        "",
        f"DDPM++ U-Net with EDM preconditioning, {parameters:,} weights; the averaged weights, for sampling and fine-tuning.",
        "",
        f"- Command: `{command} --out DIR`",
        f"- Data: {data['samples']} solver samples, stream `{data['stream']}`, seed {data['seed']}; exact symmetries applied at random",
        *_origin(info, meta),
        f"- Images shown: {meta['images']:,} in batches of {config['batch']}, seed {config['seed']}",
        f"- Final training loss (running mean): {meta['mean_loss']:.4f}",
        f"- sigma_data: {info.sigma_data} (model units); ln sigma ~ N({config['noise_mean']}, {config['noise_std']}^2)",
        "",
        f"## Measured: {first.num_samples} samples against {first.num_real} held-out solutions (evaluation seed {first.seed})",
        "",
        f"| N | NFE | `{operator}` residual, mean (95%) | median | over floor | `{unrewarded}` residual | re-solve error, median "
        "| amplitude ratio | energy distance | over real against real |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(steps, result, operator, unrewarded) for steps, result in results.items()]
    lines += ["", _real(first, operator, unrewarded), ""]
    path.write_text("\n".join(lines))


def _origin(info: ModelInfo, meta: dict[str, Any]) -> list[str]:
    """Return lines about the parameters of the PDE and the models from which the training started."""
    lines = []
    if info.parameters:
        lines.append(f"- Parameters of the PDE: {', '.join(f'{name} = {value:g}' for name, value in info.parameters.items())}")
    init, images, began = meta.get("init"), [meta["images"]], "Began"
    while init:
        seen = f", which had seen {init['images']:,} images" if init["images"] is not None else ""
        lines.append(f"- {began} with the {init['env_id']} model `{init['weights']}`{seen}")
        images.append(init["images"])
        init, began = init.get("init"), f"Model `{init['weights']}` began"
    if len(images) > 1 and None not in images:
        lines.append(f"- Images shown in all: {sum(images):,}")
    return lines


def _row(steps: int, result: EvaluationResult, operator: str, unrewarded: str) -> str:
    base = result[BASE]
    residual, fidelity = base.residuals[operator], base.fidelity
    low, high = residual.mean_interval
    cells = [
        str(steps),
        str(result.sampler.nfe) if result.sampler else "-",
        f"{residual.mean:.4g} ({low:.3g} to {high:.3g})",
        f"{residual.median:.3g}",
        f"{residual.over_floor:.3g}",
        f"{base.residuals[unrewarded].mean:.4g}",
        f"{base.resolve.median:.3g}",
        f"{fidelity.amplitude_ratio:.4f}",
        f"{fidelity.energy_distance:.4f}",
        f"{fidelity.energy_distance_ratio_to_data:.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _real(result: EvaluationResult, operator: str, unrewarded: str) -> str:
    data = result.data
    return (
        f"Real against real, in the same way: `{operator}` {data.residuals[operator].mean:.3g} (the floor), "
        f"`{unrewarded}` {data.residuals[unrewarded].mean:.3g}, re-solve error {data.resolve.median:.3g}, "
        f"amplitude ratio {data.fidelity.amplitude_ratio:.4f}, energy distance {data.fidelity.energy_distance:.4f}."
    )
