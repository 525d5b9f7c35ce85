"""``evaluate --interpolate``: table, and with ``--out`` metrics and plot."""

from pathlib import Path

from envs.common.checks import ConfigError
from envs.common.files import write_json
from pirf_ray.cli.flags import not_there
from pirf_ray.cli.progress import print_table
from pirf_ray.diffusion.model import Model
from pirf_ray.diffusion.sampling import Progress
from pirf_ray.evaluation.interpolation import draw_frontier, frontier_table, interpolate, parse_alphas
from pirf_ray.evaluation.tables import TABLE_WIDTH
from pirf_ray.training.settings import TrainConfig


def print_interpolation(
    text: str,
    model: Model,
    config: TrainConfig | None,
    checkpoint: Path,
    out: Path | None,
    *,
    samples: int,
    real: int,
    seed: int,
    data: Path | None,
    batch: int,
    progress: Progress,
) -> None:
    """Interpolate a run's weights at the alphas of ``text``; print the table and name the best alpha."""
    plot = out.with_suffix(".png") if out else None
    not_there(plot, "out", "results")
    alphas = parse_alphas(text)
    if config is None:
        raise ConfigError(f"--interpolate needs a fine-tuned run: {checkpoint} is a base model")
    frontier = interpolate(
        model, config.guard, alphas, samples=samples, real=real, seed=seed, data=data, batch=batch, progress=progress
    )
    if out is not None and plot is not None:
        write_json(out, frontier.to_json())
        draw_frontier(plot, frontier, config.guard)
    print_table(frontier_table(frontier), TABLE_WIDTH)
    none = "no alpha is inside the guard's limits"
    print(none if frontier.best is None else f"best inside the guard's limits: {frontier.best:g}")
