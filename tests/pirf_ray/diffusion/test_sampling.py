"""Sampling: the steps of a sampler, their order, noise by sample id, settings."""

from collections.abc import Iterable

import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.diffusion.sampling import SamplerSettings, advance, finish, noise_batches

SHAPE = (1, 8, 8)


def contraction(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the ideal denoised x for data N(0, 1)."""
    return x / (1 + sigma**2)


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_a_sample_made_in_two_parts_is_the_sample_made_in_one(solver: str) -> None:
    process = DenoisingProcess(5, solver)
    start = process.initial(seeding.normal(0, "t", range(3), SHAPE))
    whole = finish(process, lambda _: contraction, start)
    for step in range(6):
        state = advance(process, lambda _: contraction, start, step)
        assert (state.step, state.slope) == (step, None)
        assert torch.equal(finish(process, lambda _: contraction, state), whole)
    assert advance(process, lambda _: contraction, start, 0) is start


@pytest.mark.parametrize(("solver", "evaluations"), [("heun", [2, 2, 2, 2, 1]), ("euler", [1, 1, 1, 1, 1])])
def test_the_denoiser_is_chosen_once_per_evaluation_by_the_sigma_at_the_start_of_the_step(
    solver: str, evaluations: list[int]
) -> None:
    process, asked = DenoisingProcess(5, solver), []

    def denoiser_from(sigma: float):
        asked.append(sigma)
        return contraction

    finish(process, denoiser_from, process.initial(torch.zeros(1, *SHAPE)))
    assert asked == [sigma for sigma, count in zip(process.sigmas, evaluations, strict=False) for _ in range(count)]


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("euler", 1)])
def test_samples_of_a_gaussian_have_its_law(solver: str, order: int) -> None:
    """x' = s x / (1 + s^2) has the solution x_0 = x_T / sqrt(1 + s_T^2), and the error falls with the solver's order."""
    errors = []
    for steps in (32, 64):
        process = DenoisingProcess(steps, solver)
        start = process.initial(seeding.normal(0, "t", range(2), SHAPE))
        exact = start.x / (1 + process.sigmas[0] ** 2) ** 0.5
        errors.append((finish(process, lambda _: contraction, start) - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_noise_depends_on_the_sample_id_whatever_the_batch(batch: int) -> None:
    ids, seen = [4, 0, 9], []

    def progress(ranges: Iterable[range]) -> Iterable[range]:
        for part in ranges:
            seen.append(len(part))
            yield part

    batches = list(
        noise_batches(SHAPE, seed=1, stream="s", sample_ids=ids, batch=batch, device=torch.device("cpu"), progress=progress)
    )
    assert [len(b) for b in batches] == seen and max(seen) <= batch and sum(seen) == 3
    assert torch.equal(torch.cat(batches), seeding.normal(1, "s", ids, SHAPE).float())


def test_settings_of_a_sampler() -> None:
    process = SamplerSettings(num_steps=7, solver="euler").process()
    assert (process.num_steps, process.solver, process.num_evaluations) == (7, "euler", 7)
    assert SamplerSettings().process().num_evaluations == 2 * 20 - 1
    with pytest.raises(ConfigError, match="--num-steps must be at least 1, got 0"):
        SamplerSettings(num_steps=0)
