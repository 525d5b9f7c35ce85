"""What searches are made of: rows of particles, random numbers by sample id, evaluations in parts, picks."""

import pytest
import torch

from envs.denoising import Denoise, DenoisingProcess, State
from envs.numerics import seeding
from envs.numerics.conditions import Condition
from pirf_ray.diffusion.sampling import SampleBatch, finish
from pirf_ray.steering.search import EVALUATED_TOGETHER, Archive, OneDenoiser, Particles, Search, pick

SHAPE = (1, 2, 2)


def noise(ids: tuple[int, ...]) -> torch.Tensor:
    return seeding.normal(0, "search", ids, SHAPE)


def search(
    ids: tuple[int, ...] = (0, 1, 2),
    denoise: Denoise = lambda x, sigma: 0 * x,
    solver: str = "heun",
    condition: Condition | None = None,
) -> Search:
    batch = SampleBatch(seed=0, stream="search", ids=ids, condition=condition)
    return Search(DenoisingProcess(5, solver), OneDenoiser(denoise), noise(ids), batch)


def numbered(count: int) -> Particles:
    """Return particles of which everything says their number."""
    number = torch.arange(count, dtype=torch.float64)
    fields = number[:, None, None, None].expand(count, *SHAPE)
    state = State(x=fields, step=2, slope=fields + 10, previous=fields + 20)
    return Particles(state=state, denoised=fields + 30, values=number + 40, carried={"weight": number + 50})


def numbers(particles: Particles) -> list[list[float]]:
    state = particles.state
    tensors = (state.x, state.slope, state.previous, particles.denoised, particles.values, particles.carried["weight"])
    return [tensor.flatten(1)[:, 0].tolist() if tensor.ndim > 1 else tensor.tolist() for tensor in tensors]


def test_rows_of_particles_take_everything_along() -> None:
    rows = numbered(3).rows(torch.tensor([2, 0, 2]))
    assert numbers(rows) == [[start + 2, start, start + 2] for start in (0, 10, 20, 30, 40, 50)]
    assert rows.state.step == 2 and len(rows) == 3
    assert numbers(numbered(2).times(2)) == [[start, start, start + 1, start + 1] for start in (0, 10, 20, 30, 40, 50)]


def test_moved_particles_forget_their_evaluation() -> None:
    moved = numbered(2).moved(torch.ones(2, *SHAPE))
    assert moved.denoised is None and (moved.state.x == 1).all()
    assert moved.state.previous is not None and moved.values is not None


def test_a_particle_is_picked_of_each_sample() -> None:
    of = search((5, 6))
    picked = of.picked(numbered(6), torch.tensor([2, 0]))
    assert numbers(picked)[0] == [2, 3]
    assert of.by_sample(torch.arange(6)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_random_numbers_depend_on_the_id_and_the_draw_only() -> None:
    """The first particle of a sample has the same noise with one or more particles in the first draw."""
    whole, part = search((3, 8, 1)), search((8,))
    first, alone = whole.normal(2), part.normal(2)
    assert torch.equal(first[2:4], alone)
    assert torch.equal(whole.uniform()[1:2], part.uniform())
    assert torch.equal(whole.normal()[1:2], part.normal())
    assert torch.equal(search((8,)).normal(), alone[:1])
    assert not torch.equal(alone[0], alone[1])


def test_uniform_numbers_are_uniform() -> None:
    """The mean of 4000 has a standard error of 1/sqrt(12 * 4000) = .0046, their mean square of sqrt(4/45/4000) = .0047."""
    uniform = search(tuple(range(4000))).uniform()
    assert uniform.min() >= 0 and uniform.max() <= 1
    assert uniform.mean().item() == pytest.approx(1 / 2, abs=4 * 0.0046)
    assert uniform.square().mean().item() == pytest.approx(1 / 3, abs=4 * 0.0047)


@pytest.mark.parametrize("solver", ["heun", "euler", "2m"])
def test_whole_steps_lead_to_the_samplers_end(solver: str) -> None:
    """A step takes what an evaluation before it has found, so that looking costs nothing."""
    calls = []

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        calls.append(sigma)
        return x / (1 + sigma**2)

    of = search(denoise=denoise, solver=solver)
    particles = of.first()
    while not of.process.terminal(particles.state):
        particles = of.step(of.look(of.look(particles)))
    assert len(calls) == of.process.num_evaluations
    assert torch.equal(particles.state.x, finish(of.process, lambda sigma: denoise, of.process.initial(of.noise)))
    assert of.look(particles).denoised is None


def test_a_stochastic_step_draws_for_each_particle() -> None:
    of = search(solver="stochastic")
    particles = of.step(of.first().times(4))
    assert len(particles) == 12 and len(particles.state.x.unique(dim=0)) == 12


def test_many_particles_are_evaluated_in_parts_with_their_conditions() -> None:
    """The batch has 3 samples, so at most EVALUATED_TOGETHER fields are evaluated at a time."""
    sizes = []

    def level(x: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        assert condition is not None
        sizes.append(len(x))
        return condition["level"] + 0 * x.flatten(1)[:, 0]

    of = search(condition={"level": torch.tensor([1.0, 2.0, 3.0])})
    values = of.in_parts(level, torch.zeros(3 * 50, *SHAPE))
    assert sizes == [EVALUATED_TOGETHER, EVALUATED_TOGETHER, 22]
    assert of.by_sample(values).tolist() == [[1.0] * 50, [2.0] * 50, [3.0] * 50]


def test_the_archive_keeps_the_best_of_each_sample() -> None:
    archive, nan = Archive(), torch.nan
    for number, values in enumerate([[1.0, nan, 3.0, nan], [2.0, 0.0, 3.0, nan], [nan, -1.0, 4.0, 5.0]]):
        archive.keep(torch.full((4, 1, 1, 1), float(number)), torch.tensor(values))
    assert archive.x.flatten().tolist() == [1, 1, 2, 2]
    assert archive.values.tolist() == [2, 0, 4, 5]


def test_picks_follow_the_values() -> None:
    """Of 4000 picks with probabilities proportional to exp(v / 2). Four standard errors of a share p are 4 sqrt(p (1 - p) / 4000)."""
    values = torch.tensor([0.0, 1.0, -3.0, 2.5])
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    picked = pick(values.expand(4000, 4), 2.0, uniform)
    share = torch.bincount(picked, minlength=4) / 4000
    torch.testing.assert_close(share.double(), (values.double() / 2).softmax(0), rtol=0, atol=1 / 4000)
    assert (pick(values.expand(4000, 4), 0.0, uniform) == 3).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_value_that_is_not_finite_is_not_picked(temperature: float) -> None:
    broken = torch.tensor([[torch.nan, -1e30, -torch.inf], [torch.inf, torch.nan, 0.0], [torch.nan, torch.nan, torch.nan]])
    picked = pick(broken, temperature, torch.tensor([0.0, 0.999999, 0.5]))
    assert picked[:2].tolist() == [1, 2]
    assert 0 <= picked[2] <= 2
    assert pick(torch.zeros(1, 3), temperature, torch.tensor([1.0])).item() in (0, 2)
