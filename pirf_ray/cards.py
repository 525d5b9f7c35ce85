"""Model cards: what a base model was trained on and how good it is, measured."""

from pathlib import Path
from typing import Any

from pirf_ray.checkpoints import ModelInfo


def write_card(
    path: Path,
    info: ModelInfo,
    meta: dict[str, Any],
    config: dict[str, Any],
    results: dict[int, dict[str, Any]],
    *,
    command: str,
) -> None:
    """CARD.md beside the weights. ``results``: an evaluation for each number of sampler steps."""
    parameters = sum(p.numel() for p in info.build().parameters())
    first = next(iter(results.values()))
    operator, witness = first["default_operator"], first["unrewarded_operator"]
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
        f"## Measured: {first['num_samples']} samples against {first['num_real']} held-out solutions (evaluation seed {first['seed']})",
        "",
        f"| N | NFE | `{operator}` residual, mean (95%) | median | over floor | `{witness}` residual | re-solve error, median "
        "| amplitude ratio | energy distance | over real against real |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(steps, result, operator, witness) for steps, result in results.items()]
    lines += ["", _real(first, operator, witness), ""]
    path.write_text("\n".join(lines))


def _origin(info: ModelInfo, meta: dict[str, Any]) -> list[str]:
    """Parameters of the PDE, and the model that the training began with."""
    lines = []
    if info.parameters:
        lines.append(f"- Parameters of the PDE: {', '.join(f'{name} = {value:g}' for name, value in info.parameters.items())}")
    init, images = meta.get("init"), [meta["images"]]
    while init:
        seen = f", which had seen {init['images']:,} images" if init["images"] is not None else ""
        lines.append(
            f"- {'Began' if len(images) == 1 else 'That one began'} with the {init['env_id']} model `{init['weights']}`{seen}"
        )
        images.append(init["images"])
        init = init.get("init")
    if len(images) > 1 and None not in images:
        lines.append(f"- Images shown in all: {sum(images):,}")
    return lines


def _row(steps: int, result: dict[str, Any], operator: str, witness: str) -> str:
    f = result["base"]
    low, high = f[f"residual/{operator}/mean_interval"]
    cells = [
        str(steps),
        str(result["sampler"]["nfe"]),
        f"{f[f'residual/{operator}/mean']:.4g} ({low:.3g} to {high:.3g})",
        f"{f[f'residual/{operator}/median']:.3g}",
        f"{f[f'residual/{operator}/over_floor']:.3g}",
        f"{f[f'residual/{witness}/mean']:.4g}",
        f"{f['resolve/median']:.3g}",
        f"{f['fidelity/amplitude_ratio']:.4f}",
        f"{f['fidelity/energy_distance']:.4f}",
        f"{f['fidelity/energy_distance_ratio_to_data']:.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _real(result: dict[str, Any], operator: str, witness: str) -> str:
    f = result["data"]
    return (
        f"Real against real, in the same way: `{operator}` {f[f'residual/{operator}/mean']:.3g} (the floor), "
        f"`{witness}` {f[f'residual/{witness}/mean']:.3g}, re-solve error {f['resolve/median']:.3g}, "
        f"amplitude ratio {f['fidelity/amplitude_ratio']:.4f}, energy distance {f['fidelity/energy_distance']:.4f}."
    )
