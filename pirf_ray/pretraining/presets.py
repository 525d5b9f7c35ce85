"""Pretraining presets: one code path at three scales."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from envs.pdes import PDE
from pirf_ray.diffusion.networks import NetworkConfig
from pirf_ray.pretraining.trainer import PretrainSettings


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset decides."""

    settings: PretrainSettings
    training_samples: int
    parameters: dict[str, float] = field(default_factory=dict)
    """Of the PDE, where the preset's resolution cannot resolve the default's physics."""
    card_samples: int
    card_real: int


def smoke(pde_type: type[PDE]) -> Preset:
    """Seconds: for tests."""
    pde = pde_type(8)
    network = NetworkConfig(
        resolution=8, channels=len(pde.channels), model_channels=8, channel_mult=(1, 2), num_blocks=1, periodic=pde.grid.periodic
    )
    settings = PretrainSettings(network=network, images=640, batch=8, warmup_images=64, noise_mean=-2.5, noise_std=1.5)
    return Preset(settings=settings, training_samples=64, card_samples=16, card_real=32)


SMALL_NETWORKS: dict[str, dict[str, Any]] = {"Burgers-v0": {"model_channels": 32, "channel_mult": (1, 2, 2)}}
"""Where they differ from the preset's four narrow levels, which see the whole domain: elliptic solutions are global."""
SMALL_NOISE: dict[str, tuple[float, float]] = {"Darcy-v0": (-1.5, 1.8)}
"""Mean and standard deviation of ln sigma where sigma_data is not about .14. Darcy: .75, with a far smoother u."""


SMALL_PARAMETERS: dict[str, dict[str, float]] = {"Kolmogorov-v0": {"reynolds": 40.0}}
SMALL_SAMPLES: dict[str, int] = {"Kolmogorov-v0": 16_384}
"""Where solving takes minutes; each sample stands for all its images under the symmetries (16 n of Kolmogorov flow)."""


def small(pde_type: type[PDE]) -> Preset:
    """40 minutes on two cores: what ships. The noise law sits where the data's small scales are decided (sigma_data .14)."""
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
    """128x128 with the architecture of Yuan et al. 2025 and EDM's noise law, for GPUs."""
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
