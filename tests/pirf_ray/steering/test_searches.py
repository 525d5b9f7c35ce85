"""SVDD and best-of-n: each does what it claims, step by step."""

import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from envs.rewards.base import RewardOutput
from pirf_ray.diffusion.sampling import SampleBatch
from pirf_ray.steering import OneDenoiser, SteeringContext, steer
from pirf_ray.steering.best_of_n import BestOfN, BestOfNSettings
from pirf_ray.steering.search import Search, pick
from pirf_ray.steering.svdd import SVDD, SVDDSettings

SHAPE = (1, 8, 8)
BATCH = SampleBatch(seed=0, stream="searches", ids=(0, 1, 2))


def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the denoised x for data N(0, 1)."""
    return x / (1 + sigma**2)


class Mean:
    """The mean of a field as its reward; not a number where the mean is above a limit."""

    differentiable, scope = False, "sample"

    def __init__(self, limit: float = torch.inf) -> None:
        self.limit = limit

    def __call__(self, fields: torch.Tensor, condition: object = None) -> RewardOutput:
        mean = fields.flatten(1).mean(1)
        return RewardOutput(reward=torch.where(mean > self.limit, torch.nan, mean))


def context(reward: object = None) -> SteeringContext:
    return SteeringContext(policy=OneDenoiser(denoise), reward=reward or Mean())


def noise() -> torch.Tensor:
    return seeding.normal(0, "searches", BATCH.ids, SHAPE)


@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_svdd_written_out(temperature: float) -> None:
    """From each state 4 proposals of the step, and the pick by the mean of their denoised fields."""
    process = DenoisingProcess(5, "stochastic", sigma_max=3.0)
    random = BATCH.random("steer")
    state = process.initial(noise())
    for _ in range(4):
        law = process.step_law(state, denoise(*process.observe(state)))
        drawn = random.draw((4, *SHAPE))
        proposals = torch.stack([law.draw(drawn[:, j]) for j in range(4)], dim=1)
        values = denoise(proposals, process.sigmas[state.step + 1]).flatten(2).mean(2)
        place = pick(values, temperature, torch.special.ndtr(random.draw(())))
        state = type(state)(x=proposals[torch.arange(3), place], step=state.step + 1)
    expected = denoise(*process.observe(state))
    steerer = SVDD(SVDDSettings(proposals=4, temperature=temperature), context())
    torch.testing.assert_close(steer(steerer).for_batch(BATCH)(process, noise()), expected, rtol=1e-12, atol=1e-12)


def test_one_proposal_is_a_plain_sample() -> None:
    """No reward is asked, and the steps are those of a search without proposals."""

    def unused(fields: torch.Tensor, condition: object = None) -> RewardOutput:
        raise AssertionError("a single proposal needs no value")

    reward = Mean()
    reward.__class__ = type("Unused", (Mean,), {"__call__": unused})
    process = DenoisingProcess(5, "stochastic", sigma_max=3.0)
    sampler = steer(SVDD(SVDDSettings(proposals=1), context(reward))).for_batch(BATCH)
    of = Search(process, OneDenoiser(denoise), noise(), BATCH)
    particles = of.first()
    while not process.terminal(particles.state):
        particles = of.step(particles)
    assert torch.equal(sampler(process, noise()), particles.state.x)


def test_more_proposals_have_higher_values() -> None:
    """The mean of 64 cells of N(0, 1) has the standard deviation 1/8; the largest of 16 is expected at 1.77 of them."""
    process = DenoisingProcess(8, "stochastic")
    batch = SampleBatch(seed=0, stream="searches", ids=range(64))
    start = seeding.normal(0, "searches", batch.ids, SHAPE)
    means = []
    for proposals in (1, 4, 16):
        x = steer(SVDD(SVDDSettings(proposals=proposals), context())).for_batch(batch)(process, start)
        means.append(x.mean().item())
    assert abs(means[0]) < 4 / 8 / 8
    assert means[1] > means[0] + 1 / 8 and means[2] > means[1] + 1 / 16


def test_best_of_n_keeps_the_best_of_the_start_and_of_further_starts() -> None:
    process, random = DenoisingProcess(5), BATCH.random("steer")
    starts = [noise(), *(random.draw((1, *SHAPE))[:, 0] for _ in range(3))]
    plain = steer(BestOfN(BestOfNSettings(candidates=1), context()))
    candidates = torch.stack([plain(process, start) for start in starts], dim=1)
    best = candidates.flatten(2).mean(2).argmax(1)
    assert len(best.unique()) > 1
    made = steer(BestOfN(BestOfNSettings(candidates=4), context())).for_batch(BATCH)(process, noise())
    assert torch.equal(made, candidates[torch.arange(3), best])


def test_a_candidate_whose_reward_is_not_a_number_is_not_kept() -> None:
    """Half of the candidates have a positive mean, so that none of 8 is left in one of 256 samples."""
    made = steer(BestOfN(BestOfNSettings(candidates=8), context(Mean(limit=0.0)))).for_batch(BATCH)(DenoisingProcess(5), noise())
    assert (made.flatten(1).mean(1) <= 0).all()


def test_rounds_of_a_search_share_no_noise() -> None:
    """With a stochastic process, the steps of each candidate too."""
    process = DenoisingProcess(5, "stochastic", sigma_max=3.0)
    seen: list[torch.Tensor] = []

    class Seen(Mean):
        def __call__(self, fields: torch.Tensor, condition: object = None) -> RewardOutput:
            seen.append(fields)
            return super().__call__(fields)

    steer(BestOfN(BestOfNSettings(candidates=3), context(Seen()))).for_batch(BATCH)(process, noise())
    assert len(torch.cat(seen).unique(dim=0)) == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: SVDDSettings(proposals=0), "--proposals must be at least 1, got 0"),
        (lambda: SVDDSettings(temperature=-1.0), "--temperature must not be negative, got -1"),
        (lambda: BestOfNSettings(candidates=0), "--candidates must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings()


def test_costs_count_the_last_step_once() -> None:
    """N = 5 has four random steps: 1 + 4 m evaluations of SVDD, 5 with an exact soft value; best-of-n has n times a sample."""
    process = DenoisingProcess(5, "stochastic")
    svdd = SVDD(SVDDSettings(proposals=3), context())
    exact = SVDD(
        SVDDSettings(proposals=3), SteeringContext(policy=OneDenoiser(denoise), soft_value=lambda x, step: x.flatten(1).sum(1))
    )
    best = BestOfN(BestOfNSettings(candidates=3), context())
    forwards = [s.cost(process).network_forwards for s in (svdd, exact, best)]
    assert forwards == [13, 5, 15]
    assert [s.rewarded(process) for s in (svdd, exact, best)] == [12, 0, 3]
    assert best.cost(DenoisingProcess(5)).network_forwards == 27
