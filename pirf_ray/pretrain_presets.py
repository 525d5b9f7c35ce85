"""Pretraining presets: one code path at three scales."""

from collections.abc import Callable
from dataclasses import dataclass

from envs.pdes import PDE
from pirf_ray.networks import NetworkConfig
from pirf_ray.pretraining import PretrainSettings


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset decides."""

    settings: PretrainSettings
    training_samples: int
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


def small(pde_type: type[PDE]) -> Preset:
    """40 minutes on two cores: what ships. The noise law sits where the data's small scales are decided (sigma_data .14)."""
    pde = pde_type(32)
    network = NetworkConfig(channels=len(pde.channels), num_blocks=1, periodic=pde.grid.periodic)
    settings = PretrainSettings(network=network, images=224_000, noise_mean=-2.5, noise_std=1.5)
    return Preset(settings=settings, training_samples=32_768, card_samples=1024, card_real=2048)


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
