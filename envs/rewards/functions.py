"""Rewards from users' functions, and checks of what users' rewards return.

>>> @reward("calm", differentiable=True)
... def calm(fields):
...     "Minus the mean square of the field."
...     return -fields.square().flatten(1).mean(1)
>>> calm(torch.ones(2, 1, 8, 8))
tensor([-1., -1.])

``--reward module:calm`` imports the module and finds the reward under its name.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch

from envs.common.parts import PartSettings, require_protocol
from envs.numerics.conditions import Condition
from envs.pdes import PDE
from envs.rewards.base import Reward, RewardOutput, Scope, register

Function = Callable[[torch.Tensor], torch.Tensor]
"""A function of fields (b, c, h, w) in physical units that returns a reward (b,)."""


class FunctionReward:
    """A function of fields as a reward."""

    def __init__(self, function: Function, *, differentiable: bool, scope: Scope = "sample", name: str = "") -> None:
        """Set the function of fields (b, c, h, w) in physical units that returns the reward (b,).

        ``differentiable``: whether the reward has a gradient. Without it the function gets detached fields and may return
        anything that ``torch.as_tensor`` takes. ``name`` stands in messages.
        """
        self.function, self.differentiable, self.scope = function, differentiable, scope
        self.name = name or getattr(function, "__name__", type(function).__name__)

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        """Return the rewards (b,) of fields (b, c, h, w). The function does not see the condition.

        TypeError or ValueError names the reward if the function returns something else.
        """
        if self.differentiable:
            reward = self._tensor(self.function(fields), fields)
        else:
            with torch.no_grad():
                reward = self._tensor(self.function(fields.detach()), fields)
        return checked(RewardOutput(reward=reward), fields, self.name)

    def _tensor(self, value: object, fields: torch.Tensor) -> torch.Tensor:
        try:
            return torch.as_tensor(value, dtype=fields.dtype, device=fields.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"reward {self.name!r} must return a tensor (b,), got {type(value).__name__}: {error}") from error

    def __reduce__(self) -> tuple[Callable[[], "FunctionReward"], tuple[()]]:
        # A registered class has the name of the user's function, so pickle would not find it: it is made anew.
        arguments: dict[str, Any] = {"differentiable": self.differentiable, "scope": self.scope, "name": self.name}
        return partial(FunctionReward, self.function, **arguments), ()


def reward(name: str, differentiable: bool = True, scope: Scope = "sample") -> Callable[[Function], Function]:
    """Return a decorator that registers a function of fields (b, c, h, w) -> (b,) as the reward ``name``.

    ``differentiable``: whether the reward has a gradient. ``scope``: whether it is a function of each sample or of the whole
    set. The decorator returns the function unchanged.
    """

    def add(function: Function) -> Function:
        class Registered(FunctionReward):
            def __init__(self, settings: PartSettings, pde: PDE) -> None:
                super().__init__(function, differentiable=differentiable, scope=scope, name=name)

        for attribute in ("__module__", "__qualname__", "__name__", "__doc__"):
            setattr(Registered, attribute, getattr(function, attribute))
        register(name)(Registered)
        return function

    return add


class Checked:
    """A user's reward whose outputs are checked. Other members of the reward are reached through this object."""

    def __init__(self, reward: Any, name: str) -> None:
        """Wrap a reward. TypeError, which names the protocol, if the object is not a reward."""
        require_reward(reward, f"reward {name!r}")
        self.inner, self.name = reward, name
        self.differentiable: bool = reward.differentiable
        self.scope: Scope = reward.scope
        self._first = True

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        """Return the reward's output for fields (b, c, h, w). A reward without gradient gets detached fields.

        TypeError or ValueError names the reward if the output has another type or shape, or lacks the promised gradient. The
        first output must be finite where the fields are.
        """
        if self.differentiable:
            output = self.inner(fields, condition)
        else:
            with torch.no_grad():
                output = self.inner(fields.detach(), condition)
        output = checked(output, fields, self.name, finite=self._first)
        asked = self.differentiable and fields.requires_grad and torch.is_grad_enabled()
        if asked and not output.reward.requires_grad:
            raise ValueError(f"reward {self.name!r} promises a gradient (differentiable = True), but its output has none")
        self._first = False
        return output

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):  # while an object is unpickled it has no inner reward yet
            raise AttributeError(name)
        return getattr(self.inner, name)


def require_reward(reward: object, what: str) -> None:
    """Raise TypeError, which names the protocol, unless an object is a Reward. ``what`` stands first in the message."""
    protocol = f"{what} must be a {Reward.__name__} ({Reward.__module__}.{Reward.__name__})"
    if isinstance(reward, type):
        raise TypeError(f"{protocol}, got the class {reward.__name__}")
    require_protocol(reward, Reward, what)
    scope, differentiable = getattr(reward, "scope", None), getattr(reward, "differentiable", None)
    if scope not in get_args(Scope) or not isinstance(differentiable, bool):
        raise TypeError(
            f"{protocol}: scope is one of {', '.join(get_args(Scope))} and differentiable a bool, "
            f"got scope {scope!r} and differentiable {differentiable!r}"
        )
    if not _takes(reward, 2):
        raise TypeError(f"{protocol}: it is called with (fields, condition)")


def _takes(function: Any, arguments: int) -> bool:
    """Return whether a callable takes a number of positional arguments. True if its signature is unknown."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return True
    try:
        signature.bind(*range(arguments))
    except TypeError:
        return False
    return True


def checked(output: object, fields: torch.Tensor, name: str, *, finite: bool = False) -> RewardOutput:
    """Return the output of a reward for fields (b, c, h, w). ``finite``: whether the values are checked too.

    TypeError if it is not a RewardOutput, ValueError if a tensor does not have the shape (b,) or if a reward is not finite
    although its field is. The message names the reward.
    """
    if not isinstance(output, RewardOutput):
        kind = f"{RewardOutput.__module__}.{RewardOutput.__name__}"
        raise TypeError(f"reward {name!r} must return a {RewardOutput.__name__} ({kind}), got {type(output).__name__}")
    named = {"reward": output.reward, **output.parts, **output.violations}
    for part, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{part!r} of reward {name!r} must be a tensor ({len(fields)},), got {type(tensor).__name__}")
        if tuple(tensor.shape) != (len(fields),):
            raise ValueError(
                f"{part!r} of reward {name!r} must have one number per sample, shape ({len(fields)},), got {tuple(tensor.shape)}"
            )
    if finite:
        _require_finite(output.reward.detach(), fields.detach(), name)
    return output


def _require_finite(reward: torch.Tensor, fields: torch.Tensor, name: str) -> None:
    """Raise ValueError if the reward (b,) of a finite field is not finite."""
    wrong = ~reward.isfinite() & fields.isfinite().flatten(1).all(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"reward {name!r} is {float(reward[row])} for sample {row} of {len(reward)}, whose field is finite")
