"""Properties of every registered finisher: samples stay alone, inputs stay, no network; and what each ends with."""

import pytest
import torch

from envs.common.checks import ConfigError
from envs.numerics import seeding
from envs.pdes import PDE, make_pde
from pirf_ray.diffusion.model import Finisher
from pirf_ray.metrics.cost import Meter
from pirf_ray.steering import FINISHERS
from pirf_ray.steering.correction import Correction, CorrectionSettings
from registries import restored

NAMES = sorted(FINISHERS)
SETTINGS = {"correct": CorrectionSettings(corrections=5)}
"""Settings of finishers whose defaults do nothing."""
PDES = ("Burgers-v0", "Darcy-v0", "Helmholtz-v0", "Poisson-v0")
"""PDEs on 8^2 points. The 8^2 grid of Kolmogorov flow does not resolve it, so it has a test of its own at 32^2."""


def make(name: str, pde: PDE) -> Finisher:
    return FINISHERS.make(name, SETTINGS.get(name), pde, "")


def samples(pde: PDE, count: int = 3) -> torch.Tensor:
    """Return solver data with white noise of 0.02, model units, as a network would make them."""
    x = pde.normalizer.to_model(pde.solve(0, "finishers", range(count)))
    return (x + 0.02 * seeding.normal(0, "finishers", range(count), pde.shape)).float()


def residual(pde: PDE, x: torch.Tensor) -> torch.Tensor:
    return pde.residual(pde.normalizer.to_physical(x.double()), pde.default_operator)


@pytest.mark.parametrize("env", PDES)
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_finished_each_on_its_own(name: str, env: str) -> None:
    """In float32 a batch changes rounding only, which corrections amplify to about 1e-4 of a field of size 1."""
    pde = make_pde(env, 8)
    x, finisher = samples(pde), make(name, pde)
    finished = finisher(x)
    assert (finished.shape, finished.dtype, finished.requires_grad) == (x.shape, torch.float32, False)
    assert finished.isfinite().all()
    alone = torch.cat([finisher(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(finished, alone, rtol=1e-3, atol=1e-4)
    assert torch.equal(finisher(x, {"level": torch.zeros(3)}), finished)
    assert isinstance(finisher.steps, int)
    assert len(finisher(x[:0])) == 0


@pytest.mark.parametrize("env", PDES)
@pytest.mark.parametrize("name", NAMES)
def test_no_finisher_raises_a_residual(name: str, env: str) -> None:
    """A millionth is for the rounding of fields to float32."""
    pde = make_pde(env, 8)
    x = samples(pde)
    before, after = residual(pde, x), residual(pde, make(name, pde)(x))
    assert (after <= before * (1 + 1e-6)).all()
    assert (after < 0.9 * before).all() or name == "none"


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_sample_stays_and_harms_no_other(name: str) -> None:
    pde = make_pde("Poisson-v0", 8)
    x, finisher = samples(pde), make(name, pde)
    broken = x.clone()
    broken[1, 0, 3, 3] = torch.nan
    finished = finisher(broken)
    torch.testing.assert_close(finished[[0, 2]], finisher(x)[[0, 2]], rtol=1e-3, atol=1e-4)
    assert torch.equal(finished[1].isnan(), broken[1].isnan())


@pytest.mark.parametrize("name", NAMES)
def test_finishers_need_no_network(name: str) -> None:
    pde = make_pde("Poisson-v0", 8)
    with Meter() as meter:
        make(name, pde)(samples(pde))
    assert meter.cost.network_forwards == 0


@pytest.mark.parametrize("name", NAMES)
def test_channels_that_the_equation_takes_as_given_stay(name: str) -> None:
    """Poisson's source. The solver works in float64, and the way there and back rounds in the last digits of float32."""
    pde = make_pde("Poisson-v0", 8)
    x = samples(pde)
    torch.testing.assert_close(make(name, pde)(x)[:, 0], x[:, 0], rtol=1e-6, atol=1e-6)


def test_no_finish_is_no_change() -> None:
    pde = make_pde("Poisson-v0", 8)
    x = samples(pde)
    assert make("none", pde)(x) is x and make("none", pde).steps == 0


def test_correct_is_the_correction_with_the_named_operator() -> None:
    pde = make_pde("Burgers-v0", 8)
    x = samples(pde)
    for operator in ("", "simpson"):
        finisher = FINISHERS.make("correct", CorrectionSettings(corrections=3), pde, operator)
        assert torch.equal(finisher(x), Correction(pde, 3, operator)(x)) and finisher.steps == 3


@pytest.mark.parametrize(
    ("env", "resolution", "parameters"), [*((e, 8, {}) for e in PDES), ("Kolmogorov-v0", 32, {"reynolds": 40.0})]
)
def test_solved_samples_obey_the_solver(env: str, resolution: int, parameters: dict[str, float]) -> None:
    """The relative L2 error against a further solve is that of float32 fields: 1e-7, times at most 1e3 for a solver's condition."""
    pde = make_pde(env, resolution, **parameters)
    x = samples(pde, 2)
    solved = make("solve", pde)(x)
    error = pde.resolve_error(pde.normalizer.to_physical(solved.double()))
    assert (error < 1e-4).all()
    assert (error < 0.1 * pde.resolve_error(pde.normalizer.to_physical(x.double()))).all()


def test_solve_refuses_a_pde_without_resolve_in_one_sentence() -> None:
    class Unsolved:
        env_id = "Unsolved-v0"

        def provides(self, name: str) -> bool:
            return name == "solve"

    message = "^Unsolved-v0 has no .*: --finish solve needs one; known: correct, none$"
    with pytest.raises(ConfigError, match=message):
        FINISHERS.make("solve", None, Unsolved(), "")


def test_unknown_and_own_finishers(monkeypatch: pytest.MonkeyPatch) -> None:
    restored(FINISHERS, monkeypatch)
    with pytest.raises(ValueError, match="--finish: unknown finisher 'project'; known: correct, none, solve"):
        FINISHERS.find("project")

    @FINISHERS.register("half")
    class Half:
        def __init__(self, settings: object, pde: PDE, operator: str) -> None: ...

    with pytest.raises(TypeError, match="must be a Finisher .*got Half without steps, __call__"):
        make("half", make_pde("Poisson-v0", 8))
