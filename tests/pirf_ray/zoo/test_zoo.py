"""The five base models that ship: size, cards, one update of fine-tuning."""

import pytest

from commands import refuse
from pirf_ray import api, train, zoo
from pirf_ray.diffusion import checkpoints
from pirf_ray.training.presets import small
from pirf_ray.training.records import UpdateRecord

FIVE = ["Burgers-v0", "Darcy-v0", "Helmholtz-v0", "Kolmogorov-v0", "Poisson-v0"]
MEGABYTE = 1024**2


def test_five_models_ship_within_the_repositorys_limits() -> None:
    assert sorted(zoo.shipped()) == [(name, 32) for name in FIVE]
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in zoo.shipped().values()]
    assert max(sizes) < 20 * MEGABYTE
    assert sum(sizes) < 60 * MEGABYTE


@pytest.mark.parametrize("name", FIVE)
def test_cards_say_what_a_user_must_know(name: str) -> None:
    path = zoo.find(name, 32)
    card = (path / "CARD.md").read_text()
    for part in (
        "Command:",
        "Data:",
        "Images shown:",
        "training loss",
        "sigma_data",
        "| 10 | 19 |",
        "| 20 | 39 |",
        "| 40 | 79 |",
    ):
        assert part in card
    info, meta = checkpoints.load_meta(path)
    assert f"{meta['images']:,}" in card
    for parameter, value in info.parameters.items():
        assert f"{parameter} = {value:g}" in card


@pytest.mark.parametrize("name", FIVE)
def test_each_is_fine_tuned_by_the_small_preset(name: str) -> None:
    """The samples of the first update are the base model's, and the conditions of the PDE stand in the record."""
    model = api.load(name)
    assert small(name).env == name
    records: list[UpdateRecord] = []
    quick = {"updates": 1, "batch": 8, "micro_batch": 8, "pool": 8, "pool_start": 8, "guard_samples": 4}
    api.fine_tune(model, on_record=records.append, num_steps=5, **quick)
    terms = records[0].metrics.terms
    assert set(model.pde.conditions) <= {name for name, term in terms.items() if not term.is_residual}
    assert terms["consistent"].mean > records[0].guard.residual * 0.01


@pytest.mark.parametrize("name", FIVE)
def test_every_presets_terms_can_be_weighed_by_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A preset with its own weights would turn --weights into other flags."""
    assert not small(name).reward_settings.weights
    assert f"--weights: {name} has no term nothing" in refuse(train.main, ["--env", name, "--weights", "nothing", "1"], capsys)
