"""The vector environment: a batch of samples in lockstep, with numpy arrays or torch tensors in and out."""

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.denoising import Solver
from envs.episodes import DEFAULT_STEPS, OPTIONS, Episode, EpisodeView, StepCovariance, checked_options
from envs.numbering import Seeds
from envs.numerics.seeding import MAX_SEED
from envs.rewards import Reward


class DenoisingVectorEnv(EpisodeView, VectorEnv[dict[str, Any], Any, Any]):
    """Denoising of ``num_envs`` samples in lockstep.

    ## Description

    The agent is a denoiser of EDM's sampler, as in ``DenoisingEnv``. All sub-environments start and end together
    (``AutoresetMode.DISABLED``). By default actions, observations, rewards and ``info`` are numpy arrays, as Gymnasium's vector
    wrappers expect. With ``tensors=True`` they are torch tensors, and gradients pass from the rewards to the actions.

    ## Action Space

    ``Box(-inf, inf, (num_envs, c, h, w), float32)``: the denoised predictions, model units.

    ## Observation Space

    ``Dict`` with the entries of ``DenoisingEnv``, one row per sub-environment. Observations are copies.

    ==========  ================================================
    entry       space
    ==========  ================================================
    ``x``       ``Box(-inf, inf, (num_envs, c, h, w), float32)``
    ``sigma``   ``Box(0, sigma_max, (num_envs, 1), float32)``
    ``stage``   ``MultiDiscrete([2] * num_envs)``
    ``memory``  ``Box(-inf, inf, (num_envs, c, h, w), float32)``
    ==========  ================================================

    ## Rewards

    Shape (num_envs,): 0 at every step except the last. The last rewards are the rewards of the finished samples. ``info`` of the
    last step holds ``fields`` (num_envs, c, h, w), physical units, and ``violations`` and ``parts``, each (num_envs,) by name.

    ## Starting State

    ``x`` is sigma_max times standard normal noise, which depends on the seed, the stream and the sample id.

    ===========================  =========================================================================================
    reset                        samples
    ===========================  =========================================================================================
    ``reset(seed=s)``            ids 0 .. num_envs - 1 of the seed s; row 0 equals ``DenoisingEnv`` with the seed s
    ``reset(seed=[s_0, ...])``   id 0 of each seed; row i equals ``DenoisingEnv`` with the seed s_i
    ``reset()``                  the next ids of the same seeds; a fresh seed if there is none
    ===========================  =========================================================================================

    The options are those of ``DenoisingEnv`` with ``num_envs`` rows in place of one. ``reset_mask`` must be all True. ``info``
    holds ``sample_ids`` (num_envs,). A sample has the same noise in every batch.

    ## Episode End

    ``terminated`` (num_envs,) at sigma = 0: after 2N - 1 steps with Heun, after N steps with the other solvers. ``truncated`` is
    always False.

    ## Arguments

    The arguments of ``DenoisingEnv``, and:

    ============  ==================  ========================================
    argument      default             meaning
    ============  ==================  ========================================
    ``num_envs``  1                   number of samples
    ``tensors``   False               torch tensors instead of numpy arrays
    ``device``    ``"cpu"``           device of the tensors
    ``dtype``     ``torch.float32``   floating-point type of the tensors
    ============  ==================  ========================================

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
        eta: float = 1.0,
        step_covariance: StepCovariance = "plain",
        operator: str = "",
        reward: Reward | None = None,
        tensors: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **parameters: float,
    ) -> None:
        """Make the environments of a PDE. ValueError or TypeError if an argument is not allowed."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if not tensors and (torch.device(device).type != "cpu" or dtype != torch.float32):
            raise ValueError(f"device and dtype need tensors=True, got device {str(device)!r} and dtype {dtype}")
        self._episode = Episode(
            env_id,
            num_envs,
            resolution=resolution,
            num_steps=num_steps,
            solver=solver,
            eta=eta,
            step_covariance=step_covariance,
            operator=operator,
            reward=reward,
            parameters=parameters,
            device=device,
            dtype=dtype,
        )
        self.num_envs, self.tensors, self.device, self.dtype = num_envs, tensors, torch.device(device), dtype
        self.single_observation_space = self._episode.observation_space()
        self.single_action_space = self._episode.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def _shown(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return tensors as tensors or as numpy arrays, groups entered. They are copies already."""
        if self.tensors:
            return values
        return {name: self._shown(value) if isinstance(value, dict) else value.detach().numpy() for name, value in values.items()}

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode of all samples. Return the first observations, and ``info`` with their ``sample_ids``.

        ValueError or TypeError if the seeds or an option are not allowed.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        given = checked_options(options, (*OPTIONS, "reset_mask"))
        mask = given.pop("reset_mask", None)
        if mask is not None and not np.all(mask):
            raise ValueError("all sub-environments end together: reset_mask must be all True")
        with torch.set_grad_enabled(self.tensors and torch.is_grad_enabled()):
            self._episode.start(seed, lambda: int(self.np_random.integers(MAX_SEED)), **given)
            observation = self._episode.observation()
        return self._shown(observation), {"sample_ids": np.array(self.sample_ids)}

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Take a network evaluation of all samples. Return observations, rewards, ``terminated``, ``truncated`` and ``info``.

        ValueError if the actions have another shape, or if the episode has ended.
        """
        with torch.set_grad_enabled(self.tensors and torch.is_grad_enabled()):
            # a copy, since the state may keep it
            self._episode.step(torch.as_tensor(actions, dtype=self.dtype, device=self.device).clone())
            reward, info = self._outcome()
            observation = self._shown(self._episode.observation())
        terminated = torch.full((self.num_envs,), self._episode.terminal, device=self.device)
        truncated = torch.zeros_like(terminated)
        if self.tensors:
            return observation, reward, terminated, truncated, info
        return observation, reward.detach().double().numpy(), terminated.numpy(), truncated.numpy(), self._shown(info)

    def _outcome(self) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the rewards and ``info`` after a step."""
        if not self._episode.terminal:
            return torch.zeros(self.num_envs, device=self.device, dtype=self.dtype), {}
        reward, fields, numbers = self._episode.finished()
        return reward, {"fields": fields, **numbers}
