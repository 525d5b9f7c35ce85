"""The base models that ship with the package. Each is a directory zoo/<env id>/<resolution>/ with a model card, CARD.md."""

from pathlib import Path

from pirf_ray.diffusion.checkpoints import CheckpointError

ROOT = Path(__file__).parent


def shipped() -> dict[tuple[str, int], Path]:
    """Return the directories of the shipped models by env id and resolution."""
    return {(p.parent.parent.name, int(p.parent.name)): p.parent for p in ROOT.glob("*/*/meta.json")}


def find(env_id: str, resolution: int | None = None) -> Path:
    """Return the directory of a shipped base model, by default of the smallest resolution. CheckpointError names the others."""
    models = shipped()
    if resolution is None:
        resolution = min((n for env, n in models if env == env_id), default=None)
    if resolution is None or (env_id, resolution) not in models:
        known = ", ".join(f"{env} at {n}x{n}" for env, n in sorted(models))
        at = f" at {resolution}x{resolution}" if resolution else ""
        raise CheckpointError(
            f"no base model for {env_id}{at} ships with the package (shipped: {known or 'none'}); "
            f"give your own with --base, or train one with python -m pirf_ray.pretrain"
        )
    return models[env_id, resolution]
