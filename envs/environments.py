"""The Gymnasium environments: thin stateful adapters of envs.denoising.DenoisingProcess."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.denoising import DenoisingProcess, Solver, State
from envs.numerics import seeding
from envs.pdes import make_pde
from envs.rewards import Reward, RewardOutput, physics_reward

DEFAULT_STEPS = 20
"""Sampler steps of an episode if no number is given."""


class _Episode:
    """The parts that both environments share: the PDE, the process, the reward and the spaces of a sample."""

    def __init__(
        self,
        env_id: str,
        resolution: int | None,
        num_steps: int,
        solver: Solver,
        operator: str,
        reward: Reward | None,
        parameters: dict[str, float],
    ) -> None:
        self.pde = make_pde(env_id, resolution, **parameters)
        self.process = DenoisingProcess(num_steps, solver)
        self.reward = physics_reward(self.pde, operator=operator) if reward is None else reward
        fields = Box(-np.inf, np.inf, self.pde.shape, np.float32)
        sigma = Box(0.0, np.float32(self.process.sigmas[0]), (1,), np.float32)
        self.observation_space = Dict({"x": fields, "sigma": sigma})
        self.action_space = Box(-np.inf, np.inf, self.pde.shape, np.float32)

    def final_reward(self, state: State) -> RewardOutput:
        return self.reward(self.pde.normalizer.to_physical(state.x))


class DenoisingEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Denoising of a single sample, with numpy arrays in and out.

    ## Description

    The agent is a denoiser of EDM's sampler (Karras et al. 2022, arXiv 2206.00364). It turns noise into a sample of a PDE with c
    channels on an h x w grid (Yuan et al. 2025, arXiv 2509.20570). A step is a network evaluation.

    ## Action Space

    ``Box(-inf, inf, (c, h, w), float32)``: the denoised prediction D(x; sigma), model units.

    ## Observation Space

    ``Dict`` with two entries:

    =========  ==============================================  ==================================================
    entry      space                                           content
    =========  ==============================================  ==================================================
    ``x``      ``Box(-inf, inf, (c, h, w), float32)``          the state at which the network is evaluated next,
                                                               model units; the finished sample at the end
    ``sigma``  ``Box(0, sigma_max, (1,), float32)``            the noise level of ``x``, 0 at the end
    =========  ==============================================  ==================================================

    ## Rewards

    0 at every step except the last. The last reward is the physics reward of the finished sample: by default the negative mean
    square residual, clipped at the floor of exact data. ``info`` of the last step holds ``fields`` (c, h, w), the sample in
    physical units, and ``violations``, the violation of each term by name.

    ## Starting State

    ``x`` is sigma_max times standard normal noise. ``reset(seed=...)`` sets the generator of the noise.

    ## Episode End

    ``terminated`` at sigma = 0: after 2N - 1 steps with Heun, after N steps with Euler. ``truncated`` is always False.

    ## Arguments

    ==============  ===============  ====================================================================
    argument        default          meaning
    ==============  ===============  ====================================================================
    ``resolution``  the PDE's        rows and columns of the grid, even
    ``num_steps``   20               number N of sampler steps
    ``solver``      ``"heun"``       ``"heun"`` or ``"euler"``
    ``operator``    the PDE's        residual operator of the default reward
    ``reward``      None             reward in place of the default reward
    others          the PDE's        physical parameters of the PDE, such as ``reynolds``
    ==============  ===============  ====================================================================

    ## Version History

    * v0: first version. Results may change until version 1.0 of the package.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(
        self,
        env_id: str,
        resolution: int | None = None,
        num_steps: int = DEFAULT_STEPS,
        solver: Solver = "heun",
        operator: str = "",
        reward: Reward | None = None,
        **parameters: float,
    ) -> None:
        """Make the environment of a PDE. ValueError if an argument is not allowed."""
        self._episode = _Episode(env_id, resolution, num_steps, solver, operator, reward, parameters)
        self.observation_space = self._episode.observation_space
        self.action_space = self._episode.action_space
        self._state: State | None = None

    def _observation(self, state: State) -> dict[str, np.ndarray]:
        x, sigma = self._episode.process.observe(state)
        return {"x": x[0].numpy(), "sigma": np.array([sigma], dtype=np.float32)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode from new noise. Return the first observation and an empty ``info``."""
        super().reset(seed=seed)
        noise = self.np_random.standard_normal((1, *self._episode.pde.shape), dtype=np.float32)
        self._state = self._episode.process.initial(torch.from_numpy(noise))
        return self._observation(self._state), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Take a network evaluation. Return the observation, reward, ``terminated``, ``truncated`` and ``info``.

        ValueError if the action has another shape, or if the episode has ended.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset before step")
        episode = self._episode
        denoised = torch.from_numpy(np.asarray(action, dtype=np.float32))
        if tuple(denoised.shape) != episode.pde.shape:
            raise ValueError(f"expected an action of shape {episode.pde.shape}, got {tuple(denoised.shape)}")
        self._state = episode.process.transition(self._state, denoised[None])
        if not episode.process.terminal(self._state):
            return self._observation(self._state), 0.0, False, False, {}
        output = episode.final_reward(self._state)
        info = {
            "fields": episode.pde.normalizer.to_physical(self._state.x)[0].numpy(),
            "violations": {name: float(v[0]) for name, v in output.violations.items()},
        }
        return self._observation(self._state), float(output.reward[0]), True, False, info


class DenoisingVectorEnv(VectorEnv[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]):
    """Denoising of ``num_envs`` samples in lockstep, with torch tensors in and out.

    ## Description

    The agent is a denoiser of EDM's sampler, as in ``DenoisingEnv``. All sub-environments start and end together
    (``AutoresetMode.DISABLED``). Gradients pass from the rewards to the actions.

    ## Action Space

    ``Box(-inf, inf, (num_envs, c, h, w), float32)``: the denoised predictions, model units. A step takes a tensor.

    ## Observation Space

    ``Dict`` with ``x``, ``Box(-inf, inf, (num_envs, c, h, w), float32)``, and ``sigma``, ``Box(0, sigma_max, (num_envs, 1),
    float32)``, as in ``DenoisingEnv``. The values are tensors of the type ``dtype`` on ``device``.

    ## Rewards

    A tensor (num_envs,): 0 at every step except the last. The last rewards are the physics rewards of the finished samples.
    ``info`` of the last step holds ``fields`` (num_envs, c, h, w), physical units, and ``violations`` (num_envs,) by name.

    ## Starting State

    ``x`` is sigma_max times standard normal noise. ``reset(seed=s, options={"sample_ids": ids, "stream": name})`` starts the
    samples with these ids. A sample has the same noise in every batch. Without ids the numbering continues from the last reset.

    ## Episode End

    ``terminated`` (num_envs,) at sigma = 0: after 2N - 1 steps with Heun, after N steps with Euler. ``truncated`` is always
    False.

    ## Arguments

    The arguments of ``DenoisingEnv``, and:

    ============  ==================  =================================
    argument      default             meaning
    ============  ==================  =================================
    ``num_envs``  1                   number of samples
    ``device``    ``"cpu"``           device of the tensors
    ``dtype``     ``torch.float32``   type of the tensors
    ============  ==================  =================================

    ## Version History

    * v0: first version. Results may change until version 1.0 of the package.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        resolution: int | None = None,
        num_steps: int = DEFAULT_STEPS,
        solver: Solver = "heun",
        operator: str = "",
        reward: Reward | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        **parameters: float,
    ) -> None:
        """Make the environments of a PDE. ValueError if an argument is not allowed."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self._episode = _Episode(env_id, resolution, num_steps, solver, operator, reward, parameters)
        self.num_envs, self.device, self.dtype = num_envs, device, dtype
        self.single_observation_space = self._episode.observation_space
        self.single_action_space = self._episode.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.pde, self.process = self._episode.pde, self._episode.process
        self._state: State | None = None
        self._seed = 0
        self._next_id = 0

    @property
    def state(self) -> State:
        """State of the process, with which the learner's replay continues the episode elsewhere."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset first")
        return self._state

    def _observation(self, state: State) -> dict[str, torch.Tensor]:
        x, sigma = self.process.observe(state)
        return {"x": x, "sigma": x.new_full((self.num_envs, 1), sigma)}

    def _sample_ids(self, options: dict[str, Any]) -> Sequence[int]:
        ids: Sequence[int] = options.get("sample_ids", range(self._next_id, self._next_id + self.num_envs))
        if len(ids) != self.num_envs:
            raise ValueError(f"sample_ids must name {self.num_envs} samples, got {len(ids)}")
        self._next_id = max(ids) + 1
        return ids

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Start an episode of all samples. Return the first observations, and ``info`` with their ``sample_ids``.

        ValueError if the options do not fit the number of samples, or if ``seed`` is a list.
        """
        options = options or {}
        mask = options.get("reset_mask")
        if mask is not None and not np.all(mask):
            raise ValueError("all sub-environments end together: reset_mask must be all True")
        if isinstance(seed, list):
            raise ValueError("seed must be one number for all samples: each sample id has a generator of its own")
        if seed is not None:
            self._seed, self._next_id = seed, 0
        ids = self._sample_ids(options)
        noise = seeding.normal(self._seed, options.get("stream", "env"), ids, self.pde.shape)
        self._state = self.process.initial(noise.to(self.device, self.dtype))
        return self._observation(self._state), {"sample_ids": np.asarray(ids)}

    def step(
        self, actions: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Take a network evaluation of all samples. Return observations, rewards, ``terminated``, ``truncated`` and ``info``.

        ValueError if the actions have another shape, or if the episode has ended.
        """
        denoised = torch.as_tensor(actions, dtype=self.dtype, device=self.device)
        if tuple(denoised.shape) != (self.num_envs, *self.pde.shape):
            raise ValueError(f"expected actions of shape {(self.num_envs, *self.pde.shape)}, got {tuple(denoised.shape)}")
        self._state = self.process.transition(self.state, denoised)
        ended = self.process.terminal(self._state)
        flags = torch.full((self.num_envs,), ended)
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        if not ended:
            return self._observation(self._state), denoised.new_zeros(self.num_envs), flags, never, {}
        output = self._episode.final_reward(self._state)
        info = {"fields": self.pde.normalizer.to_physical(self._state.x), "violations": output.violations}
        return self._observation(self._state), output.reward, flags, never, info
