"""The policies of a training: the reference, the tuned policy, its moving average, and a lagged snapshot."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from pirf_ray.diffusion.policy import Policy

Behaviour = Literal["tuned", "old", "average", "base"]
"""Policy that makes the rollouts."""


class Policies:
    """Policies that start as the base model and differ in their learned tensors.

    - ``base``: the reference of regularizers and densities. It is the pretrained model until ``reset_reference``.
    - ``tuned``: the policy that learns.
    - ``average``: the moving average of the tuned policy.
    - ``old``: a lagged snapshot of the tuned policy, kept only for an objective that asks for it.
    """

    def __init__(self, tuned: Policy, make: Callable[[], Policy], names: Sequence[str], *, old: bool = False) -> None:
        """Set the policies. ``make``: makes another policy that equals the base model. ``names``: of the learning tensors."""
        self._make, self._names = make, tuple(names)
        self.tuned, self.average = tuned, make()
        self.base = Policy(self.tuned.base, tuned=self.tuned.base)
        self._old = make() if old else None
        self.start = {name: tensor.clone() for name, tensor in self.learned(tuned).items()}
        """Learning tensors (theta_0) of the pretrained model by name."""
        self.resets = 0
        """Number of times that the reference was moved."""

    @property
    def old(self) -> Policy:
        """Return the lagged snapshot. ValueError if no objective asked for it."""
        if self._old is None:
            raise ValueError("there is no old policy: the objective does not ask for one")
        return self._old

    def behaviour(self, name: Behaviour) -> Policy:
        """Return the policy of a name."""
        return {"tuned": self.tuned, "average": self.average, "base": self.base}.get(name) or self.old

    def learned(self, policy: Policy) -> dict[str, torch.Tensor]:
        """Return the learning tensors of a policy by name, without a copy."""
        tensors = policy.tuned.tensors()
        return {name: tensors[name].detach() for name in self._names}

    @torch.no_grad()
    def move_old(self, weight: float = 1.0) -> None:
        """Move the old policy towards the tuned policy: old <- (1 - weight) old + weight tuned."""
        tuned = self.learned(self.tuned)
        for name, tensor in self.learned(self.old).items():
            tensor.lerp_(tuned[name], weight)

    def reset_reference(self) -> None:
        """Make the tuned policy of now the reference."""
        self.move_reference(self.learned(self.tuned))
        self.resets += 1

    def move_reference(self, tensors: dict[str, torch.Tensor]) -> None:
        """Make a policy with these learning tensors the reference."""
        self.base = self._make().to(self.tuned.device)
        self.base.load_learned(tensors)
        self.base.tuned.requires_grad_(False)

    def to(self, device: torch.device) -> "Policies":
        """Move all policies to a device and return them."""
        for policy in (self.tuned, self.average, self.base, *([self._old] if self._old else [])):
            policy.to(device)
        self.start = {name: tensor.to(device) for name, tensor in self.start.items()}
        return self

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the tensors that a checkpoint needs beside those of the tuned policy and its average."""
        state = {} if self._old is None else {"old": dict(self.learned(self._old))}
        return state | ({"reference": dict(self.learned(self.base))} if self.resets else {})

    def load(self, state: dict[str, dict[str, torch.Tensor]], resets: int = 0) -> None:
        """Continue from ``state()`` and the number of resets."""
        if self._old is not None:
            self._old.load_learned(state["old"])
        self.resets = resets
        if resets:
            self.move_reference(state["reference"])
