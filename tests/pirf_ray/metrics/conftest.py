"""Sets of Burgers fields at 16 x 16 whose noise is known, and their metrics."""

import pytest
import torch

from envs.pdes import PDE, make_pde
from pirf_ray.metrics.evaluation import evaluate_sets
from pirf_ray.metrics.results import EvaluationResult

COUNT = 48


@pytest.fixture(scope="session")
def pde() -> PDE:
    """Burgers at 16 x 16."""
    return make_pde("Burgers-v0", 16)


@pytest.fixture(scope="session")
def truth(pde: PDE) -> torch.Tensor:
    """Real fields: four times the number of a set's samples."""
    return pde.solve(0, "test", range(4 * COUNT)).float()


@pytest.fixture(scope="session")
def real(truth: torch.Tensor) -> torch.Tensor:
    """Held-out fields that sets are compared with."""
    return truth[COUNT : 3 * COUNT]


@pytest.fixture(scope="session")
def real_other(truth: torch.Tensor) -> torch.Tensor:
    """Held-out fields that are measured like a set."""
    return truth[3 * COUNT :]


@pytest.fixture(scope="session")
def sets(truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Base and tuned: real fields with white noise of 0.05 and 0.005."""
    fields = truth[:COUNT]
    noise = torch.randn(fields.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    return {"base": fields + 0.05 * noise, "tuned": fields + 0.005 * noise}


@pytest.fixture(scope="session")
def result(pde: PDE, sets: dict[str, torch.Tensor], real: torch.Tensor, real_other: torch.Tensor) -> EvaluationResult:
    """The metrics of base, tuned and real data."""
    return evaluate_sets(pde, sets, real=real, real_other=real_other)
