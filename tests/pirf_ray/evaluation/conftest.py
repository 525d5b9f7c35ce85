"""Base, tuned and real fields of Burgers at 16 x 16, and their metrics."""

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
def fields(pde: PDE) -> dict[str, torch.Tensor]:
    """Base and tuned: real fields with white noise of 0.05 and 0.005; data: real fields; real: what sets are compared with."""
    truth = pde.solve(0, "test", range(4 * COUNT)).float()
    x = truth[:COUNT]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    real, data = truth[COUNT : 3 * COUNT], truth[3 * COUNT :]
    return {"base": x + 0.05 * noise, "tuned": x + 0.005 * noise, "data": data, "real": real}


@pytest.fixture(scope="session")
def result(pde: PDE, fields: dict[str, torch.Tensor]) -> EvaluationResult:
    """The metrics of base, tuned and real data."""
    sets = {name: fields[name] for name in ("base", "tuned")}
    return evaluate_sets(pde, sets, real=fields["real"], real_other=fields["data"])
