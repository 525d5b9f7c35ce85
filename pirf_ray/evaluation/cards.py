"""Model cards: the training data and the measured quality of a base model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from envs.common.checks import ConfigError
from envs.pdes import PDE
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.model import BASE, Model
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import Progress, SamplerSettings
from pirf_ray.evaluation.models import evaluate_model, fitting_counts
from pirf_ray.metrics.results import Estimate, EvaluationResult, SetMetrics

CARD_STEPS = (10, 20, 40)
"""Numbers of sampler steps that a card measures."""
TRAIN_STREAM = "train"
NOT_MEASURED = (
    "Not measured, since there are no held-out fields. This command measures the model on a file of them: "
    "`python -m pirf_ray.evaluate --checkpoint MODEL --data FILE`"
)
"""Last line of a card without metrics."""
CARD_SEED = 1000
"""Seed of the evaluations of a card."""
Cell = Callable[[SetMetrics], str]
"""Function from a set's metrics to the text of a cell."""


def measure_card(
    info: ModelInfo,
    denoiser: Denoiser,
    *,
    samples: int,
    real: int,
    progress: Callable[[str], Progress],
    device: str,
) -> dict[int, EvaluationResult]:
    """Return an evaluation of a base model for each number of sampler steps. Empty if the PDE has too few held-out fields.

    Samples and real fields are fewer than asked for if there are fewer held-out fields. ``progress`` returns the progress to show
    under a label.
    """
    try:
        samples, real = fitting_counts(info.pde(), samples=samples, real=real, data=None)
    except ConfigError:
        return {}
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
    """Write a model card. ``results`` holds an evaluation for each number of sampler steps; it may be empty."""
    parameters = sum(p.numel() for p in info.build().parameters())
    data = meta["data"]
    samples = f"{data['samples']} {_kind_of_samples(info.pde())}"
    lines = [
        f"# Base model: {info.env_id} at {info.resolution}x{info.resolution}",
        "",
        f"DDPM++ U-Net with EDM preconditioning, {parameters:,} weights; the averaged weights, for sampling and fine-tuning.",
        "",
        f"- Command: `{command} --out DIR`",
        f"- Data: {samples}, stream `{data['stream']}`, seed {data['seed']}; exact symmetries applied at random",
        *_origin(info, meta),
        f"- Images shown: {meta['images']:,} in batches of {config['batch']}, seed {config['seed']}",
        f"- Final training loss (running mean): {meta['mean_loss']:.4f}",
        f"- sigma_data: {info.sigma_data} (model units); ln sigma ~ N({config['noise_mean']}, {config['noise_std']}^2)",
        "",
        *(_measured(results) if results else [NOT_MEASURED]),
        "",
    ]
    path.write_text("\n".join(lines))


def _kind_of_samples(pde: PDE) -> str:
    """Return what the training samples of a PDE are called: a solver makes as many as are asked for."""
    solved = pde.provides("solve") and pde.available(TRAIN_STREAM) is None
    return "solver samples" if solved else "samples"


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


def _measured(results: dict[int, EvaluationResult]) -> list[str]:
    """Return the heading, the table with a row per number of sampler steps, and a line about real data."""
    first = next(iter(results.values()))
    columns = _columns(first)
    sizes = f"{first.num_samples} samples against {first.num_real} held-out fields"
    lines = [
        f"## Measured: {sizes} (evaluation seed {first.seed})",
        "",
        f"| N | NFE | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for steps, result in results.items():
        nfe = str(result.sampler.nfe) if result.sampler else "-"
        lines.append("| " + " | ".join([str(steps), nfe, *(cell(result[BASE]) for cell in columns.values())]) + " |")
    return [*lines, "", _real(first)]


def _columns(result: EvaluationResult) -> dict[str, Cell]:
    """Return the cells of a model by column. What the PDE leaves out has no column."""
    operator, unrewarded = result.default_operator, result.unrewarded_operator
    columns: dict[str, Cell] = {}
    if operator:
        columns[f"`{operator}` residual, mean (95%)"] = lambda m: _with_interval(m.residuals[operator])
        columns["median"] = lambda m: f"{m.residuals[operator].median:.3g}"
        columns["over floor"] = lambda m: f"{m.residuals[operator].over_floor:.3g}"
    if unrewarded:
        columns[f"`{unrewarded}` residual"] = lambda m: f"{m.residuals[unrewarded].mean:.4g}"
    if result.data.resolve is not None:
        columns["re-solve error, median"] = lambda m: f"{m.resolve_median:.3g}"
    return {
        **columns,
        "amplitude ratio": lambda m: f"{m.fidelity.amplitude_ratio:.4f}",
        "energy distance": lambda m: f"{m.fidelity.energy_distance:.4f}",
        "over real against real": lambda m: f"{m.fidelity.energy_distance_ratio_to_data:.3f}",
    }


def _with_interval(estimate: Estimate) -> str:
    low, high = estimate.mean_interval
    return f"{estimate.mean:.4g} ({low:.3g} to {high:.3g})"


def _real(result: EvaluationResult) -> str:
    """Return a line about real data, measured like the model."""
    data, operator, unrewarded = result.data, result.default_operator, result.unrewarded_operator
    parts = [f"`{operator}` {data.residuals[operator].mean:.3g} (the floor)"] if operator else []
    parts += [f"`{unrewarded}` {data.residuals[unrewarded].mean:.3g}"] if unrewarded else []
    parts += [] if data.resolve is None else [f"re-solve error {data.resolve.median:.3g}"]
    parts.append(f"amplitude ratio {data.fidelity.amplitude_ratio:.4f}")
    parts.append(f"energy distance {data.fidelity.energy_distance:.4f}")
    return f"Real against real, in the same way: {', '.join(parts)}."
