"""Whole pretrainings by the command: the start from another model, parameters of the PDE, the model card."""

import re
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from commands import refuse
from envs.pdes import REGISTRY, Burgers, make_pde, register
from pirf_ray import pretrain
from pirf_ray.diffusion import checkpoints
from tiny_pretraining import SMOKE

pytestmark = pytest.mark.usefixtures("short_cards")


def test_the_card_names_the_models_from_which_a_training_started(capsys, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pretrain.main([*SMOKE, "--out", str(first)])
    data = ["--data", str(first / "data.h5")]
    begun = ["--init", str(first / "model"), *data]
    pretrain.main([*SMOKE, "--out", str(second), *begun])
    card = (second / "model" / "CARD.md").read_text()
    assert re.search(r"- Began with the Burgers-v0 model `\w+`, which had seen 96 images", card)
    assert "- Images shown in all: 192" in card
    third = tmp_path / "third"
    pretrain.main([*SMOKE, "--out", str(third), "--init", str(second / "model"), *data])
    card_of_third = (third / "model" / "CARD.md").read_text()
    assert re.search(r"- Model `\w+` began with the Burgers-v0 model `\w+`, which had seen 96 images", card_of_third)
    assert "- Images shown in all: 288" in card_of_third
    assert "--images 96 --warmup-images 16 --data FILE.h5 --init MODEL --out DIR`" in card
    assert "num_blocks" in refuse(pretrain.main, [*SMOKE, "--out", str(tmp_path / "x"), *begun, "--num-blocks", "2"], capsys)
    gone = ["--init", str(tmp_path / "gone"), *data]
    assert "no such checkpoint" in refuse(pretrain.main, [*SMOKE, "--out", str(tmp_path / "y"), *gone], capsys)
    assert not (tmp_path / "y").exists()


@pytest.fixture
def viscous() -> Iterator[str]:
    """Register a PDE with a parameter and yield its id."""

    @register
    class Viscous(Burgers):
        env_id = "Viscous-v0"
        default_parameters = {"strength": 1.0}  # noqa: RUF012

        def solve(self, seed, stream, sample_ids):
            return self.parameters["strength"] * super().solve(seed, stream, sample_ids)

    yield Viscous.env_id
    del REGISTRY._parts[Viscous.env_id], gymnasium.registry[Viscous.env_id]


def test_parameters_of_the_pde_reach_data_model_and_card(viscous: str, capsys, tmp_path: Path) -> None:
    flags = ["--env", viscous, *SMOKE, "--parameters", "strength", "0.5"]
    pretrain.main([*flags, "--out", str(tmp_path / "out")])
    info, _ = checkpoints.load_meta(tmp_path / "out" / "model")
    assert info.parameters == {"strength": 0.5}
    assert info.pde() == make_pde(viscous, 8, strength=0.5)
    card = (tmp_path / "out" / "model" / "CARD.md").read_text()
    assert "strength = 0.5" in card
    assert "--parameters strength 0.5" in card
    half = info.sigma_data
    pretrain.main(["--env", viscous, *SMOKE, "--out", str(tmp_path / "full")])
    assert checkpoints.load_meta(tmp_path / "full" / "model")[0].sigma_data == pytest.approx(2 * half, rel=1e-3)
    resumed = ["--env", viscous, *SMOKE, "--out", str(tmp_path / "out"), "--resume"]
    assert "strength" in refuse(pretrain.main, resumed, capsys)  # the file's parameters are not the default ones
    unknown = ["--env", viscous, *SMOKE, "--parameters", "mass", "2", "--out", str(tmp_path / "x")]
    assert "unknown parameter 'mass' of Viscous-v0; known: ['strength']" in refuse(pretrain.main, unknown, capsys)
