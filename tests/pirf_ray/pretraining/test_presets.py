"""Pretraining presets: each fits every PDE that ships, and stored samples."""

from pathlib import Path

import pytest

from bare_pdes import clouds
from envs.pdes import REGISTRY
from pirf_ray import zoo
from pirf_ray.diffusion import checkpoints
from pirf_ray.pretraining.presets import PRESETS

FIVE = ["Burgers-v0", "Darcy-v0", "Helmholtz-v0", "Kolmogorov-v0", "Poisson-v0"]


@pytest.mark.parametrize("env_id", FIVE)
@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_network_fits_the_fields_of_the_pde(name: str, env_id: str) -> None:
    preset = PRESETS[name](REGISTRY[env_id])
    network = preset.settings.network
    pde = REGISTRY[env_id](network.resolution, **preset.parameters)
    assert pde.shape == (network.channels, network.resolution, network.resolution)
    assert network.periodic == pde.grid.periodic
    assert preset.training_samples >= preset.settings.batch and preset.card_real >= preset.card_samples


@pytest.mark.parametrize("env_id", FIVE)
def test_the_small_preset_makes_the_models_that_ship(env_id: str) -> None:
    """Architecture, parameters of the PDE, law of the noise and number of samples are equal."""
    preset = PRESETS["small"](REGISTRY[env_id])
    info, meta = checkpoints.load_meta(zoo.find(env_id, 32))
    assert info.network == preset.settings.network
    assert info.parameters == REGISTRY[env_id](32, **preset.parameters).parameters
    card = (zoo.find(env_id, 32) / "CARD.md").read_text()
    assert f"ln sigma ~ N({preset.settings.noise_mean}, {preset.settings.noise_std}^2)" in card
    assert meta["data"]["samples"] == preset.training_samples


@pytest.mark.parametrize("resolution", [8, 12, 20, 64])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_stored_samples_as_they_are(name: str, resolution: int, tmp_path: Path) -> None:
    """Stored samples have one resolution. Levels whose grids are too coarse or not whole are left out."""
    stored = clouds(tmp_path, rows=20, resolution=resolution)
    preset = PRESETS[name](stored)
    network = preset.settings.network
    assert (network.resolution, network.channels, network.periodic) == (resolution, 2, (True, False))
    assert network.resolutions[-1] >= 4
    assert preset.training_samples == 16, "all of the stream train"
