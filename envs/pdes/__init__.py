"""The PDEs. Importing this package registers them."""

from envs.pdes.base import PDE, REGISTRY, make_pde, register
from envs.pdes.burgers import Burgers

__all__ = ["PDE", "REGISTRY", "Burgers", "make_pde", "register"]
