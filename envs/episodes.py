"""The core of the Gymnasium environments: episodes of a batch of samples, with torch tensors in and out."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete

from envs.denoising import DenoisingProcess, Solver, State
from envs.numbering import Numbering, Seeds
from envs.numerics import conditions, seeding
from envs.numerics.conditions import Condition
from envs.pdes import PDE, make_pde
from envs.pdes.base import require
from envs.rewards import Reward, physics_reward
from envs.rewards.functions import checked, require_reward

DEFAULT_STEPS = 20
"""Sampler steps of an episode if no number is given."""
STREAM = "env"
"""Stream of the noise if no stream is given."""
OPTIONS = ("state", "sample_ids", "stream", "condition")
"""Options of ``reset``."""
StepCovariance = Literal["plain", "exact"]


def make_process(
    pde: PDE, num_steps: int, solver: Solver = "heun", *, eta: float = 1.0, step_covariance: StepCovariance = "plain"
) -> DenoisingProcess:
    """Return the denoising process of a PDE's samples.

    ``step_covariance`` exact adds the covariance that stochastic steps miss (envs.transitions). It needs the Gaussian law of the
    fields, ``pde.law``. ValueError if a value is not allowed, or if the solver does not use it.
    """
    if step_covariance not in get_args(StepCovariance):
        raise ValueError(f"unknown step_covariance {step_covariance!r}; known: {sorted(get_args(StepCovariance))}")
    if solver != "stochastic" and (eta != 1 or step_covariance != "plain"):
        raise ValueError(
            f"eta and step_covariance need the solver 'stochastic', got solver {solver!r}, eta {eta} and {step_covariance!r}"
        )
    if step_covariance == "exact":
        require(pde, "law", "step_covariance 'exact'", "use 'plain'")
    return DenoisingProcess(num_steps, solver, eta=eta, law=pde.law if step_covariance == "exact" else None)


class Episode:
    """Episodes of a batch of samples, one after another. Both environments adapt it."""

    def __init__(
        self,
        env_id: str,
        rows: int,
        *,
        resolution: int | None,
        num_steps: int,
        solver: Solver,
        eta: float,
        step_covariance: StepCovariance,
        operator: str,
        reward: Reward | None,
        parameters: dict[str, float],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make the PDE and the process. ValueError if an argument is not allowed, TypeError if the reward is not a Reward."""
        self.pde = make_pde(env_id, resolution, **parameters)
        self.process = make_process(self.pde, num_steps, solver, eta=eta, step_covariance=step_covariance)
        self.rows, self.device, self.dtype = rows, torch.device(device), dtype
        self.shape = (rows, *self.pde.shape)
        self._given, self._operator = reward, operator
        self._check_reward()
        self._numbers = Numbering.of(rows)
        self._state: State | None = None
        self._noise: seeding.NoiseStream | None = None
        self.condition: Condition | None = None
        self.sample_ids: tuple[int, ...] = ()

    def _check_reward(self) -> None:
        if self._given is not None:
            require_reward(self._given, "reward")
            if self._operator:
                raise ValueError(f"operator {self._operator!r} belongs to the default reward; give operator or reward, not both")
            return
        require(self.pde, "operators", "the default reward", "give reward=...")
        if self._operator and self._operator not in self.pde.operators:
            raise ValueError(f"unknown operator {self._operator!r} of {self.pde.env_id}; known: {sorted(self.pde.operators)}")

    @cached_property
    def reward(self) -> Reward:
        """The reward. The default one is made when it is first used, since its floors may have to be measured."""
        return physics_reward(self.pde, operator=self._operator) if self._given is None else self._given

    @property
    def state(self) -> State:
        """State of the process. ResetNeeded before the first reset."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset first")
        return self._state

    @property
    def terminal(self) -> bool:
        """Whether the episode has ended."""
        return self.process.terminal(self.state)

    def observation_space(self) -> Dict:
        """Return the space of one sample's observations."""
        fields = Box(-np.inf, np.inf, self.pde.shape, np.float32)
        sigma = Box(0.0, np.float32(self.process.sigmas[0]), (1,), np.float32)
        return Dict({"x": fields, "sigma": sigma, "stage": Discrete(2), "memory": fields})

    def action_space(self) -> Box:
        """Return the space of one sample's actions."""
        return Box(-np.inf, np.inf, self.pde.shape, np.float32)

    def start(
        self,
        seed: Seeds,
        fresh: Callable[[], int],
        *,
        state: State | None = None,
        sample_ids: Sequence[int] | None = None,
        stream: str = STREAM,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        """Start an episode from noise, or from a state of the process.

        Draw 0 of a sample's noise is its first noise. Draw i + 1 belongs to step i, from whatever state the episode starts.
        ValueError or TypeError if an option is not allowed; nothing has changed then.
        """
        numbers = self._numbers.seeded(seed, fresh)
        named = numbers if sample_ids is None else numbers.at(sample_ids)
        draws = self.process.num_steps if self.process.stochastic else 1  # of the start and of each stochastic step
        noise = seeding.NoiseStream(named.seeds, stream, named.ids, draws=draws)
        known = self._checked_condition(condition)
        if state is None:
            first = self.process.initial(self._draw(noise))
        else:
            first = self._checked_state(state)
            for _ in range(first.step + 1 if self.process.stochastic else 0):
                self._draw(noise)
        self._state, self._noise, self.condition, self.sample_ids = first, noise, known, named.ids
        self._numbers = numbers.following() if sample_ids is None else named.after()

    def step(self, denoised: torch.Tensor) -> None:
        """Take a network evaluation of all samples. ``denoised``: (b, c, h, w), which the episode keeps.

        ValueError if the shape is wrong, or if the episode has ended.
        """
        state = self.state
        if tuple(denoised.shape) != self.shape:
            raise ValueError(f"expected actions of shape {self.shape}, got {tuple(denoised.shape)}")
        noise = self._draw(self._noise) if self._noise is not None and self.process.has_density(state.step) else None
        self._state = self.process.transition(state, denoised, noise)

    def observation(self) -> dict[str, torch.Tensor]:
        """Return copies of all that the next state depends on.

        ``x`` (b, c, h, w), ``sigma`` (b, 1), ``stage`` (b,) and ``memory`` (b, c, h, w), as DenoisingEnv describes them.
        """
        state = self.state
        x, sigma = self.process.observe(state)
        memory = state.previous if state.slope is None else state.slope
        return {
            "x": x.clone(),
            "sigma": x.new_full((self.rows, 1), sigma),
            "stage": torch.full((self.rows,), int(memory is not None), device=x.device),
            "memory": torch.zeros_like(x) if memory is None else memory.clone(),
        }

    def finished(self) -> tuple[torch.Tensor, torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
        """Return rewards (b,), fields (b, c, h, w) and the reward's numbers of the finished samples, as copies.

        Fields are in physical units. The numbers are ``violations`` and ``parts``, each (b,) by name. TypeError or ValueError if
        the reward does not return a RewardOutput with one reward per sample.
        """
        x = self.state.x
        fields = self.pde.normalizer.to_physical(x)
        reward, name = self.reward, type(self.reward).__name__
        output = checked(reward(fields if reward.differentiable else fields.detach(), self.condition), fields, name)
        groups = {"violations": output.violations, "parts": output.parts}
        numbers = {group: {name: t.to(x, copy=True) for name, t in named.items()} for group, named in groups.items()}
        return output.reward.to(x, copy=True), fields.clone(), numbers

    def _draw(self, noise: seeding.NoiseStream) -> torch.Tensor:
        return noise.draw(self.pde.shape).to(self.device, self.dtype)

    def _checked_condition(self, condition: Mapping[str, Any] | None) -> Condition | None:
        if condition is None:
            return None
        if not isinstance(condition, Mapping):
            raise TypeError(f"condition must map names to arrays (b, ...), got {type(condition).__name__}")
        known = {name: torch.as_tensor(value) for name, value in condition.items()}
        for name, value in known.items():
            if value.shape[:1] != (self.rows,):
                raise ValueError(f"condition {name!r} must have {self.rows} rows, got the shape {tuple(value.shape)}")
        copies = {name: value.clone() for name, value in known.items()}
        return conditions.to(copies, torch.empty(0, device=self.device, dtype=self.dtype))

    def _checked_state(self, state: State) -> State:
        """Return a copy of a state that was given. TypeError or ValueError if the process has no such state."""
        if not isinstance(state, State):
            raise TypeError(f"state must be a State (envs.denoising.State), got {type(state).__name__}")
        last, solver = self.process.num_steps - 1, self.process.solver
        if not 0 <= state.step <= last:
            raise ValueError(f"state.step must be in [0, {last}], got {state.step}")
        if state.slope is not None and (solver != "heun" or state.step == last):
            raise ValueError(f"state.slope must be None in step {state.step} of the solver {solver!r}: no corrector follows")
        if state.previous is not None and (solver != "2m" or state.step == 0):
            raise ValueError(f"state.previous must be None in step {state.step} of the solver {solver!r}: nothing uses it")
        tensors = {"x": state.x, "slope": state.slope, "previous": state.previous}
        for name, tensor in tensors.items():
            if tensor is not None and tuple(tensor.shape) != self.shape:
                raise ValueError(f"state.{name} must have the shape {self.shape}, got {tuple(tensor.shape)}")
        return State(
            step=state.step,
            **{name: t if t is None else t.to(self.device, self.dtype, copy=True) for name, t in tensors.items()},  # type: ignore[arg-type]
        )


def checked_options(options: dict[str, Any] | None, known: Sequence[str] = OPTIONS) -> dict[str, Any]:
    """Return the options of a reset. ValueError names the known options if one is unknown."""
    for name in options or {}:
        if name not in known:
            raise ValueError(f"unknown option {name!r} of reset; known: {', '.join(known)}")
    return dict(options or {})


class EpisodeView:
    """What both environments show of their episode."""

    _episode: Episode

    @property
    def process(self) -> DenoisingProcess:
        """The denoising process."""
        return self._episode.process

    @property
    def pde(self) -> PDE:
        """The PDE."""
        return self._episode.pde

    @property
    def parameters(self) -> dict[str, float]:
        """Physical parameters of the PDE by name, such as ``reynolds``."""
        return dict(self.pde.parameters)

    @property
    def reward(self) -> Reward:
        """The reward. The default reward is made when it is first used."""
        return self._episode.reward

    @property
    def state(self) -> State:
        """State of the process, a batch (b, c, h, w). An episode elsewhere continues from it. ResetNeeded before the first reset.

        Its tensors are the environment's own: do not change them in place.
        """
        return self._episode.state

    @property
    def sample_ids(self) -> tuple[int, ...]:
        """Ids of the samples, which decide their noise together with the seed and the stream."""
        return self._episode.sample_ids

    @property
    def condition(self) -> Condition | None:
        """The condition of the episode, which the reward takes."""
        return self._episode.condition
