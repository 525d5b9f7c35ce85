"""PDEs from outside this package: installed ones by entry point, one's own files by name.

An installed package names the module that registers its PDE in its pyproject.toml:

    [project.entry-points."pirf_ray.pdes"]
    heat = "heat_package.heat"

A file of one's own is named on the command line as in Gymnasium, ``--env heat:Heat-v0``, or for every command in the
variable PIRF_RAY_PDES (module names, separated by commas), which the processes of a run inherit.
"""

from importlib.metadata import entry_points

import envs.pdes  # noqa: F401  (the PDEs of this package come first)
from envs.common.registry import VARIABLE, import_user_module, named_modules

GROUP = "pirf_ray.pdes"


def load_plugins() -> None:
    """Import every module that registers a PDE; ImportError names the one that fails."""
    for point in entry_points(group=GROUP):
        import_user_module(point.value.partition(":")[0], f"entry point {point.name!r} of group {GROUP}")
    for module in named_modules():
        import_user_module(module, VARIABLE)
