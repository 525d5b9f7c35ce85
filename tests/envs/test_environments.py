"""The environment of one sample: Gymnasium's rules, Markov observations, starts, rewards and parameters."""

import itertools
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit

import envs  # noqa: F401  (registers the environments)
from envs.denoising import DenoisingProcess, State
from envs.environments import DenoisingEnv, require_same_pde
from envs.episodes import make_process
from envs.numerics import seeding
from envs.numerics.conditions import Condition
from envs.numerics.gaussian import GaussianLaw, cosine_basis
from envs.pdes import PDE, make_pde
from envs.pdes.burgers import Burgers
from envs.rewards import RewardOutput

RESOLUTION = 8
SMALL: dict[str, Any] = {"resolution": RESOLUTION, "num_steps": 3}
SOLVERS = {"heun": 5, "euler": 3, "2m": 3, "stochastic": 3}
"""Evaluations of three steps."""
INFINITE_BOX = "A Box (action|observation) space (minimum|maximum) value is -?infinity"
LAW = GaussianLaw(
    mean=torch.full((1, RESOLUTION, RESOLUTION), 0.3, dtype=torch.float64),
    variance=torch.linspace(0.1, 2, RESOLUTION**2, dtype=torch.float64).reshape(1, RESOLUTION, RESOLUTION),
    basis=cosine_basis(RESOLUTION, RESOLUTION),
)


class Energy:
    """Reward -mean(u^2) + target, with the target taken from the condition."""

    differentiable, scope = True, "sample"

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        energy = fields.square().flatten(1).mean(1)
        target = condition["target"] if condition else torch.zeros_like(energy)
        mean = fields.flatten(1).mean(1).abs()
        return RewardOutput(reward=target - energy, parts={"energy": energy}, violations={"mean": mean})


def make(**changes: Any) -> DenoisingEnv:
    env = gymnasium.make("envs:Burgers-v0", **{**SMALL, "reward": Energy(), **changes}).unwrapped
    assert isinstance(env, DenoisingEnv)
    return env


def act(observation: dict[str, Any]) -> np.ndarray:
    """A policy that depends on all of the state."""
    return np.tanh(observation["x"]) * 0.3


def observations(env: DenoisingEnv, **reset: Any) -> list[dict[str, Any]]:
    """Return the observations of an episode."""
    seen = [env.reset(**reset)[0]]
    ended = False
    while not ended:
        observation, _, ended, truncated, _ = env.step(act(seen[-1]))
        assert not truncated
        seen.append(observation)
    return seen


def state_of(process: DenoisingProcess, observation: dict[str, Any]) -> State:
    """Return the state that an observation shows, from nothing but the observation."""
    x, memory = (torch.from_numpy(observation[name])[None] for name in ("x", "memory"))
    step = int(np.argmin(np.abs(np.array(process.sigmas) - observation["sigma"])))
    if observation["stage"] == 0:
        return State(x=x, step=step)
    if process.solver == "2m":
        return State(x=x, step=step, previous=memory)
    before = process.sigmas[step - 1]  # Heun's corrector is evaluated at the end of its step
    return State(x=x - (process.sigmas[step] - before) * memory, step=step - 1, slope=memory)


@pytest.mark.parametrize("solver", SOLVERS)
def test_check_env_passes(solver: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=f".*{INFINITE_BOX}")
        check_env(make(solver=solver))


@pytest.mark.parametrize(("solver", "evaluations"), SOLVERS.items())
def test_one_step_is_one_network_evaluation(solver: str, evaluations: int) -> None:
    env = make(solver=solver)
    assert len(observations(env)) - 1 == evaluations == env.process.num_evaluations


def test_the_reward_comes_at_the_end_with_the_numbers_behind_it() -> None:
    env = make()
    env.reset(seed=1)
    outcomes = [env.step(env.action_space.sample()) for _ in range(5)]
    assert [reward for _, reward, *_ in outcomes[:4]] == [0, 0, 0, 0]
    assert [terminated for _, _, terminated, *_ in outcomes] == [False] * 4 + [True]
    assert [info for *_, info in outcomes[:4]] == [{}] * 4
    observation, reward, _, _, info = outcomes[4]
    assert observation["sigma"] == 0 and observation["stage"] == 0
    physical = env.pde.normalizer.to_physical(torch.from_numpy(observation["x"]))
    np.testing.assert_array_equal(info["fields"], physical.numpy())
    assert reward == pytest.approx(-np.square(info["fields"]).mean(), rel=1e-6)
    assert info["parts"] == {"energy": pytest.approx(-reward)} and info["violations"].keys() == {"mean"}


def test_the_default_reward_is_the_residual() -> None:
    """D = x keeps x_0 = 80 n, whose residual is far above the residual of exact data."""
    env = make(reward=None)
    exact = env.pde.normalizer.to_model(env.pde.solve(0, "test", [0]))[0].float().numpy()
    rewards = []
    for policy in (lambda seen: seen["x"], lambda seen: exact):
        seen, _ = env.reset(seed=0)
        for _ in range(5):
            seen, reward, *_, info = env.step(policy(seen))
        rewards.append(reward)
        assert info["violations"]["consistent"] == pytest.approx(-reward)
    assert rewards[0] < 1e3 * rewards[1] < 0


@pytest.mark.parametrize(
    ("solver", "eta"), [("heun", 1.0), ("euler", 1.0), ("2m", 1.0), ("stochastic", 1.0), ("stochastic", 0.5)]
)
def test_the_next_observation_depends_on_observation_and_action_only(solver: str, eta: float) -> None:
    """Each observation of an episode starts an episode of its own, which the same actions lead to the same observations.

    Heun's corrector is started from x - (s' - s) slope, which rounds differently: the terms are at most 400, with a float32
    spacing of 3e-5, and fewer than 20 roundings follow.
    """
    env, other = make(solver=solver, eta=eta, num_steps=4), make(solver=solver, eta=eta, num_steps=4)
    seen = observations(env, seed=2, options={"sample_ids": [5]})
    for first in range(len(seen) - 1):
        state = state_of(env.process, seen[first])
        again = observations(other, seed=2, options={"sample_ids": [5], "state": state})
        assert len(again) == len(seen) - first
        for one, two in zip(seen[first:], again, strict=True):
            for name in one:
                np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=6e-4, err_msg=name)
    stages = [int(one["stage"]) for one in seen]
    alternate = {"heun": [0, 1, 0, 1, 0, 1, 0, 0], "2m": [0, 1, 1, 1, 0]}
    assert stages == alternate.get(solver, [0] * 5)


@pytest.mark.parametrize("solver", ["heun", "2m"])
def test_without_the_memory_observations_would_not_be_markov(solver: str) -> None:
    """Two states with the same x, sigma and stage, and the same action, go to different observations: only memory differs."""
    env, field = make(solver=solver, num_steps=4), torch.ones(1, 1, RESOLUTION, RESOLUTION)
    first, second = env.process.sigmas[1:3]
    found = []
    for memory in (-1.0, 1.0):
        if solver == "heun":
            state = State(x=field - (second - first) * memory, step=1, slope=memory * field)
        else:
            state = State(x=field, step=1, previous=memory * field)
        shown, _ = env.reset(seed=0, options={"state": state})
        found.append((shown, env.step(np.zeros(env.pde.shape, np.float32))[0]))
    (one, one_next), (two, two_next) = found
    np.testing.assert_allclose(one["x"], two["x"], atol=1e-4)
    assert (one["sigma"], one["stage"]) == (two["sigma"], two["stage"])
    assert np.abs(one["memory"] - two["memory"]).min() == 2
    assert np.abs(one_next["x"] - two_next["x"]).min() > 0.1


@pytest.mark.parametrize("solver", SOLVERS)
def test_changing_what_was_given_in_place_changes_nothing(solver: str) -> None:
    """Observations, actions, the state of a reset and the arrays of ``info`` are copies."""
    env = make(solver=solver)
    expected = observations(env, seed=3)
    for given in (False, True):
        start = State(x=torch.from_numpy(expected[0]["x"].copy())[None], step=0)
        seen, _ = env.reset(seed=3, options={"state": start} if given else None)
        start.x[:] = 7
        for count, wanted in enumerate(expected):
            for name in wanted:
                np.testing.assert_array_equal(seen[name], wanted[name])
            if count == len(expected) - 1:
                break
            action = act(seen)
            for name in ("x", "sigma", "memory"):
                seen[name] /= 100
            seen, *_, info = env.step(action)
            action[:] = 9
        info["fields"][:] = 5
        assert np.abs(env.state.x.numpy()).max() < 1


def test_a_reset_without_a_seed_continues_and_differs_between_environments() -> None:
    one, two = make(), make()
    assert not np.array_equal(one.reset()[0]["x"], two.reset()[0]["x"])
    assert one.sample_ids == two.sample_ids == (0,)
    runs = [[env.reset(seed=4)[0]["x"], env.reset()[0]["x"], env.reset()[0]["x"]] for env in (one, two)]
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(runs[0], 2))
    assert one.sample_ids == (2,)


def test_the_noise_is_the_counter_based_noise_of_seed_stream_and_id() -> None:
    """Draw 0 starts the sample and draw i + 1 belongs to step i."""
    env = make(solver="stochastic")
    seen, _ = env.reset(seed=6, options={"sample_ids": [3], "stream": "s"})
    stream = seeding.NoiseStream(6, "s", [3])
    np.testing.assert_array_equal(seen["x"], 80 * stream.draw(env.pde.shape)[0].float().numpy())
    for _ in range(2):
        state, action = env.state, act(seen)
        law = env.process.step_law(state, torch.from_numpy(action)[None])
        seen, *_ = env.step(action)
        np.testing.assert_array_equal(seen["x"], law.draw(stream.draw(env.pde.shape).float())[0].numpy())


def test_the_condition_goes_to_the_reward() -> None:
    env = make()
    rewards = []
    for condition in (None, {"target": np.array([3.0])}):
        env.reset(seed=0, options={"condition": condition})
        for _ in range(5):
            _, reward, *_ = env.step(np.ones(env.pde.shape, np.float32))
        rewards.append(reward)
    assert rewards[1] - rewards[0] == pytest.approx(3, rel=1e-6)
    env.reset()
    assert env.condition is None


def test_exact_covariance_of_stochastic_steps_needs_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Burgers-v0 has no Gaussian law .*step_covariance 'exact' needs one; use 'plain'"):
        make(solver="stochastic", step_covariance="exact")
    monkeypatch.setattr(Burgers, "law", LAW)
    env = make(solver="stochastic", step_covariance="exact", eta=0.7)
    assert env.process.law is LAW and env.process.eta == 0.7
    assert len(observations(env)) == 4
    assert make(solver="stochastic").process.law is None
    assert make_process(make_pde("Burgers-v0", RESOLUTION), 3, "stochastic", step_covariance="exact").law is LAW


def test_no_data_are_solved_before_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solving the 256 fields that decide the floor takes 21 minutes for the default environment of Kolmogorov flow."""

    class Solved(Exception):
        pass

    def solve(*arguments: object) -> torch.Tensor:
        raise Solved

    monkeypatch.setattr(Burgers, "solve", solve)
    monkeypatch.setattr("envs.episodes.physics_reward", lambda pde, operator: pde.solve(0, "calibration", range(256)))
    env = make(reward=None)
    for seed in (0, None):
        seen, _ = env.reset(seed=seed)
        for _ in range(4):
            seen, *_ = env.step(act(seen))
    with pytest.raises(Solved):
        env.step(act(seen))


def test_gymnasiums_wrappers_take_the_environment() -> None:
    env = RecordEpisodeStatistics(TimeLimit(make(), max_episode_steps=3))
    env.reset(seed=0)
    for _ in range(3):
        _, reward, terminated, truncated, info = env.step(np.zeros((1, RESOLUTION, RESOLUTION), np.float32))
    assert truncated and not terminated and reward == 0
    assert info["episode"]["l"] == 3


def test_parameters_reach_the_pde_and_other_parameters_are_refused() -> None:
    env = gymnasium.make("envs:Kolmogorov-v0", resolution=8, reynolds=40, num_steps=2).unwrapped
    assert isinstance(env, DenoisingEnv)
    assert env.parameters == {"reynolds": 40.0}
    require_same_pde(make_pde("Kolmogorov-v0", 8, reynolds=40), env.pde)
    with pytest.raises(ValueError, match=r"model belongs to Kolmogorov-v0 \(resolution 8, reynolds 1000\), .* reynolds 40\)"):
        require_same_pde(make_pde("Kolmogorov-v0", 8), env.pde)
    with pytest.raises(ValueError, match=r"model belongs to Poisson-v0 \(resolution 8\)"):
        require_same_pde(make_pde("Poisson-v0", 8), env.pde)


@pytest.mark.parametrize("reward", [lambda fields, condition=None: fields, object(), Energy])
def test_an_object_that_is_no_reward_is_a_type_error_at_once(reward: object) -> None:
    with pytest.raises(TypeError, match=r"reward must be a Reward \(envs\.rewards\.base\.Reward\), got"):
        make(reward=reward)


def test_a_reward_that_returns_something_else_is_named() -> None:
    class Wrong(Energy):
        def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
            return RewardOutput(reward=fields.mean())

    env = make(reward=Wrong())
    with pytest.raises(ValueError, match="'reward' of reward 'Wrong' must have one number per sample"):
        observations(env)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 7}, "resolution must be even and at least 8, got 7"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"solver": "rk4"}, r"unknown solver 'rk4'; known: \['2m', 'euler', 'heun', 'stochastic'\]"),
        ({"solver": "stochastic", "eta": 1.5}, r"eta must be in \(0, 1\], got 1.5"),
        ({"eta": 0.5}, "need the solver 'stochastic', got solver 'heun', eta 0.5"),
        ({"step_covariance": "full"}, r"unknown step_covariance 'full'; known: \['exact', 'plain'\]"),
        ({"operator": "x", "reward": None}, r"unknown operator 'x' of Burgers-v0; known: \['consistent', 'paper', 'simpson'\]"),
        ({"operator": "paper"}, "operator 'paper' belongs to the default reward"),
        ({"viscosity": 3.0}, "unknown parameter 'viscosity' of Burgers-v0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


FIELD = torch.zeros(1, 1, RESOLUTION, RESOLUTION)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_id": [3]}, "unknown option 'sample_id' of reset; known: state, sample_ids, stream, condition"),
        ({"sample_ids": [3, 4]}, "sample_ids must name 1 samples, got 2"),
        ({"condition": {"a": np.zeros(2)}}, r"condition 'a' must have 1 rows, got the shape \(2,\)"),
        ({"state": State(x=FIELD[0], step=0)}, r"state.x must have the shape \(1, 1, 8, 8\), got \(1, 8, 8\)"),
        ({"state": State(x=FIELD, step=3)}, r"state.step must be in \[0, 2\], got 3"),
        ({"state": State(x=FIELD, step=2, slope=FIELD)}, "state.slope must be None in step 2 of the solver 'heun'"),
        ({"state": State(x=FIELD, step=1, previous=FIELD)}, "state.previous must be None in step 1 of the solver 'heun'"),
    ],
)
def test_bad_options_are_named_and_leave_the_episode_alone(options: dict[str, Any], message: str) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    assert env.sample_ids == (0,)
    env.reset()
    assert env.sample_ids == (1,)


def test_steps_before_a_reset_after_the_end_or_of_another_shape_are_refused() -> None:
    env, action = make(), np.zeros((1, RESOLUTION, RESOLUTION), np.float32)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset first"):
        env.step(action)
    with pytest.raises(TypeError, match=r"state must be a State \(envs.denoising.State\), got dict"):
        env.reset(options={"state": {"x": FIELD}})
    env.reset()
    with pytest.raises(ValueError, match=r"expected an action of shape \(1, 8, 8\), got \(8, 8\)"):
        env.step(action[0])
    for _ in range(5):
        env.step(action)
    with pytest.raises(ValueError, match="the episode is over after 3 steps; reset first"):
        env.step(action)


def test_a_pde_without_operators_needs_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Burgers, "operators", {})
    with pytest.raises(ValueError, match="Burgers-v0 has no residual operator .*the default reward needs one; give reward="):
        make(reward=None)
    assert isinstance(make().pde, PDE)
