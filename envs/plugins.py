"""PDEs from outside this package: installed ones by entry point, one's own files by name.

An installed package names the module that registers its PDE in its pyproject.toml:

    [project.entry-points."pirf_ray.pdes"]
    heat = "heat_package.heat"

A file of one's own is named on the command line as in Gymnasium, ``--env heat:Heat-v0``, or for every command in the
variable PIRF_RAY_PDES (module names, separated by commas), which the processes of a run inherit.
"""

import importlib
import os
from importlib.metadata import entry_points

import envs.pdes  # noqa: F401  (the PDEs of this package come first)

GROUP = "pirf_ray.pdes"
VARIABLE = "PIRF_RAY_PDES"


def load_plugins() -> None:
    """Import every module that registers a PDE; ImportError names the one that fails."""
    for point in entry_points(group=GROUP):
        _load(point.value.partition(":")[0], f"entry point {point.name!r} of group {GROUP}")
    for module in named_modules():
        _load(module, VARIABLE)


def named_modules() -> list[str]:
    """The modules that whoever started this process has named."""
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def load_module(module: str) -> None:
    """Import a module that registers a PDE, here and in every process started from here."""
    _load(module, f"--env {module}:...")
    named = named_modules()
    if module not in named:
        os.environ[VARIABLE] = ",".join([*named, module])


def _load(module: str, source: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        raise ValueError(f"{source}: no module {module!r} in this directory or on the Python path") from None
