"""The Gymnasium environments: thin adapters of envs.episodes.Episode. Gymnasium finds both classes here by name."""

from typing import Any

import gymnasium
import numpy as np
import torch

from envs.denoising import Solver
from envs.episodes import DEFAULT_STEPS, Episode, EpisodeView, StepCovariance, checked_options
from envs.numerics.seeding import MAX_SEED
from envs.pdes import PDE
from envs.rewards import Reward
from envs.vector_environments import DenoisingVectorEnv

__all__ = ["DenoisingEnv", "DenoisingVectorEnv", "require_same_pde"]


class DenoisingEnv(EpisodeView, gymnasium.Env[dict[str, Any], np.ndarray]):
    """Denoising of a single sample, with numpy arrays in and out.

    ## Description

    The agent is a denoiser of EDM's sampler (Karras et al. 2022, arXiv 2206.00364). It turns noise into a sample of a PDE with c
    channels on an h x w grid (Yuan et al. 2025, arXiv 2509.20570). A step is a network evaluation.

    ## Action Space

    ``Box(-inf, inf, (c, h, w), float32)``: the denoised prediction D(x; sigma), model units.

    ## Observation Space

    ``Dict`` with four entries. Together with the action, and with the noise of a stochastic step, they decide the next
    observation. Observations are copies.

    ==========  ==================================  =====================================================================
    entry       space                               content
    ==========  ==================================  =====================================================================
    ``x``       ``Box(-inf, inf, (c, h, w),         the state at which the network is evaluated next, model units; the
                float32)``                          finished sample at the end
    ``sigma``   ``Box(0, sigma_max, (1,),           the noise level of ``x``, 0 at the end
                float32)``
    ``stage``   ``Discrete(2)``                     1 if the next step uses ``memory``: Heun's corrector, and 2M with a
                                                    step before; otherwise 0
    ``memory``  ``Box(-inf, inf, (c, h, w),         the slope dx/dsigma of Heun's predictor, or the last denoised
                float32)``                          prediction for 2M; zeros in stage 0
    ==========  ==================================  =====================================================================

    ## Rewards

    0 at every step except the last. The last reward is the reward of the finished sample: by default the negative mean square
    residual, clipped at the floor of exact data. ``info`` of the last step holds ``fields`` (c, h, w), the sample in physical
    units, ``violations``, the violation of each physical term by name, and ``parts``, further numbers of the reward by name.

    ## Starting State

    ``x`` is sigma_max times standard normal noise. The noise is counter-based (``envs.numerics.seeding``): it depends on the
    seed, the stream and the sample id. ``reset(seed=s)`` starts sample 0 of the seed s, as in row 0 of a batch. ``reset()``
    starts the next sample. An environment that never had a seed takes a fresh one. Options of ``reset``:

    ==============  =========================================================================================================
    option          meaning
    ==============  =========================================================================================================
    ``state``       ``envs.denoising.State`` from which the episode starts, with fields (1, c, h, w), model units
    ``sample_ids``  sample id in a list, in place of the next id
    ``stream``      name of the noise's stream, by default ``"env"``
    ``condition``   arrays (1, ...) by name, which the reward takes as its second argument
    ==============  =========================================================================================================

    ## Episode End

    ``terminated`` at sigma = 0: after 2N - 1 steps with Heun, after N steps with the other solvers. ``truncated`` is always False.

    ## Arguments

    ===================  ===============  ===============================================================================
    argument             default          meaning
    ===================  ===============  ===============================================================================
    ``resolution``       the PDE's        rows and columns of the grid, even
    ``num_steps``        20               number N of sampler steps
    ``solver``           ``"heun"``       ``"heun"``, ``"euler"``, ``"2m"`` or ``"stochastic"``
    ``eta``              1                noise of stochastic steps in (0, 1]; 1 forgets the state before
    ``step_covariance``  ``"plain"``      covariance of stochastic steps: ``"plain"``, or ``"exact"`` for a Gaussian law
    ``operator``         the PDE's        residual operator of the default reward
    ``reward``           None             reward in place of the default reward (``envs.rewards.Reward``)
    others               the PDE's        physical parameters of the PDE, such as ``reynolds``
    ===================  ===============  ===============================================================================

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
        eta: float = 1.0,
        step_covariance: StepCovariance = "plain",
        operator: str = "",
        reward: Reward | None = None,
        **parameters: float,
    ) -> None:
        """Make the environment of a PDE. ValueError or TypeError if an argument is not allowed."""
        self._episode = Episode(
            env_id,
            1,
            resolution=resolution,
            num_steps=num_steps,
            solver=solver,
            eta=eta,
            step_covariance=step_covariance,
            operator=operator,
            reward=reward,
            parameters=parameters,
        )
        self.observation_space = self._episode.observation_space()
        self.action_space = self._episode.action_space()

    def _observation(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy()[0] for name, tensor in self._episode.observation().items()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode. Return the first observation and an empty ``info``.

        ValueError or TypeError if an option is not allowed.
        """
        super().reset(seed=seed)
        with torch.no_grad():
            self._episode.start(seed, lambda: int(self.np_random.integers(MAX_SEED)), **checked_options(options))
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Take a network evaluation. Return the observation, reward, ``terminated``, ``truncated`` and ``info``.

        ValueError if the action has another shape, or if the episode has ended.
        """
        denoised = np.array(action, dtype=np.float32)  # a copy, since the state may keep it
        if denoised.shape != self.pde.shape:
            raise ValueError(f"expected an action of shape {self.pde.shape}, got {denoised.shape}")
        with torch.no_grad():
            self._episode.step(torch.from_numpy(denoised)[None])
            if not self._episode.terminal:
                return self._observation(), 0.0, False, False, {}
            reward, fields, numbers = self._episode.finished()
        named = {group: {name: float(t[0]) for name, t in values.items()} for group, values in numbers.items()}
        return self._observation(), float(reward[0]), True, False, {"fields": fields.numpy()[0], **named}


def require_same_pde(model: PDE, env: PDE) -> None:
    """Raise ValueError, which names both, if the PDE of a model is not the PDE of an environment.

    PDEs are equal if they have the same class, resolution and parameters. The reward of a Reynolds number of 1000 means nothing
    for a model of the Reynolds number 40.
    """
    if model != env:
        raise ValueError(f"the model belongs to {_described(model)}, the environment to {_described(env)}")


def _described(pde: PDE) -> str:
    parameters = "".join(f", {name} {value:g}" for name, value in sorted(pde.parameters.items()))
    return f"{pde.env_id} (resolution {pde.resolution}{parameters})"
