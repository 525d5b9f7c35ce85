"""The guard: what it keeps by, PDEs that leave parts out, policies with other first noise."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bare_pdes import Heat, clouds
from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess
from envs.numerics.conditions import Condition
from envs.pdes import PDE
from envs.rewards import Reward
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.policy import Policy, PolicySettings, make_policy
from pirf_ray.metrics.drift import Drift, DriftLimits
from pirf_ray.training.guard import Guard, GuardMetrics, GuardSettings
from pirf_ray.training.models import load_model
from recorded_reward import RecordedReward
from tiny_models import start_run, tiny_config, tiny_denoiser, tiny_info, tiny_network, tiny_tuning

WIDE = {"guard_amplitude": 1e9, "guard_energy": 1e9, "guard_spectrum": 1e9}
STEPS = 3


def policy(*, scope: str = "tail", channels: int = 1, tuned: Denoiser | None = None) -> Policy:
    base = tiny_denoiser() if channels == 1 else Denoiser(tiny_network(channels=channels), 0.5).eval()
    return make_policy(base, DenoisingProcess(STEPS), PolicySettings(truncation=2, scope=scope), tuned)


def guard(pde: PDE, of: Policy, *, reward: Reward | None = None, **settings: Any) -> Guard:
    chosen = GuardSettings(**{"guard_samples": 4, **WIDE, **settings})
    return Guard(chosen, pde, DenoisingProcess(STEPS), of, seed=0, reward=reward)


def metrics(*, residual: float | None = 1.0, reward: float | None = None, inside: bool = True) -> GuardMetrics:
    return GuardMetrics(
        residual=residual,
        residual_median=residual,
        over_floor=residual,
        base_residual=residual,
        reward=reward,
        drift=Drift(amplitude_ratio=1.0, energy_ratio=1.0, spectrum_rise=0.0),
        limits=DriftLimits(),
        inside=inside,
    )


def kept(*evaluations: GuardMetrics, **settings: Any) -> list[bool]:
    watch = guard(tiny_info().pde(), policy(), **settings)
    return [watch.keeps(update, measured) for update, measured in enumerate(evaluations)]


def test_a_physics_reward_is_kept_by_its_residual() -> None:
    assert kept(*(metrics(residual=r) for r in (1.0, 0.5, 0.7, 0.4))) == [True, True, False, True]


def test_another_reward_is_kept_by_itself_whatever_the_residual() -> None:
    """A higher reward is better, and the residual may rise."""
    found = kept(*(metrics(reward=r, residual=s) for r, s in ((-3.0, 1.0), (-1.0, 2.0), (-2.0, 0.1), (0.5, 9.0))))
    assert found == [True, True, False, True]


def test_outside_the_limits_nothing_is_kept_by_any_reward() -> None:
    assert kept(metrics(reward=-3.0), metrics(reward=9.0, inside=False), metrics(reward=-2.0)) == [True, False, True]


def test_the_reward_of_the_guards_samples_is_measured_once_in_physical_units() -> None:
    reward = RecordedReward()
    made = policy()
    pde = tiny_info().pde()
    found = guard(pde, made, reward=reward).measure(made)
    (call,) = reward.calls
    assert len(call.fields) == 4 and not call.with_graph
    assert found.reward == pytest.approx(-call.fields.square().mean().item(), rel=1e-5)
    assert found.score == -found.reward and found.residual is not None
    record = found.to_json()
    assert record["guard/reward"] == found.reward and GuardMetrics.from_json(record) == found


def test_a_training_by_an_own_reward_keeps_the_best_by_it(tmp_path: Path) -> None:
    """The kept update is the one with the highest measured reward. A reward without gradient needs no residual to be chosen."""
    config = tiny_config(
        objective="preference",
        preference_beta=5.0,
        online=True,
        group=2,
        regularizers=("l2",),
        strategy="fresh",
        guard_every=1,
        learning_rate=3e-2,
    )
    records = []
    tuning = tiny_tuning(config, start_run(tmp_path, config), reward=RecordedReward())
    state = tuning.fit(records.append)
    base = tuning.guard.measure(tuning.learner.policies.base)
    rewards = {0: base.reward} | {r.update: r.guard.reward for r in records}
    assert state.kept_update == max(rewards, key=rewards.get)
    assert state.kept_residual == pytest.approx(-max(rewards.values()), rel=1e-6)


def test_a_pde_without_operators_is_guarded_without_a_residual(tmp_path: Path) -> None:
    """Its data are stored samples, of which the validation has fewer than the guard asks for."""
    pde = clouds(tmp_path)()
    made = policy(channels=2)
    watch = guard(pde, made, reward=RecordedReward())
    assert len(watch.real) == pde.available("validation") < 64
    found = watch.measure(made)
    assert (found.residual, found.over_floor, found.base_residual) == (None, None, None)
    assert found.drift.amplitude_ratio == 1 and found.inside
    assert "guard/residual" not in found.to_json() and GuardMetrics.from_json(found.to_json()) == found
    assert [watch.keeps(0, found), watch.keeps(1, replace(found, reward=found.reward + 1))] == [True, True]


def test_without_operators_and_without_a_reward_the_first_model_inside_stays(tmp_path: Path) -> None:
    """Nothing tells the models apart."""
    made = policy(channels=2)
    watch = guard(clouds(tmp_path)(), made)
    found = watch.measure(made)
    assert found.score == float("inf") and [watch.keeps(u, found) for u in (0, 1)] == [True, False]


def test_a_pde_without_held_out_data_needs_no_guard() -> None:
    with pytest.raises(ConfigError, match=r"Heat-v0.*--guard off"):
        guard(Heat(), policy())


class Shifted(Denoiser):
    """A denoiser that learns a shift of the first noise."""

    draws_first_noise = True
    shift = 0.0

    def first_noise(self, noise: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        return noise + self.shift


@pytest.mark.parametrize(("scope", "moves"), [("all", True), ("tail", False)])
def test_a_policy_with_other_first_noise_is_measured_from_it(scope: str, moves: bool) -> None:
    """The base model's samples stay those of the plain noise. With scope ``tail`` the base model makes the first steps."""
    tuned = Shifted(tiny_network(), 0.14)
    tuned.load_state_dict(tiny_denoiser().state_dict())
    made = policy(scope=scope, tuned=tuned)
    watch = guard(tiny_info().pde(), made)
    before = watch.measure(made)
    assert before.drift.amplitude_ratio == pytest.approx(1, abs=1e-6)
    tuned.shift = 0.5
    assert (watch.measure(made).drift != before.drift) == moves
    again = guard(tiny_info().pde(), made)  # as in a resumed training
    assert again.base_residual == watch.base_residual and torch.equal(again.base.spectrum, watch.base.spectrum)


def test_stochastic_samples_are_measured_on_the_same_noise_each_time() -> None:
    config = tiny_config(solver="stochastic", truncation=3, regularizers=("l2",))
    tuning = tiny_tuning(config)
    first, second = (tuning.guard.measure(tuning.learner.policy) for _ in range(2))
    assert first == second and first.drift.amplitude_ratio == pytest.approx(1, abs=1e-6)
    other = copy.deepcopy(tuning.learner.policy)
    other.load_learned(dict(tiny_denoiser(seed=1).network.named_parameters()))
    assert tuning.guard.measure(other).residual != first.residual


def test_a_kept_model_of_an_own_reward_is_loaded(tmp_path: Path) -> None:
    config = tiny_config(updates=2, guard_every=1)
    run = start_run(tmp_path, config)
    tiny_tuning(config, run, reward=RecordedReward(differentiable=True)).fit()
    assert load_model(run.paths.root).model.sample(range(2), seed=0, stream="t")["tuned"].isfinite().all()
