"""Pretraining presets: one code path at three scales."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from envs.pdes import PDE
from pirf_ray.diffusion.networks import NetworkConfig
from pirf_ray.pretraining.trainer import PretrainSettings


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a pretraining at one scale."""

    settings: PretrainSettings
    """Settings of the training."""
    training_samples: int
    """Number of solver samples to train on."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Parameters of the PDE, if the resolution is too coarse for the default parameters."""
    card_samples: int
    """Number of samples that the model card measures."""
    card_real: int
    """Number of held-out fields that the model card compares with."""


def smoke(pde_type: type[PDE]) -> Preset:
    """Return a preset of seconds, for tests."""
    pde = pde_type(8)
    network = NetworkConfig(
        resolution=8, channels=len(pde.channels), model_channels=8, channel_mult=(1, 2), num_blocks=1, periodic=pde.grid.periodic
    )
    settings = PretrainSettings(network=network, images=640, batch=8, warmup_images=64, noise_mean=-2.5, noise_std=1.5)
    return Preset(settings=settings, training_samples=64, card_samples=16, card_real=32)


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
    pde = pde_type(32)
    architecture = SMALL_NETWORKS.get(pde.env_id, {"model_channels": 24, "channel_mult": (1, 1, 2, 3)})
    network = NetworkConfig(channels=len(pde.channels), num_blocks=1, periodic=pde.grid.periodic, **architecture)
    mean, std = SMALL_NOISE.get(pde.env_id, (-2.5, 1.5))
    settings = PretrainSettings(network=network, images=224_000, noise_mean=mean, noise_std=std)
    return Preset(
        settings=settings,
        training_samples=SMALL_SAMPLES.get(pde.env_id, 32_768),
        parameters=SMALL_PARAMETERS.get(pde.env_id, {}),
        card_samples=512,
        card_real=2048,
    )


def paper(pde_type: type[PDE]) -> Preset:
    """Return a preset for GPUs: 128x128, the architecture of Yuan et al. (2025, arXiv 2509.20570), EDM's noise law."""
    pde = pde_type(128)
    network = NetworkConfig(
        resolution=128,
        channels=len(pde.channels),
        model_channels=128,
        channel_mult=(2, 2, 2),
        num_blocks=4,
        attn_resolutions=(16,),
        periodic=pde.grid.periodic,
    )
    settings = PretrainSettings(
        network=network, images=10_000_000, batch=128, learning_rate=2e-4, warmup_images=1_000_000, ema_decay=0.9995
    )
    return Preset(settings=settings, training_samples=50_000, card_samples=1024, card_real=2048)


PRESETS: dict[str, Callable[[type[PDE]], Preset]] = {"smoke": smoke, "small": small, "paper": paper}
