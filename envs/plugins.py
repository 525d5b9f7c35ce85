"""PDEs from outside this package, found by entry point or by module name.

An installed package names the module that registers its PDE in its pyproject.toml:

    [project.entry-points."pirf_ray.pdes"]
    heat = "heat_package.heat"

A user's own file is named on the command line as in Gymnasium: ``--env heat:Heat-v0``. The environment variable PIRF_RAY_PDES
names modules for every command, separated by commas. The processes of a run inherit this variable.
"""

from importlib.metadata import entry_points

import envs.pdes  # noqa: F401  (the PDEs of this package come first)
from envs.common.registry import VARIABLE, import_user_module, named_modules

GROUP = "pirf_ray.pdes"


def load_plugins() -> None:
    """Import every module from outside that registers a PDE. ValueError names a module that does not exist."""
    for point in entry_points(group=GROUP):
        import_user_module(point.value.partition(":")[0], f"entry point {point.name!r} of group {GROUP}")
    for module in named_modules():
        import_user_module(module, VARIABLE)
