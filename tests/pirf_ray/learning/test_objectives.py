"""Objectives: which evaluations carry gradient, what is drawn and from what, what it costs; low-rank factors; the guard's modes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess, State
from envs.numerics import seeding
from pirf_ray.diffusion.policy import Policy, switch_sigma
from pirf_ray.diffusion.sampling import advance
from pirf_ray.learning.objectives import OBJECTIVES, find_objective, register
from pirf_ray.learning.objectives.draft_lv import REPEATS
from pirf_ray.learning.parameters import layers
from pirf_ray.learning.parameters.base import ParameterSettings
from pirf_ray.learning.parameters.low_rank import LowRank
from pirf_ray.learning.rollouts.prefixes import Prefix, replay
from pirf_ray.metrics.cost import Meter
from pirf_ray.training.finetuning import FineTuning
from pirf_ray.training.models import load_model
from pirf_ray.training.settings import TrainConfig
from tiny_models import (
    EXACT,
    RESOLUTION,
    start_run,
    tiny_config,
    tiny_denoiser,
    tiny_learner,
    tiny_source,
    tiny_tuning,
)

STEPS = 4
SHAPE = (1, RESOLUTION, RESOLUTION)


def policy(dtype: torch.dtype = torch.float64) -> Policy:
    made = Policy(tiny_denoiser(dtype=dtype), scope="all", switch_sigma=switch_sigma(DenoisingProcess(STEPS), STEPS))
    layers.prepare(made.tuned, 0, "freeze")
    return made


def prefix(k: int, ids: Sequence[int] = (0, 1), solver: str = "heun", dtype: torch.dtype = torch.float64) -> Prefix:
    process = DenoisingProcess(STEPS, solver)
    noise = seeding.normal(0, "test", ids, SHAPE).to(dtype)
    with torch.no_grad():
        x = advance(process, policy(dtype).base_from, process.initial(noise), STEPS - k).x
    return Prefix(x=x, step=STEPS - k, sample_ids=tuple(ids), policy_version=0, base_output=None)


def made(name: str, k: int, *, update: int = 0, ids: Sequence[int] = (0, 1), by: Policy | None = None) -> list[torch.Tensor]:
    samples = OBJECTIVES[name].samples(DenoisingProcess(STEPS), by or policy(), prefix(k, ids), seed=3, update=update)
    return list(samples)


def gradient(x: torch.Tensor, by: Policy) -> torch.Tensor:
    grads = torch.autograd.grad(x.square().sum(), list(by.tuned.network.parameters()), allow_unused=True)
    parameters = by.tuned.network.parameters()
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)])


def test_pathwise_is_replay() -> None:
    by = policy()
    (x,) = made("pathwise", 2, by=by)
    assert torch.equal(x, replay(DenoisingProcess(STEPS), by, prefix(2).x, STEPS - 2))


def test_draft_lv_differentiates_the_last_evaluation_from_several_noises() -> None:
    by, process = policy(), DenoisingProcess(STEPS)
    first, *others = made("draft-lv", 1, by=by)
    assert len(others) == REPEATS - 1 == 1
    sigma = process.sigmas[STEPS - 1]
    noise = seeding.normal(3, "draft-lv 0 1", (0, 1), SHAPE)
    torch.testing.assert_close(others[0], by.tuned(first.detach() + sigma * noise, sigma))
    direct = by.tuned(first.detach() + sigma * noise, sigma)
    torch.testing.assert_close(gradient(others[0], by), gradient(direct, by))


def test_draft_lv_draws_by_seed_update_and_sample() -> None:
    pair, alone = made("draft-lv", 1, ids=(0, 1)), made("draft-lv", 1, ids=(1,))
    torch.testing.assert_close(pair[1][1:], alone[1])
    assert not torch.equal(made("draft-lv", 1, update=1)[1], pair[1])
    with pytest.raises(ValueError, match="truncation must be 1, got 2"):
        made("draft-lv", 2)


def drawn_steps(updates: int) -> list[int]:
    """k of AlignProp, told by which pathwise gradient it has."""
    by = policy()
    found = []
    for update in range(updates):
        (x,) = made("alignprop", 3, update=update, by=by)
        mine = gradient(x, by)
        for k in (1, 2, 3):
            process = DenoisingProcess(STEPS)
            with torch.no_grad():
                start = advance(process, by.denoisers(process), State(x=prefix(3).x, step=STEPS - 3), STEPS - k)
            if torch.allclose(mine, gradient(replay(process, by, start.x, start.step), by), rtol=1e-9, atol=0):
                found.append(k)
    return found


def test_alignprop_backpropagates_a_random_number_of_steps_exactly() -> None:
    """Checkpointing changes no gradient. Of 12 draws from three values one is missing with probability 3 (2/3)^12 = 2 %: the
    seed is fixed, and these draws have all."""
    found = drawn_steps(12)
    assert len(found) == 12
    assert set(found) == {1, 2, 3}
    assert found == drawn_steps(12)


def test_reft_rewards_one_prediction_at_a_drawn_step() -> None:
    by, process = policy(), DenoisingProcess(STEPS)
    steps = set()
    for update in range(8):
        (x,) = made("reft", 3, update=update, by=by)
        for step in range(STEPS - 3, STEPS):
            with torch.no_grad():
                state = advance(process, by.denoisers(process), State(x=prefix(3).x, step=STEPS - 3), step).x
            direct = by.tuned(state, process.sigmas[step])
            if torch.equal(x, direct):
                steps.add(step)
                torch.testing.assert_close(gradient(x, by), gradient(direct, by))
    assert steps == {1, 2, 3}


@pytest.mark.parametrize("solver", ["heun", "euler"])
@pytest.mark.parametrize(
    ("name", "k", "updates"), [("pathwise", 2, 1), ("draft-lv", 1, 1), ("alignprop", 3, 60), ("reft", 3, 60)]
)
def test_cost_is_what_the_meter_counts(name: str, k: int, updates: int, solver: str) -> None:
    """Of the random ones the mean over updates; their draws are uniform on three values, whose mean over 60 draws has a standard
    error of at most half the range / sqrt 60 = 6.5 % of the range: within 20 % of the mean here."""
    process, by = DenoisingProcess(STEPS, solver), policy(torch.float32)
    start = prefix(k, solver=solver, dtype=torch.float32)
    with Meter() as meter:
        for update in range(updates):
            for x in OBJECTIVES[name].samples(process, by, start, seed=0, update=update):
                x.sum().backward()
    spent = meter.cost.units / (2 * updates)
    assert spent == pytest.approx(OBJECTIVES[name].cost(process, k), rel=0.2 if updates > 1 else 1e-9)


def test_unknown_and_taken_names() -> None:
    with pytest.raises(ValueError, match=r"--objective: unknown objective 'x'; known: alignprop, draft-lv, pathwise, reft"):
        find_objective("x")
    with pytest.raises(ValueError, match="'pathwise' of .*Mine is taken by pirf_ray.learning.objectives.pathwise.Pathwise"):
        register("pathwise")(type("Mine", (), {}))


OWN = """
from pirf_ray.learning.objectives import register
from pirf_ray.learning.objectives.pathwise import Pathwise

@register("doubled")
class Doubled(Pathwise):
    def samples(self, process, policy, prefix, *, seed, update):
        return 2 * super().samples(process, policy, prefix, seed=seed, update=update)
"""


def test_an_objective_of_ones_own_is_named_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal samples of each prefix, their mean: the same update as of one."""
    (tmp_path / "own_objective.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PIRF_RAY_PDES", "")
    weights = {}
    for name in ("own_objective:doubled", "pathwise"):
        config = tiny_config(objective=name)
        trained = tiny_learner(config)
        trained.update(tiny_source(config).batch(0))
        weights[name] = torch.cat([w.flatten() for w in trained.weights().values()])
    torch.testing.assert_close(weights["own_objective:doubled"], weights["pathwise"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "k"), [("draft-lv", 1), ("alignprop", 2), ("reft", 2)])
def test_every_objective_trains_and_resumes_bit_for_bit(tmp_path: Path, name: str, k: int) -> None:
    rank = 2 if name == "alignprop" else 0
    config = tiny_config(**EXACT, truncation=k, objective=name, lora_rank=rank, anchor=0.0)
    whole = tuned(config, tmp_path / "whole")
    assert any(not torch.equal(w, whole.learner.reference[n]) for n, w in whole.learner.weights().items())
    part = start_run(tmp_path / "part", config)
    first = tiny_tuning(config, part)
    for _ in range(4):
        first._after_update(first.step())
    second = tiny_tuning(config, part)
    assert second.update == 4
    second.fit()
    for key, tensor in second.learner.weights().items():
        assert torch.equal(tensor, whole.learner.weights()[key])


def tuned(config: TrainConfig, path: Path) -> FineTuning:
    made = tiny_tuning(config, start_run(path, config))
    made.fit()
    return made


def test_factors_get_the_gradient_of_their_product() -> None:
    """dL/dA and dL/dB by autograd through W_0 + B A, against the pull-back of dL/dW."""
    weight = torch.nn.Parameter(seeding.normal(0, "w", [0], (6, 4, 3, 3))[0])
    bias = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    factors = LowRank({"w": weight, "b": bias}, 2, seed=1)
    down, up = factors.parameters()
    with torch.no_grad():
        up.copy_(seeding.normal(0, "up", [0], tuple(up.shape))[0])
    factors.write()
    x = seeding.normal(0, "x", range(2), (4, 5, 5))
    weight.grad = torch.autograd.grad(torch.conv2d(x, weight).square().sum(), weight)[0]
    factors.pull_back()
    product = (factors.start["w"].reshape(6, -1) + up @ down).reshape(weight.shape)
    expected = torch.autograd.grad(torch.conv2d(x, product).square().sum(), (down, up))
    torch.testing.assert_close((down.grad, up.grad), expected)
    assert list(factors.targets) == ["w"]
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LowRank({"w": weight}, 0)


def test_low_rank_updates_have_their_rank_and_leave_biases() -> None:
    config = tiny_config(lora_rank=2)
    trained = tiny_learner(config)
    for _ in range(3):
        trained.update(tiny_source(config).batch(0))
    for name, weight in trained.weights().items():
        change = weight - trained.reference[name]
        if weight.ndim < 2:
            assert torch.equal(change, torch.zeros_like(change))
        else:
            assert torch.linalg.matrix_rank(change.reshape(len(change), -1).double(), rtol=1e-3) <= 2
    assert trained.weights().keys() == tiny_learner(tiny_config()).weights().keys()


# Energy distances of the base over itself are 1: these limits refuse every model, the base too.
NARROW = {"guard_samples": 4, "guard_every": 2, "guard_energy": 1e-9, "guard_amplitude": 1e-9, "guard_spectrum": 1e-9}


def guarded(mode: str, path: Path) -> FineTuning:
    return tuned(tiny_config(guard=mode, guard_patience=1, **NARROW), path)


def test_an_enforced_guard_ends_the_training(tmp_path: Path) -> None:
    run = guarded("enforce", tmp_path)
    assert run.update == 0 and run._guard_state.stopped and run._guard_state.kept_update == 0


def test_a_watching_guard_records_and_stops_nothing(tmp_path: Path) -> None:
    run = guarded("watch", tmp_path)
    assert run.update == 6 and not run._guard_state.stopped and run._guard_state.kept_update == 6
    records = run.run.history()
    assert [r.update for r in records if r.guard] == [2, 4, 6]
    assert not any(r.guard.inside for r in records if r.guard)


def test_without_a_guard_nothing_is_measured_and_the_last_is_kept(tmp_path: Path) -> None:
    run = guarded("off", tmp_path)
    assert run.guard is None and run._guard_state.kept_update == 6
    assert not any(r.guard for r in run.run.history())
    policy_of_run = load_model(run.run.paths.root).model.policy
    last = run.learner.ema.tensors
    assert all(torch.equal(p, last[n]) for n, p in policy_of_run.tuned.network.named_parameters() if n in last)


def test_settings_of_objectives_that_cannot_work_are_named() -> None:
    with pytest.raises(ConfigError, match="--lora-rank must not be negative, got -1"):
        ParameterSettings(lora_rank=-1)
