"""``python -m pirf_ray.hacking --out DIR``: a hacked reward, and what stops it.

Three fine-tunings of the shipped base model by the same reward-driven loop, as many updates each:

``unguarded``  the residual alone is rewarded, every weight learns at every sigma, nothing holds the model
``guarded``    the very same, with the fidelity guard: the best model inside its limits is kept, outside them training ends
``default``    pirf_ray's preset: tuned weights in the last steps only, output anchor, conditions rewarded, guard

Nothing satisfies every PDE: the unguarded model learns to make less of everything, and its residual falls for it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from envs.denoising import DenoisingProcess
from pirf_ray import checkpoints, zoo
from pirf_ray.checkpoints import ModelInfo
from pirf_ray.cli import check_env, parse, print_table, progress_bar, run_command
from pirf_ray.communication import SingleProcess
from pirf_ray.config import ConfigError, TrainConfig
from pirf_ray.denoiser import Denoiser
from pirf_ray.evaluation.figures import evaluate_sets
from pirf_ray.evaluation.run import EVALUATION_STREAM, held_out
from pirf_ray.finetuning import FineTuning, Record
from pirf_ray.guard import Departure, Likeness
from pirf_ray.learner import make_policy
from pirf_ray.policy import Policy
from pirf_ray.presets import small
from pirf_ray.rollout import generate
from pirf_ray.sources import LocalSource

WAYS = ("unguarded", "guarded", "default")
REAL = 1024
RESOLUTION = 32


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


def configs(arguments: Arguments) -> dict[str, TrainConfig]:
    """The three ways: same PDE, sampler, updates, learning rate, layers (all) and guard evaluations."""
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
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.hacking", description=Arguments.__doc__)
    if arguments.out.exists():
        raise FileExistsError(f"--out {arguments.out} exists; results are never overwritten")
    if min(arguments.updates, arguments.threads) < 1 or min(arguments.samples, arguments.guard_samples) < 2:
        raise ConfigError("--updates and --threads must be at least 1, --samples and --guard-samples at least 2")
    check_env(arguments.env)
    info, base = checkpoints.load_denoiser(zoo.find(arguments.env, RESOLUTION))
    ways = configs(arguments)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True)
    histories, policies = {}, {}
    for name, config in ways.items():
        histories[name], policies[name] = train(name, config, info, base)
    result, fields = compare(arguments, ways["unguarded"], info, policies)
    for name, history in histories.items():
        result[name]["history"] = history
    (arguments.out / "hacking.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(arguments.out / "hacking.png", result, fields)
    print_table(table(result), 110)


def train(name: str, config: TrainConfig, info: ModelInfo, base: Denoiser) -> tuple[list[Record], Policy]:
    """Guard evaluations by update, and the kept policy."""
    console, history = Console(stderr=True), []

    def note(record: Record) -> None:
        if "guard/residual" not in record:
            return
        history.append(
            {k.removeprefix("guard/"): v for k, v in record.items() if k.startswith("guard/")} | {"update": record["update"]}
        )
        last = history[-1]
        ratios = f"amplitude {last['amplitude_ratio']:.3f}, energy distance {last['energy_ratio']:.3f} x base"
        console.print(f"{name}: update {record['update']}, residual {last['residual']:.3g}, {ratios}", highlight=False)

    source = LocalSource(config, make_policy(config, base))
    tuning = FineTuning(config, info, base, source=source, communicator=SingleProcess(), device=torch.device("cpu"))
    tuning.fit(note)
    return history, tuning.kept_policy()


def compare(
    arguments: Arguments, config: TrainConfig, info: ModelInfo, policies: dict[str, Policy]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Figures of base and kept models on noise and held-out data of their own; and their fields."""
    pde, process = info.pde(), DenoisingProcess(config.sampler.num_steps, config.sampler.solver)
    sets: dict[str, torch.Tensor] = {}
    for name, policy in policies.items():
        groups = ("tuned",) if sets else ("base", "tuned")
        made = generate(
            policy,
            process,
            shape=pde.shape,
            seed=arguments.seed,
            stream=EVALUATION_STREAM,
            sample_ids=range(arguments.samples),
            progress=progress_bar(f"generating, {name}"),
            groups=groups,
        )
        for group, x in made.items():
            sets[name if group == "tuned" else "base"] = pde.normalizer.to_physical(x.float())
    truth = held_out(pde, count=REAL + arguments.samples, seed=arguments.seed, data=None)
    figures = evaluate_sets(pde, sets, real=truth[:REAL], real_other=truth[REAL:])
    base = Likeness.of(sets["base"], truth[:REAL], pde)
    result: dict[str, Any] = {"env": pde.env_id, "operator": pde.default_operator, "limits": vars(config.guard)}
    for name, fields in sets.items():
        result[name] = {
            "figures": figures[name],
            "departure": vars(Departure.between(Likeness.of(fields, truth[:REAL], pde), base)),
        }
    result["data"] = {"figures": figures["data"]}
    return result, {**sets, "data": truth[REAL:]}


def table(result: dict[str, Any]) -> Table:
    made = Table(title=f"{result['env']}: what is kept of each training", caption="real data: a second held-out set")
    for column in ("", "residual", "amplitude / base", "energy distance / base", "spectrum rise", "re-solve error"):
        made.add_column(column, justify="right" if column else "left")
    for name in ("base", *WAYS, "data"):
        figures, departure = result[name]["figures"], result[name].get("departure")
        cells = (
            [f"{departure[key]:.3f}" for key in ("amplitude_ratio", "energy_ratio", "spectrum_rise")] if departure else ["-"] * 3
        )
        residual = f"{figures['residual/' + result['operator'] + '/mean']:.3g}"
        made.add_row("real data" if name == "data" else name, residual, *cells, f"{figures['resolve/median']:.3g}")
    return made


def draw(path: Path, result: dict[str, Any], fields: dict[str, torch.Tensor]) -> None:
    """Guard figures against updates, and samples from the same noise."""
    from matplotlib.figure import Figure

    from pirf_ray.evaluation.pages import save
    from pirf_ray.evaluation.report import field_scale

    colors = {"unguarded": "#D55E00", "guarded": "#009E73", "default": "#0072B2"}
    figure = Figure(figsize=(13, 8.5), layout="constrained", dpi=100)
    figure.suptitle(f"{result['env']}: a hacked reward, and what stops it", fontsize=12)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.3))[:, 0]
    limits = result["limits"]
    bounds: dict[str, list[float]] = {
        "residual": [],
        "amplitude_ratio": [1 - limits["guard_amplitude"], 1 + limits["guard_amplitude"]],
        "energy_ratio": [limits["guard_energy"]],
    }
    titles = {"residual": "mean residual", "amplitude_ratio": "amplitude / base", "energy_ratio": "energy distance / base"}
    for axes, (key, label) in zip(top.subplots(1, 3), titles.items(), strict=True):
        for name in WAYS:
            history = result[name]["history"]
            style = {"color": colors[name], "marker": "o", "ms": 4, "lw": 3 if name == "guarded" else 1.5}
            axes.plot([h["update"] for h in history], [h[key] for h in history], label=name, **style)
        for bound in bounds[key]:
            axes.axhline(bound, color="#999999", ls="-.", lw=1)
        axes.set(title=label, xlabel="update", yscale="log" if key != "amplitude_ratio" else "linear")
        axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    _draw_samples(bottom, fields, field_scale(torch.cat([x[:5, -1] for x in fields.values()]).numpy()))
    save(figure, path, dpi=figure.dpi)


def _draw_samples(part: Any, fields: dict[str, torch.Tensor], scale: tuple[Any, str]) -> None:
    """Rows: base, the three kept models (columns from the same noise), real data."""
    rows = ["base", *WAYS, "data"]
    count = min(6, *(len(x) for x in fields.values()))
    for panels, name in zip(part.subplots(len(rows), count, squeeze=False), rows, strict=True):
        for axes, field in zip(panels, fields[name], strict=False):
            axes.imshow(field[-1].numpy(), norm=scale[0], cmap=scale[1], origin="lower", aspect="auto")
            axes.set(xticks=[], yticks=[])
        panels[0].set_ylabel("real data" if name == "data" else name)


if __name__ == "__main__":
    run_command(main)
