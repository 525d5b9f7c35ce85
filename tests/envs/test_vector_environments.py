"""The environment of a batch: agreement with the single one, seeds, Gymnasium's vector wrappers, tensors and gradients."""

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics

import envs  # noqa: F401  (registers the environments)
from envs.denoising import State
from envs.environments import DenoisingEnv, DenoisingVectorEnv
from envs.numbering import Numbering
from envs.numerics.conditions import Condition
from envs.rewards import RewardOutput

RESOLUTION = 8
SMALL: dict[str, Any] = {"resolution": RESOLUTION, "num_steps": 3}
SOLVERS = {"heun": 5, "euler": 3, "2m": 3, "stochastic": 3}
"""Evaluations of three steps."""


class Energy:
    """Reward -mean(u^2)."""

    scope = "sample"

    def __init__(self, differentiable: bool = True) -> None:
        self.differentiable = differentiable

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        if not self.differentiable:
            fields = torch.from_numpy(fields.numpy().copy())  # a tensor on a graph has no array
        energy = fields.square().flatten(1).mean(1)
        scale = condition["scale"] if condition else 1.0
        return RewardOutput(reward=-scale * energy, parts={"energy": energy}, violations={"size": energy.sqrt()})


def vector(num_envs: int = 3, **changes: Any) -> DenoisingVectorEnv:
    env = gymnasium.make_vec("envs:Burgers-v0", num_envs=num_envs, **{**SMALL, "reward": Energy(), **changes})
    assert isinstance(env, DenoisingVectorEnv)
    return env


def single(**changes: Any) -> DenoisingEnv:
    env = gymnasium.make("envs:Burgers-v0", **{**SMALL, "reward": Energy(), **changes}).unwrapped
    assert isinstance(env, DenoisingEnv)
    return env


def act(observation: dict[str, Any]) -> Any:
    """A policy without rounding of its own: x / 128, clipped, for arrays and tensors."""
    return (observation["x"] / 128).clip(-1, 1)


def episode(env: Any, **reset: Any) -> tuple[list[dict[str, Any]], Any, dict[str, Any]]:
    """Return the observations, the last rewards and the last ``info`` of an episode."""
    seen, ended = [env.reset(**reset)[0]], False
    while not ended:
        observation, reward, terminated, _, info = env.step(act(seen[-1]))
        seen.append(observation)
        ended = bool(np.asarray(terminated).all())
    return seen, reward, info


def same(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> bool:
    """Whether two lists of observations have the same bits."""
    assert len(one) == len(two)
    return all(np.array_equal(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in a)


def row(seen: list[dict[str, Any]], i: int) -> list[dict[str, Any]]:
    return [{name: value[i] for name, value in observation.items()} for observation in seen]


def check_vector_env(env: Any, num_envs: int, evaluations: int) -> None:
    """Check the rules of Gymnasium's vector API over two episodes: spaces, types, shapes, flags and resets."""
    assert env.num_envs == num_envs and env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(evaluations)]
    episodes = []
    for mask in (None, np.ones(num_envs, dtype=bool)):
        observation, info = env.reset(seed=11, options=None if mask is None else {"reset_mask": mask})
        seen = [observation]
        assert isinstance(info, dict)
        for count, action in enumerate(actions, 1):
            observation, reward, terminated, truncated, info = env.step(action)
            seen.append(observation)
            assert reward.shape == (num_envs,) and reward.dtype == np.float64
            for flags in (terminated, truncated):
                assert flags.shape == (num_envs,) and flags.dtype == np.bool_
            assert (terminated == (count == evaluations)).all() and not truncated.any()
            assert (reward == 0).all() == (count < evaluations)
        episodes.append(seen)
        for observation in seen:
            assert env.observation_space.contains(observation)
            for i in range(num_envs):
                one = {name: value[i] for name, value in observation.items()}
                assert env.single_observation_space.contains(one)
        for a, b in itertools.combinations(seen, 2):
            assert not any(np.shares_memory(a[name], b[name]) for name in a)
    assert same(*episodes)
    if num_envs > 1:
        some = np.arange(num_envs) == 0
        with pytest.raises(ValueError, match="all sub-environments end together: reset_mask must be all True"):
            env.reset(options={"reset_mask": some})


@pytest.mark.parametrize(("solver", "evaluations"), SOLVERS.items())
@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_vector_environment_follows_gymnasiums_rules(num_envs: int, solver: str, evaluations: int) -> None:
    env = vector(num_envs, solver=solver)
    check_vector_env(env, num_envs, evaluations)
    assert env.unwrapped.observation_space["x"].shape == (num_envs, 1, RESOLUTION, RESOLUTION)


@pytest.mark.parametrize("solver", SOLVERS)
def test_row_0_equals_the_single_environment_bit_for_bit(solver: str) -> None:
    """Steps are elementwise, so their bits do not depend on the batch. A reward sums, so it may round differently."""
    (ours, reward, info), (theirs, rewards, infos) = (
        episode(single(solver=solver), seed=5),
        episode(vector(solver=solver), seed=5),
    )
    assert same(ours, row(theirs, 0))
    assert rewards[0] == pytest.approx(reward, rel=1e-6)
    np.testing.assert_array_equal(info["fields"], infos["fields"][0])
    assert infos["parts"]["energy"][0] == pytest.approx(info["parts"]["energy"], rel=1e-6)
    assert info["violations"].keys() == infos["violations"].keys() == {"size"}


@pytest.mark.parametrize("solver", ["heun", "stochastic"])
def test_a_list_of_seeds_gives_the_rows_of_single_environments(solver: str) -> None:
    """Gymnasium's own vector environment of single ones has the same bits, now and after a reset without seeds."""
    seeds, ours = [4, 9, 4], vector(solver=solver)
    theirs = gymnasium.make_vec("envs:Burgers-v0", 3, "sync", reward=Energy(), solver=solver, **SMALL)
    for seed in (seeds, None):
        start, other = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]
        for _ in range(SOLVERS[solver]):
            assert same([start], [other])
            start, other = ours.step(act(start))[0], theirs.step(act(other))[0]
    together, _, _ = episode(ours, seed=seeds)
    for i, seed in enumerate(seeds):
        alone, _, _ = episode(single(solver=solver), seed=seed)
        assert same(alone, row(together, i))
    assert not same(row(together, 0), row(together, 1))


def test_resets_without_seed_continue_and_differ_between_environments() -> None:
    one, two = vector(2), vector(2)
    assert not np.array_equal(one.reset()[0]["x"], two.reset()[0]["x"])
    runs = []
    for env in (one, two):
        env.reset(seed=3)
        runs.append([env.reset()[0]["x"], env.reset(options={"sample_ids": [9, 5]})[0]["x"], env.reset()[0]["x"]])
        assert env.sample_ids == (10, 11)
    assert np.array_equal(runs[0], runs[1])
    rows = [x for batch in runs[0] for x in batch]
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(rows, 2))


def test_noise_belongs_to_the_sample_id_not_to_the_batch() -> None:
    both, alone = vector(2, solver="stochastic"), vector(1, solver="stochastic")
    wanted = {"sample_ids": [5, 9], "stream": "s"}
    together, _, _ = episode(both, seed=3, options=wanted)
    apart, _, _ = episode(alone, seed=3, options={**wanted, "sample_ids": [9]})
    assert same(row(together, 1), row(apart, 0))
    other, _, _ = episode(alone, seed=3, options={"sample_ids": [9]})
    assert not np.array_equal(other[0]["x"], apart[0]["x"])
    assert both.reset(seed=3, options=wanted)[1]["sample_ids"].tolist() == [5, 9]


@pytest.mark.parametrize("solver", ["heun", "2m", "stochastic"])
def test_an_episode_continues_elsewhere_from_its_state(solver: str) -> None:
    """With the same seed, stream and ids, also the noise continues. The state has Heun's slope and 2M's history."""
    env, other = vector(solver=solver), vector(solver=solver)
    seen = [env.reset(seed=8)[0]]
    middle = 0
    for count in range(1, SOLVERS[solver]):
        seen.append(env.step(act(seen[-1]))[0])
        if count == SOLVERS[solver] // 2:
            state, middle = env.state, count
    again, _, _ = episode(other, seed=8, options={"state": state})
    assert same(seen[middle:], again[: len(seen) - middle])


def test_gymnasiums_vector_wrappers_take_the_environment() -> None:
    """NormalizeReward divides by the standard deviation of its discounted returns, which are negative at the end only."""
    statistics = RecordEpisodeStatistics(vector())
    wrapped = NormalizeReward(statistics)
    plain_reward = episode(vector(), seed=1)[1]
    for number in (1, 2):
        _, reward, info = episode(wrapped, seed=1)
        np.testing.assert_allclose(info["episode"]["r"], plain_reward, rtol=1e-6)
        assert info["episode"]["l"].tolist() == [5, 5, 5] and statistics.episode_count == 3 * number
        assert np.isfinite(reward).all() and not np.allclose(reward, plain_reward)
    assert list(statistics.return_queue) == pytest.approx([*plain_reward, *plain_reward])


@pytest.mark.parametrize(("solver", "evaluations"), SOLVERS.items())
def test_tensors_have_the_type_and_gradients_of_the_actions(solver: str, evaluations: int) -> None:
    """The gradient of the last reward by the factor a_i of every action a_i x, against central differences.

    x_0 is affine in each factor, so the reward is a quadratic function of it and central differences of any step are exact. With
    the step .01 only rounding is left: 1e-16 / .01 = 1e-14 of the reward, with a margin of 100.
    """
    env = vector(solver=solver, tensors=True, dtype=torch.float64)

    def last_reward(scale: torch.Tensor) -> torch.Tensor:
        seen, _ = env.reset(seed=0)
        for i in range(evaluations):
            seen, reward, terminated, truncated, info = env.step(scale[i] * seen["x"])
            assert seen["x"].dtype == reward.dtype == torch.float64 and seen["stage"].dtype == torch.int64
            assert terminated.dtype == truncated.dtype == torch.bool and terminated.device == env.device
            assert terminated.all() == (i == evaluations - 1)
        assert info["fields"].requires_grad == info["violations"]["size"].requires_grad == scale.requires_grad
        return reward.sum()

    scale = torch.linspace(0.4, 0.8, evaluations, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(last_reward(leaf := scale.clone().requires_grad_()), leaf)
    steps = 1e-2 * torch.eye(evaluations, dtype=torch.float64)
    differences = torch.stack([(last_reward(scale + step) - last_reward(scale - step)) / 2e-2 for step in steps])
    atol = 1e-12 * last_reward(scale).abs().item()
    torch.testing.assert_close(gradient, differences, rtol=1e-9, atol=atol)
    assert (gradient.abs() > 1e3 * atol).all()


@pytest.mark.parametrize(("solver", "evaluations"), SOLVERS.items())
def test_every_tensor_is_on_the_device(solver: str, evaluations: int) -> None:
    """The device ``meta`` has no numbers, and operations with tensors of another device fail on it as on a GPU."""
    env = vector(solver=solver, tensors=True, device="meta")
    observation, _ = env.reset(seed=0, options={"condition": {"scale": torch.ones(3)}})
    for _ in range(evaluations):
        observation, *outcome, info = env.step(torch.zeros(3, 1, RESOLUTION, RESOLUTION))
        numbers = [value for group in ("violations", "parts") for value in info.get(group, {}).values()]
        for tensor in (*observation.values(), *outcome, *numbers):
            assert tensor.device.type == "meta"
    assert len(numbers) == 2 and info["fields"].device.type == "meta"


def test_tensors_and_arrays_agree() -> None:
    ours, reward, info = episode(vector(solver="stochastic"), seed=2)
    theirs, tensor_reward, tensor_info = episode(vector(solver="stochastic", tensors=True), seed=2)
    assert same(ours, [{name: value.numpy() for name, value in one.items()} for one in theirs])
    np.testing.assert_array_equal(reward, tensor_reward.numpy())
    np.testing.assert_array_equal(info["parts"]["energy"], tensor_info["parts"]["energy"].numpy())


def test_tensors_changed_in_place_change_nothing() -> None:
    env = vector(solver="2m", tensors=True)
    expected, reward, _ = episode(env, seed=4)
    seen, _ = env.reset(seed=4)
    for wanted in expected[1:]:
        action = act(seen)
        for value in seen.values():
            value.zero_()
        seen, again, *_ = env.step(action)
        action.zero_()
        assert torch.equal(seen["x"], wanted["x"]) and torch.equal(seen["memory"], wanted["memory"])
    assert torch.equal(again, reward)


def test_arrays_carry_no_graph_and_a_black_box_gets_none() -> None:
    """A reward without gradient gets detached fields, though the actions are on a graph."""
    env = vector(tensors=True, reward=Energy(differentiable=False))
    observation, _ = env.reset(seed=0)
    scale = torch.tensor(0.5, requires_grad=True)
    for _ in range(5):
        observation, reward, *_ = env.step(scale * act(observation))
    assert observation["x"].requires_grad and not reward.requires_grad
    _, reward, _ = episode(vector(reward=Energy(differentiable=False)), seed=0)
    assert isinstance(reward, np.ndarray)


def test_the_condition_of_each_row_goes_to_the_reward() -> None:
    scale = np.array([1.0, 2.0, 5.0], dtype=np.float32)
    _, plain, _ = episode(vector(), seed=0)
    for tensors, given in ((False, scale), (True, torch.from_numpy(scale).double())):
        env = vector(tensors=tensors)
        condition = {"scale": given}
        env.reset(seed=0, options={"condition": condition})
        assert env.condition is not None and env.condition["scale"].dtype == torch.float32
        _, reward, _ = episode(env, seed=0, options={"condition": condition})
        np.testing.assert_allclose(np.asarray(reward), plain * scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"dtype": torch.float64}, "device and dtype need tensors=True, got device 'cpu' and dtype torch.float64"),
        ({"device": "cuda"}, "device and dtype need tensors=True, got device 'cuda'"),
        ({"solver": "rk4"}, "unknown solver 'rk4'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vector(**arguments)


FIELDS = torch.zeros(2, 1, RESOLUTION, RESOLUTION)


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        ({"seed": [1, 2]}, "seed must be one number or a list of 3, got a list of 2"),
        ({"seed": [1, 2, -1]}, r"seed must be in \[0, .*got -1"),
        ({"options": {"sample_ids": [1, 2]}}, "sample_ids must name 3 samples, got 2"),
        ({"options": {"sample_ids": [1, 2, -3]}}, r"sample id must be in \[0, .*got -3"),
        ({"options": {"state": State(x=FIELDS, step=0)}}, r"state.x must have the shape \(3, 1, 8, 8\), got \(2, 1, 8, 8\)"),
        ({"options": {"seeds": 3}}, "unknown option 'seeds' of reset; known: .*reset_mask"),
    ],
)
def test_bad_resets_are_named_and_leave_the_numbering_alone(reset: dict[str, Any], message: str) -> None:
    env = vector()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.reset(**reset)
    assert env.reset()[1]["sample_ids"].tolist() == [3, 4, 5]


def test_wrong_action_shapes_and_steps_without_reset_are_named() -> None:
    env = vector()
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset first"):
        env.step(np.zeros(env.action_space.shape))
    env.reset()
    with pytest.raises(ValueError, match=r"expected actions of shape \(3, 1, 8, 8\), got \(3, 1, 8, 4\)"):
        env.step(np.zeros((3, 1, 8, 4)))


def test_a_list_with_none_keeps_the_other_rows_numbering() -> None:
    """Rows of one seed get ids that no other row has had."""
    rows = Numbering.of(3).seeded(None, lambda: 7)
    assert (rows.seeds, rows.ids, rows.following().ids) == ([7, 7, 7], (0, 1, 2), (3, 4, 5))
    mixed = rows.following().seeded([2, None, None], lambda: 8)
    assert (mixed.seeds, mixed.ids, mixed.following().ids) == ([2, 7, 7], (0, 4, 5), (1, 7, 8))
    fresh = iter([5, 6])
    first = Numbering.of(2).seeded([None, None], lambda: next(fresh))
    assert (first.seeds, first.ids) == ([5, 6], (0, 0))
    assert rows.at([9, 2, 4]).after().ids == (10, 11, 12)
    with pytest.raises(RuntimeError, match="the rows have no seeds yet"):
        _ = Numbering.of(1).seeds
