"""Physics-informed reward fine-tuning of diffusion models of physical fields, distributed over Ray.

``import pirf_ray`` is quick: it registers the environments with Gymnasium, and loads its own names when they are first used.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

# Before torch is loaded: threads that wait must sleep. By default they spin, and beside any other process on the same
# cores every parallel region then waits for a thread that is not running.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from pirf_ray.api import (
        Evaluation,
        Model,
        TrainConfig,
        configure,
        fine_tune,
        load,
        register_method,
        register_objective,
        register_pde,
        register_reward,
    )

__version__ = "0.3.0"
__all__ = [
    "Evaluation",
    "Model",
    "TrainConfig",
    "__version__",
    "configure",
    "fine_tune",
    "load",
    "register_method",
    "register_objective",
    "register_pde",
    "register_reward",
]
SHIPPED_ENVS = ("Burgers-v0", "Darcy-v0", "Helmholtz-v0", "Kolmogorov-v0", "Poisson-v0")
"""Environments that ``import pirf_ray`` registers, without loading the PDEs."""


def refuse_hidden(package: str) -> None:
    """Raise ImportError, or end a command with one line, if another package hides ours of the same general name."""
    spec, own = find_spec(package), Path(__file__).parent.parent / package
    found = [Path(place) for place in (spec.submodule_search_locations or [spec.origin or ""])] if spec else []
    if any(place.resolve() == own.resolve() for place in found):
        return
    where = found[0] if found else "nowhere"
    message = f"the package {package!r} of pirf_ray is hidden by {where}: rename that, or start in another directory"
    if sys.orig_argv[1:2] == ["-m"]:
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(message)


def _register_environments() -> None:
    for env_id in SHIPPED_ENVS:
        if env_id not in gymnasium.registry:
            gymnasium.register(
                id=env_id,
                entry_point="envs.environments:DenoisingEnv",
                vector_entry_point="envs.environments:DenoisingVectorEnv",
                kwargs={"env_id": env_id},
            )


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("pirf_ray.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


refuse_hidden("envs")
_register_environments()
