"""``python -m pirf_ray.studies.hacking --out DIR``: a hacked reward, and what stops it.

Three fine-tunings of the shipped base model by the same reward-driven loop, as many updates each:

``unguarded``  the residual alone is rewarded, every weight learns at every sigma, nothing holds the model
``guarded``    the very same, with the fidelity guard: the best model inside its limits is kept, outside them training ends
``default``    pirf_ray's preset: tuned weights in the last steps only, output anchor, conditions rewarded, guard

Nothing satisfies every PDE: the unguarded model learns to make less of everything, and its residual falls for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from rich.console import Console
from rich.table import Table

from envs.common.checks import at_least, positive
from envs.common.files import write_json
from envs.pdes import PDE
from envs.pdes.base import require
from pirf_ray import zoo
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.flags import check_env, not_there, parse
from pirf_ray.cli.progress import print_table, progress_bar
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.model import BASE, TUNED, Model
from pirf_ray.evaluation.models import EVALUATION_STREAM, held_out
from pirf_ray.evaluation.pages import save
from pirf_ray.evaluation.report import field_scale
from pirf_ray.metrics.drift import Drift, FidelityStatistics
from pirf_ray.metrics.evaluation import evaluate_sets
from pirf_ray.metrics.results import DATA, EvaluationResult
from pirf_ray.training.finetuning import local_tuning
from pirf_ray.training.guard import GuardMetrics, GuardSettings
from pirf_ray.training.presets import small
from pirf_ray.training.records import UpdateRecord
from pirf_ray.training.settings import TrainConfig

WAYS = ("unguarded", "guarded", "default")
COLORS = {"unguarded": "#D55E00", "guarded": "#009E73", "default": "#0072B2"}
REAL = 1024
RESOLUTION = 32
TABLE_WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Show a hacked reward and what stops it: the same reward without and with the fidelity guard, and the default."""

    out: Path
    """Directory to make for hacking.json and hacking.png."""
    env: str = "Burgers-v0"
    """PDE whose base model ships."""
    updates: int = 60
    """Updates of each training."""
    learning_rate: float = 1e-4
    """Learning rate of all three."""
    num_steps: int = 10
    """N, steps of the sampler."""
    guard_samples: int = 48
    """Samples of each guard evaluation."""
    samples: int = 128
    """Samples of each model in the final evaluation, from the same noise."""
    threads: int = torch.get_num_threads()
    """Torch threads."""
    seed: int = 0
    """Seed of noise, batches and evaluation."""

    def __post_init__(self) -> None:
        at_least(self, 1, "updates", "threads")
        at_least(self, 2, "samples", "guard_samples")
        positive(self, "learning_rate")


@dataclass(frozen=True, kw_only=True)
class GuardEvaluation:
    """One evaluation of the guard."""

    update: int
    metrics: GuardMetrics

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by their names in metrics.jsonl, without the group."""
        named = {name.removeprefix("guard/"): value for name, value in self.metrics.to_json().items()}
        return {"update": self.update, **named}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One of the trainings: its guard evaluations, and the model that it kept."""

    history: list[GuardEvaluation]
    model: Model


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Base and kept models, measured on noise and held-out data of their own."""

    pde: PDE
    limits: GuardSettings
    """The guard's limits."""
    result: EvaluationResult
    drifts: dict[str, Drift]
    """Drift of each model from the base model."""
    histories: dict[str, list[GuardEvaluation]]
    """Guard evaluations of each training."""
    fields: dict[str, torch.Tensor]
    """Samples (n, c, h, w) of each model, and real data, physical units."""

    def to_json(self) -> dict[str, Any]:
        """Return hacking.json."""
        made: dict[str, Any] = {"env": self.pde.env_id, "operator": self.pde.default_operator, "limits": vars(self.limits)}
        for name, metrics in self.result.sets.items():
            made[name] = {"metrics": metrics.to_json()}
            if name in self.drifts:
                made[name]["drift"] = vars(self.drifts[name])
            if name in self.histories:
                made[name]["history"] = [evaluation.to_json() for evaluation in self.histories[name]]
        return made


def configs(arguments: Arguments) -> dict[str, TrainConfig]:
    """Return the three ways: same PDE, sampler, updates, learning rate, layers (all) and guard evaluations."""
    common: dict[str, Any] = {
        "resolution": RESOLUTION,
        "num_steps": arguments.num_steps,
        "updates": arguments.updates,
        "learning_rate": arguments.learning_rate,
        "batch": 8,
        "micro_batch": 8,
        "workers": 1,
        "levels": 0,
        "seed": arguments.seed,
        "guard_every": max(1, arguments.updates // 12),
        "guard_samples": arguments.guard_samples,
    }
    preset = small(arguments.env)
    naked: dict[str, Any] = {
        "scope": "all",
        "strategy": "fresh",
        "chunk": 8,
        "truncation": 2,
        "reward_form": "plain",
        "condition_weight": 0.0,
        "anchor": 0.0,
        "l2": 0.0,
        "schedule": "constant",
    }
    unguarded = preset.with_settings(**common, **naked)
    guarded = unguarded.with_settings(guard="enforce")
    return {"unguarded": unguarded.with_settings(guard="watch"), "guarded": guarded, "default": preset.with_settings(**common)}


def main(argv: list[str] | None = None) -> None:
    """Run the study."""
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.studies.hacking", description=Arguments.__doc__)
    not_there(arguments.out, "out", "results")
    check_env(arguments.env)
    info, base = checkpoints.load_denoiser(zoo.find(arguments.env, RESOLUTION))
    require(info.pde(), "operators", "the study of hacking")
    ways = configs(arguments)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True)
    trained = {name: train(name, config, info, base) for name, config in ways.items()}
    comparison = compare(arguments, ways["unguarded"].guard, trained)
    write_json(arguments.out / "hacking.json", comparison.to_json())
    draw(arguments.out / "hacking.png", comparison)
    print_table(table(comparison), TABLE_WIDTH)


def train(name: str, config: TrainConfig, info: ModelInfo, base: Denoiser) -> Trained:
    """Train in one way; print the guard's evaluations."""
    console, history = Console(stderr=True), []

    def note(record: UpdateRecord) -> None:
        if record.guard is None:
            return
        history.append(GuardEvaluation(update=record.update, metrics=record.guard))
        drift, residual = record.guard.drift, record.guard.residual
        ratios = f"amplitude {drift.amplitude_ratio:.3f}, energy distance {drift.energy_ratio:.3f} x base"
        console.print(f"{name}: update {record.update}, residual {residual:.3g}, {ratios}", highlight=False)

    tuning = local_tuning(config, info, base)
    tuning.fit(note)
    return Trained(history=history, model=Model(info=info, policy=tuning.kept_policy(), sampler=config.sampler))


def compare(arguments: Arguments, limits: GuardSettings, trained: Mapping[str, Trained]) -> Comparison:
    """Measure base and kept models on noise and held-out data of their own."""
    sets: dict[str, torch.Tensor] = {}
    for name, way in trained.items():
        made = way.model.sample(
            range(arguments.samples),
            seed=arguments.seed,
            stream=EVALUATION_STREAM,
            groups=(TUNED,) if sets else (BASE, TUNED),
            progress=progress_bar(f"generating, {name}"),
        )
        sets |= {name if group == TUNED else group: fields for group, fields in made.items()}
    pde = next(iter(trained.values())).model.pde
    truth = held_out(pde, count=REAL + arguments.samples, seed=arguments.seed, data=None)
    real, other = truth[:REAL], truth[REAL:]
    statistics = {name: FidelityStatistics.of(fields, real, pde) for name, fields in sets.items()}
    return Comparison(
        pde=pde,
        limits=limits,
        result=evaluate_sets(pde, sets, real=real, real_other=other),
        drifts={name: Drift.between(own, statistics[BASE]) for name, own in statistics.items()},
        histories={name: way.history for name, way in trained.items()},
        fields={**sets, DATA: other},
    )


def table(comparison: Comparison) -> Table:
    """Return a row per model, and one of real data."""
    pde, result = comparison.pde, comparison.result
    made = Table(title=f"{pde.env_id}: what is kept of each training", caption="real data: a second held-out set")
    for column in ("", "residual", "amplitude / base", "energy distance / base", "spectrum rise", "re-solve error"):
        made.add_column(column, justify="right" if column else "left")
    for name in (BASE, *WAYS, DATA):
        metrics, drift = result[name], comparison.drifts.get(name)
        numbers = [drift.amplitude_ratio, drift.energy_ratio, drift.spectrum_rise] if drift else []
        cells = [f"{number:.3f}" for number in numbers] or ["-"] * 3
        residual, error = metrics.residuals[pde.default_operator].mean, metrics.resolve_median
        made.add_row("real data" if name == DATA else name, f"{residual:.3g}", *cells, "-" if error is None else f"{error:.3g}")
    return made


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A number of the guard's evaluations against updates."""

    title: str
    value: Callable[[GuardMetrics], float | None]
    bounds: Callable[[GuardSettings], tuple[float, ...]]
    """Limits on the number."""
    scale: str = "log"


PANELS = (
    Panel(title="mean residual", value=lambda metrics: metrics.residual, bounds=lambda limits: ()),
    Panel(
        title="amplitude / base",
        value=lambda metrics: metrics.drift.amplitude_ratio,
        bounds=lambda limits: (1 - limits.guard_amplitude, 1 + limits.guard_amplitude),
        scale="linear",
    ),
    Panel(
        title="energy distance / base",
        value=lambda metrics: metrics.drift.energy_ratio,
        bounds=lambda limits: (limits.guard_energy,),
    ),
)


def draw(path: Path, comparison: Comparison) -> None:
    """Draw the guard's metrics against updates, and samples from the same noise."""
    figure = Figure(figsize=(13, 8.5), layout="constrained", dpi=100)
    figure.suptitle(f"{comparison.pde.env_id}: a hacked reward, and what stops it", fontsize=12)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.3))[:, 0]
    for axes, panel in zip(top.subplots(1, len(PANELS)), PANELS, strict=True):
        for name in WAYS:
            history = comparison.histories[name]
            style: dict[str, Any] = {"color": COLORS[name], "marker": "o", "ms": 4, "lw": 3 if name == "guarded" else 1.5}
            axes.plot([e.update for e in history], [panel.value(e.metrics) for e in history], label=name, **style)
        for bound in panel.bounds(comparison.limits):
            axes.axhline(bound, color="#999999", ls="-.", lw=1)
        axes.set(title=panel.title, xlabel="update", yscale=panel.scale)
        axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    fields = comparison.fields
    _draw_samples(bottom, fields, field_scale(torch.cat([x[:5, -1] for x in fields.values()]).numpy()))
    save(figure, path, dpi=figure.dpi)


def _draw_samples(part: SubFigure, fields: Mapping[str, torch.Tensor], scale: tuple[Normalize, str]) -> None:
    """Draw in rows: base, the three kept models (columns from the same noise), real data."""
    rows = [BASE, *WAYS, DATA]
    count = min(6, *(len(x) for x in fields.values()))
    for panels, name in zip(part.subplots(len(rows), count, squeeze=False), rows, strict=True):
        for axes, field in zip(panels, fields[name], strict=False):
            axes.imshow(field[-1].numpy(), norm=scale[0], cmap=scale[1], origin="lower", aspect="auto")
            axes.set(xticks=[], yticks=[])
        panels[0].set_ylabel("real data" if name == DATA else name)


if __name__ == "__main__":
    run_command(main)
