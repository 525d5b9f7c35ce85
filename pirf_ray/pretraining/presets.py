"""Pretraining presets: one code path at three scales."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from envs.pdes import PDE
from envs.pdes.samples import TRAIN_STREAM, SampledPDE
from pirf_ray.diffusion.networks import NetworkConfig
from pirf_ray.pretraining.trainer import PretrainSettings


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a pretraining at one scale."""

    settings: PretrainSettings
    """Settings of the training."""
    training_samples: int
    """Number of solver samples to train on, or of stored samples."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Parameters of the PDE, if the resolution is too coarse for the default parameters."""
    card_samples: int
    """Number of samples that the model card measures."""
    card_real: int
    """Number of held-out fields that the model card compares with."""


COARSEST = 4
"""Smallest number of rows of a network's coarsest level. Stored samples may be of any resolution."""


def _on_grid(pde_type: type[PDE], resolution: int) -> PDE:
    """Return the PDE at a resolution. Stored samples have one resolution only, the default of their class."""
    return pde_type() if issubclass(pde_type, SampledPDE) else pde_type(resolution)


def _at_most(pde: PDE, samples: int) -> int:
    """Return the number of training samples, or of all stored ones if there are fewer."""
    available = pde.available(TRAIN_STREAM)
    return samples if available is None else min(samples, available)


def _levels(channel_mult: tuple[int, ...], resolution: int) -> tuple[int, ...]:
    """Return the levels whose grids are whole and have at least COARSEST rows, at least one level."""
    fitting = [n for n in range(1, len(channel_mult) + 1) if resolution % 2 ** (n - 1) == 0 and resolution >> (n - 1) >= COARSEST]
    return channel_mult[: max(fitting, default=1)]


def smoke(pde_type: type[PDE]) -> Preset:
    """Return a preset of seconds, for tests."""
    pde = _on_grid(pde_type, 8)
    network = NetworkConfig(
        resolution=pde.resolution,
        channels=len(pde.channels),
        model_channels=8,
        channel_mult=_levels((1, 2), pde.resolution),
        num_blocks=1,
        periodic=pde.grid.periodic,
    )
    settings = PretrainSettings(network=network, images=640, batch=8, warmup_images=64, noise_mean=-2.5, noise_std=1.5)
    return Preset(settings=settings, training_samples=_at_most(pde, 64), card_samples=16, card_real=32)


SMALL_NETWORKS: dict[str, dict[str, Any]] = {"Burgers-v0": {"model_channels": 32, "channel_mult": (1, 2, 2)}}
"""Architectures that differ from the preset's four narrow levels. Four levels see the whole domain, as elliptic solutions do."""
SMALL_NOISE: dict[str, tuple[float, float]] = {"Darcy-v0": (-1.5, 1.8)}
"""Mean and standard deviation of ln sigma for data whose sigma_data is not about 0.14. Darcy's is 0.72, and its u is smoother."""
SMALL_PARAMETERS: dict[str, dict[str, float]] = {"Kolmogorov-v0": {"reynolds": 40.0}}
"""Parameters of PDEs whose default physics 32x32 points do not resolve."""
SMALL_SAMPLES: dict[str, int] = {"Kolmogorov-v0": 16_384}
"""Numbers of training samples of PDEs whose solver takes minutes. Each sample of Kolmogorov flow has 16 n symmetric images."""


def small(pde_type: type[PDE]) -> Preset:
    """Return the preset of the shipped models, 40 minutes on two cores.

    The law of ln sigma has its weight at the noise levels that decide the small scales of the data (sigma_data 0.14).
    """
    pde = _on_grid(pde_type, 32)
    architecture = SMALL_NETWORKS.get(pde.env_id, {"model_channels": 24, "channel_mult": (1, 1, 2, 3)})
    network = NetworkConfig(
        resolution=pde.resolution,
        channels=len(pde.channels),
        model_channels=architecture["model_channels"],
        channel_mult=_levels(architecture["channel_mult"], pde.resolution),
        num_blocks=1,
        periodic=pde.grid.periodic,
    )
    mean, std = SMALL_NOISE.get(pde.env_id, (-2.5, 1.5))
    settings = PretrainSettings(network=network, images=224_000, noise_mean=mean, noise_std=std)
    return Preset(
        settings=settings,
        training_samples=_at_most(pde, SMALL_SAMPLES.get(pde.env_id, 32_768)),
        parameters=SMALL_PARAMETERS.get(pde.env_id, {}),
        card_samples=512,
        card_real=2048,
    )


def paper(pde_type: type[PDE]) -> Preset:
    """Return a preset for GPUs: 128x128, the architecture of Yuan et al. (2025, arXiv 2509.20570), EDM's noise law."""
    pde = _on_grid(pde_type, 128)
    network = NetworkConfig(
        resolution=pde.resolution,
        channels=len(pde.channels),
        model_channels=128,
        channel_mult=_levels((2, 2, 2), pde.resolution),
        num_blocks=4,
        attn_resolutions=(16,),
        periodic=pde.grid.periodic,
    )
    settings = PretrainSettings(
        network=network, images=10_000_000, batch=128, learning_rate=2e-4, warmup_images=1_000_000, ema_decay=0.9995
    )
    return Preset(settings=settings, training_samples=_at_most(pde, 50_000), card_samples=1024, card_real=2048)


PRESETS: dict[str, Callable[[type[PDE]], Preset]] = {"smoke": smoke, "small": small, "paper": paper}
