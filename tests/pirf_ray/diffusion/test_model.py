"""Samples of a model: groups, noise, own sampler, finisher, and the number of evaluations."""

from collections.abc import Iterable, Sequence

import pytest
import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.model import BASE, BASE_FINISHED, TUNED, Model
from pirf_ray.diffusion.policy import Policy, PolicySettings, make_policy
from pirf_ray.diffusion.sampling import PolicySampler, SamplerSettings, finish
from pirf_ray.metrics.cost import Meter
from tiny_models import RESOLUTION, tiny_info, tiny_network

STEPS, TRUNCATION = 4, 2
WHOLE, LAST = 2 * STEPS - 1, 2 * TRUNCATION - 1
"""Numbers of evaluations of a whole sample and of its last K steps."""
GROUPS = (BASE, TUNED, BASE_FINISHED)


class Elementwise(torch.nn.Module):
    """Network F(x) = w x. Its rounding does not depend on the batch, so samples can be compared bit for bit."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(w))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return self.w * x


class AddOne:
    """Finisher that adds 1 to every sample."""

    steps = 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class Double:
    """Sampler that returns twice the noise."""

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        return 2 * noise


def policy(scope: str = "tail") -> Policy:
    base = Denoiser(tiny_network(), 0.14)
    base.network = Elementwise(0.3)
    made = make_policy(base, DenoisingProcess(STEPS), PolicySettings(truncation=TRUNCATION, scope=scope))
    made.load_learned({"w": torch.tensor(0.5)})
    return made


def model(scope: str = "tail", **parts: object) -> Model:
    return Model(info=tiny_info(), policy=policy(scope), sampler=SamplerSettings(num_steps=STEPS), **parts)


def noise(ids: Iterable[int]) -> torch.Tensor:
    return seeding.normal(3, "t", ids, (1, RESOLUTION, RESOLUTION)).float()


def sample(of: Model, groups: Sequence[str], ids: Sequence[int] = range(5), **options: object) -> dict[str, torch.Tensor]:
    return of.sample(ids, seed=3, stream="t", groups=groups, **options)


def units(of: Model, samples: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the network forwards per sample for each group alone and for all groups together."""
    counts = {}
    for groups in [*((group,) for group in samples), tuple(samples)]:
        with Meter() as meter:
            sample(of, groups)
        counts["+".join(groups)] = meter.cost.network_forwards / 5
    return counts


@pytest.mark.parametrize("scope", ["tail", "all"])
def test_each_group_is_sampled_by_its_denoisers_and_finished_as_it_says(scope: str) -> None:
    of = model(scope, finisher=AddOne())
    process, start = of.process, of.process.initial(noise(range(5)))
    base = finish(process, of.policy.base_from, start)
    tuned = finish(process, of.policy.denoisers(process), start)
    assert not torch.allclose(base, tuned)
    expected = {BASE: base, TUNED: tuned + 1, BASE_FINISHED: base + 1}
    made = sample(of, GROUPS)
    assert list(made) == list(GROUPS)
    for group, x in expected.items():
        assert torch.equal(made[group], of.pde.normalizer.to_physical(x)), group
        assert torch.equal(sample(of, (group,))[group], made[group]), group


def test_fields_are_float32_on_the_cpu_without_a_graph() -> None:
    of = model()
    for fields in sample(of, (BASE, TUNED)).values():
        assert (fields.shape, fields.dtype) == ((5, *of.pde.shape), torch.float32)
        assert fields.device.type == "cpu" and not fields.requires_grad


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_a_sample_depends_on_its_id_only(batch: int) -> None:
    """The size of the batch and the other samples change no bit of a sample."""
    of = model(finisher=AddOne())
    whole = sample(of, GROUPS, range(7), batch=7)
    parts = sample(of, GROUPS, [6, 1, 3], batch=batch)
    for group in GROUPS:
        assert torch.equal(parts[group], whole[group][[6, 1, 3]]), group
    other = of.sample([6, 1, 3], seed=4, stream="t", groups=(BASE,))[BASE]
    assert not torch.allclose(other, parts[BASE])
    assert not torch.allclose(of.sample([6, 1, 3], seed=3, stream="other", groups=(BASE,))[BASE], parts[BASE])


def test_an_own_sampler_makes_the_tuned_samples_only() -> None:
    plain, own = model(finisher=AddOne()), model(finisher=AddOne(), own_sampler=Double())
    made, without = sample(own, GROUPS, batch=2), sample(plain, GROUPS, batch=2)
    assert torch.equal(made[TUNED], own.pde.normalizer.to_physical(2 * noise(range(5)) + 1))
    for group in (BASE, BASE_FINISHED):
        assert torch.equal(made[group], without[group])
    same = model(finisher=AddOne(), own_sampler=PolicySampler(policy()))
    assert torch.equal(sample(same, (TUNED,))[TUNED], without[TUNED])


def test_groups_share_every_evaluation_that_they_can() -> None:
    """With scope tail all groups share the first N-K steps. The base model's samples are made once, corrected or not."""
    assert units(model(finisher=AddOne()), dict.fromkeys(GROUPS)) == {
        BASE: WHOLE,
        TUNED: WHOLE,
        BASE_FINISHED: WHOLE,
        "+".join(GROUPS): WHOLE + LAST,
    }
    assert units(model("all", finisher=AddOne()), dict.fromkeys(GROUPS))["+".join(GROUPS)] == 2 * WHOLE
    assert units(model(), dict.fromkeys((BASE, TUNED)))["base+tuned"] == WHOLE + LAST


def test_an_own_sampler_spares_the_policys_steps() -> None:
    assert units(model(own_sampler=Double()), dict.fromkeys((BASE, TUNED))) == {BASE: WHOLE, TUNED: 0, "base+tuned": WHOLE}


def test_groups_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="base corrected samples need a finisher"):
        sample(model(), (TUNED, BASE_FINISHED))
    with pytest.raises(ValueError, match="unknown group of samples 'tunde'; known: base, tuned, base corrected"):
        sample(model(finisher=AddOne()), ("tunde",))


def test_progress_sees_every_batch() -> None:
    seen: list[range] = []

    def progress(batches: Iterable[range]) -> Iterable[range]:
        for ids in batches:
            seen.append(ids)
            yield ids

    sample(model(), (BASE,), [9, 8, 7], batch=2, progress=progress)
    assert seen == [range(2), range(2, 3)]


def test_the_rewarded_operator_defaults_to_the_operator_of_the_pde() -> None:
    of = model()
    assert of.rewarded_operator == of.pde.default_operator == "consistent"
    assert model(operator="simpson").rewarded_operator == "simpson"
    assert of.to("cpu") is of
    assert (of.process.num_steps, of.process.solver) == (STEPS, "heun")
