"""Planning: the cost of each update before it is made, and the updates that a budget pays for."""

from itertools import islice

import pytest
import torch

from envs.common.checks import ConfigError
from pirf_ray.learning.rollouts import Prefix, Rollouts, Sample, Trajectory
from pirf_ray.methods.planning import outline, update_costs, updates_within
from pirf_ray.metrics.cost import Meter
from pirf_ray.training.settings import TrainConfig
from tiny_models import EXACT, tiny_config, tiny_info, tiny_tuning

PLAIN = {"regularizers": ("l2",), "guard": "off", "updates": 6}
CONFIGS = {
    "fresh": {**EXACT, **PLAIN},
    "reused": {**EXACT, **PLAIN, "reuse": 2, "staleness": 1},
    "pool with base outputs": {"guard": "off", "updates": 6},
    "random depth": {**EXACT, **PLAIN, "objective": "alignprop", "truncation": 3},
    "random step": {**EXACT, **PLAIN, "objective": "reft", "truncation": 3, "seed": 3},
    "trajectories": {**EXACT, **PLAIN, "objective": "policy-gradient", "solver": "stochastic", "group": 2},
    "samples": {**EXACT, **PLAIN, "objective": "forward-process", "group": 2},
    "data": {**EXACT, **PLAIN, "objective": "pidm", "pidm_estimate": "sample", "data_fields": 8},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_planned_cost_of_every_update_is_the_metered_one(name: str) -> None:
    config = tiny_config(**CONFIGS[name])
    tuning, metered = tiny_tuning(config), []
    for _ in range(config.optimizer.updates):
        with Meter() as meter:
            tuning.step()
        metered.append(meter.cost.units)
    assert list(islice(update_costs(config, tiny_info()), len(metered))) == metered


def test_a_budget_pays_for_as_many_updates_as_fit() -> None:
    config = tiny_config(**CONFIGS["random depth"])
    costs = list(islice(update_costs(config, tiny_info()), 5))
    assert len(set(costs)) > 1
    for updates in range(1, 5):
        paid = sum(costs[:updates])
        assert updates_within(config, tiny_info(), paid) == updates
        assert updates_within(config, tiny_info(), paid + costs[updates] - 1) == updates
    with pytest.raises(ConfigError, match=rf"--budget 5 pays for no update: the first costs {costs[0]:g} network forwards"):
        updates_within(config, tiny_info(), 5)


def test_an_update_that_costs_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pirf_ray.methods.planning.update_costs", lambda config, info: iter([0.0]))
    with pytest.raises(ConfigError, match="--objective pathwise: update 0 evaluates no network, so no budget ends a training"):
        updates_within(TrainConfig(), tiny_info(), 100.0)


@pytest.mark.parametrize("kind", [Prefix, Sample, Trajectory])
def test_outlines_have_shapes_and_no_values(kind: type[Rollouts]) -> None:
    made = outline(kind, (4, 5), (2, 2), (1, 8, 8), num_steps=3, start=1)
    assert isinstance(made, kind) and len(made) == 2 and made.groups == (2, 2)
    assert made.x.device == torch.device("meta") and made.x.shape[-4:] == (2, 1, 8, 8)
    with pytest.raises(TypeError, match="the cost of rollouts of the kind Rollouts is not known; known: Prefix"):
        outline(Rollouts, (4,), (4,), (1, 8, 8), num_steps=3, start=1)
