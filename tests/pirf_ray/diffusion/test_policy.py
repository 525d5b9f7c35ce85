"""The policy: the denoiser of each step, the switch, loading, layout."""

import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess
from envs.numerics.conditions import Condition
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.policy import Policy, PolicySettings, coarsest_step, make_policy, step_ratios, switch_sigma
from pirf_ray.diffusion.sampling import finish
from tiny_models import RESOLUTION, tiny_denoiser

STEPS = 4


def process(steps: int = STEPS) -> DenoisingProcess:
    return DenoisingProcess(steps)


def tail(truncation: int = 2) -> Policy:
    return make_policy(tiny_denoiser(), process(), PolicySettings(truncation=truncation))


def test_the_tuned_denoiser_starts_as_a_copy_and_the_base_is_frozen() -> None:
    base = tiny_denoiser()
    policy = Policy(base)
    assert policy.base is base and policy.tuned is not base
    assert all(torch.equal(a, b) for a, b in zip(policy.tuned.parameters(), base.parameters(), strict=True))
    assert not any(p.requires_grad for p in policy.base.parameters())
    assert not policy.base.training


def test_tail_scope_uses_base_weights_before_the_switch_and_tuned_weights_after() -> None:
    policy, used = tail(), []
    policy.base.register_forward_hook(lambda _, args, __: used.append(("base", float(args[1]))))
    policy.tuned.register_forward_hook(lambda _, args, __: used.append(("tuned", float(args[1]))))
    with torch.no_grad():
        finish(process(), policy.denoisers(process()), process().initial(torch.randn(1, 1, RESOLUTION, RESOLUTION)))
    s = process().sigmas
    # The corrector at the switch, s[2], ends the prefix: it is still the base model's.
    expected = [("base", s[0]), ("base", s[1]), ("base", s[1]), ("base", s[2])]
    assert used == [*expected, ("tuned", s[2]), ("tuned", s[3]), ("tuned", s[3])]


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 40])
def test_scope_all_tunes_every_step_of_every_sampler(steps: int) -> None:
    policy = make_policy(tiny_denoiser(), process(), PolicySettings(truncation=2, scope="all"))
    assert policy.switch_step(process(steps)) == 0
    assert {policy.denoisers(process(steps))(sigma) for sigma in process(steps).sigmas} == {policy.tuned}
    assert {policy.base_from(sigma) for sigma in process(steps).sigmas} == {policy.base}


@pytest.mark.parametrize("truncation", [1, 2, 4])
def test_the_sampler_of_the_training_switches_before_the_last_k_steps(truncation: int) -> None:
    policy = tail(truncation)
    assert policy.switch_step(process()) == STEPS - truncation
    assert policy.switch_sigma == switch_sigma(process(), truncation) == process().sigmas[STEPS - truncation]


def test_ratios_are_of_neighbouring_sigmas_without_the_step_to_zero() -> None:
    sigmas = process().sigmas
    assert step_ratios(process(), 1) == [sigmas[1] / sigmas[2], sigmas[2] / sigmas[3]]
    assert coarsest_step(process(), 3) == max(step_ratios(process(), 1))
    assert coarsest_step(process(), 1) == 0  # only the step to sigma = 0 is learned


@pytest.mark.parametrize("truncation", [0, 5])
def test_a_truncation_outside_the_sampler_is_refused(truncation: int) -> None:
    with pytest.raises(ValueError, match=rf"truncation must be in \[1, 4\], got {truncation}"):
        switch_sigma(process(), truncation)
    with pytest.raises(ConfigError, match="--truncation must be at least 0, got -1"):
        PolicySettings(truncation=-1)


def test_a_truncation_of_zero_is_all_steps() -> None:
    every = PolicySettings(truncation=0)
    assert [every.steps(n) for n in (1, 7)] == [1, 7] and PolicySettings(truncation=3).steps(7) == 3
    policy = make_policy(tiny_denoiser(), process(), every)
    assert policy.switch_step(process()) == 0


def test_learned_tensors_change_the_tuned_denoiser_only() -> None:
    policy, other = tail(), tiny_denoiser(seed=1)
    tensors = dict(other.network.named_parameters())
    some = {name: tensors[name] for name in ("map_layer0.bias", "dec.8x8_aux_conv.weight")}
    before = {name: p.clone() for name, p in policy.tuned.network.named_parameters()}
    policy.load_learned(some)
    for name, p in policy.tuned.network.named_parameters():
        assert torch.equal(p, some.get(name, before[name])), name
        assert torch.equal(dict(policy.base.network.named_parameters())[name], before[name])
    with pytest.raises(ValueError, match=r"the network has no tensor 'map_layer9\.bias'"):
        policy.load_learned({"map_layer9.bias": torch.zeros(1)})


@pytest.mark.parametrize("scope", ["tail", "all"])
def test_the_base_model_makes_the_step_to_zero_of_a_stochastic_process(scope: str) -> None:
    """That step has no density. With scope ``tail`` the tuned weights make the K - 1 steps before it."""
    stochastic = DenoisingProcess(STEPS, "stochastic")
    policy = make_policy(tiny_denoiser(), stochastic, PolicySettings(truncation=3, scope=scope))
    makers = [policy.denoisers(stochastic)(sigma) for sigma in stochastic.sigmas[:-1]]
    assert makers == [policy.base if scope == "tail" else policy.tuned, policy.tuned, policy.tuned, policy.base]
    assert [policy.denoisers(process())(sigma) for sigma in process().sigmas[:-1]][-1] is policy.tuned


class Shifted(Denoiser):
    """A denoiser that moves the first noise."""

    draws_first_noise = True

    def first_noise(self, noise: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        return noise + (0.0 if condition is None else condition["shift"][:, None, None, None])


def test_a_tuned_denoiser_draws_its_own_first_noise_where_it_makes_the_first_step() -> None:
    """With scope ``tail`` the base model makes the first steps, so they start from the noise itself."""
    noise, condition = torch.randn(2, 1, RESOLUTION, RESOLUTION), {"shift": torch.tensor([1.0, 2.0])}
    tuned = Shifted(tiny_denoiser().config, 0.14)
    for scope, shift in (("all", condition["shift"]), ("tail", torch.zeros(2))):
        policy = Policy(tiny_denoiser(), tuned=tuned, scope=scope)
        start = policy.initial(process(), noise, condition)
        expected = process().sigmas[0] * (noise + shift[:, None, None, None])
        assert start.step == 0 and torch.equal(start.x, expected)


def test_the_condition_reaches_both_denoisers() -> None:
    seen = []
    policy, condition = tail(), {"y": torch.zeros(1, 2)}
    for denoiser in (policy.base, policy.tuned):
        denoiser.register_forward_hook(lambda module, args, kwargs, _: seen.append(kwargs.get("condition")), with_kwargs=True)
    start = process().initial(torch.randn(1, 1, RESOLUTION, RESOLUTION))
    with torch.no_grad():
        finish(process(), policy.denoisers(process(), condition), start)
    assert len(seen) == process().num_evaluations and all(given is condition for given in seen)


def layout(denoiser: Denoiser) -> set[bool]:
    weights = [p for p in denoiser.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    return {p.is_contiguous(memory_format=torch.channels_last) for p in weights}


def test_on_a_cpu_both_denoisers_are_channels_last() -> None:
    policy = tail().to("cpu")
    assert layout(policy.base) == layout(policy.tuned) == {True}
    assert policy.device == torch.device("cpu")
