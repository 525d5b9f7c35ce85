"""The PDEs. Importing this package registers its five PDEs."""

from envs.pdes.base import PDE, REGISTRY, make_pde, register, relative_error
from envs.pdes.burgers import Burgers
from envs.pdes.darcy import Darcy
from envs.pdes.helmholtz import Helmholtz
from envs.pdes.kolmogorov import Kolmogorov
from envs.pdes.poisson import Poisson

__all__ = ["PDE", "REGISTRY", "Burgers", "Darcy", "Helmholtz", "Kolmogorov", "Poisson", "make_pde", "register", "relative_error"]
