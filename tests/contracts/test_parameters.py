"""Choices of learning parameters: their start, their tensors, their way to other processes."""

import pickle

import pytest
import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.policies import Policies
from pirf_ray.diffusion.policy import PolicySettings
from pirf_ray.learning.parameters import PARAMETERS, Group
from pirf_ray.learning.parameters.attach import ParameterChoice, make_policies
from pirf_ray.learning.parameters.residual_adapter import give_pde
from tiny_models import CPU, RESOLUTION, tiny_denoiser, tiny_info

NAMES = sorted(PARAMETERS)
SIGMA = 0.3


def base() -> Denoiser:
    """Return the tiny denoiser, which knows its PDE."""
    denoiser = tiny_denoiser()
    give_pde(denoiser, tiny_info().pde())
    return denoiser


def made(name: str, denoiser: Denoiser | None = None) -> tuple[Policies, list[Group]]:
    """Return policies in the layout of training, with the default settings."""
    choice = ParameterChoice(name=name, settings=PARAMETERS.settings(name))
    policies, groups = make_policies(denoiser or base(), DenoisingProcess(4), PolicySettings(truncation=2, scope="all"), choice)
    return policies.to(CPU), groups


def denoised(denoiser: torch.nn.Module) -> torch.Tensor:
    x = 0.2 * seeding.normal(0, "x", range(2), (1, RESOLUTION, RESOLUTION)).float()
    return denoiser(x, SIGMA)


def learned(groups: list[Group]) -> dict[str, torch.nn.Parameter]:
    return {name: p for group in groups for name, p in group.parameters.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_base_model_bit_for_bit(name: str) -> None:
    policies, _ = made(name)
    with torch.no_grad():
        expected = denoised(policies.base.base)
        for policy in (policies.tuned, policies.average, policies.base):
            assert torch.equal(denoised(policy.tuned), expected)


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_tensors_of_the_denoiser_once_and_the_rest_is_frozen(name: str) -> None:
    policies, groups = made(name)
    tensors, chosen = policies.tuned.tuned.tensors(), learned(groups)
    assert sum(len(group.parameters) for group in groups) == len(chosen) > 0
    assert all(tensors[key] is parameter for key, parameter in chosen.items())
    asking = {id(p) for p in policies.tuned.tuned.parameters() if p.requires_grad}
    assert asking == {id(p) for p in chosen.values()}
    assert not any(p.requires_grad for p in policies.base.base.parameters())
    assert not any(module.training for module in policies.tuned.tuned.modules())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_changes_the_tuned_policy_and_no_other(name: str) -> None:
    """A single step along the gradient of every learning tensor. The base model is not on the graph."""
    policies, groups = made(name)
    denoised(policies.tuned.tuned).square().sum().backward()
    gradients = [p.grad for p in learned(groups).values() if p.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    with torch.no_grad():
        for p in learned(groups).values():
            p.sub_(0.1 * (torch.zeros_like(p) if p.grad is None else p.grad))
        expected = denoised(policies.base.base)
        assert not torch.equal(denoised(policies.tuned.tuned), expected)
        assert torch.equal(denoised(policies.average.tuned), expected)


@pytest.mark.parametrize("name", NAMES)
def test_learned_tensors_make_the_same_policy_in_another_process(name: str) -> None:
    """Whatever is attached is the same in each process, so the learned tensors decide the rest."""
    policies, groups = made(name)
    with torch.no_grad():
        for i, parameter in enumerate(learned(groups).values()):
            parameter.add_(0.05 * seeding.normal(0, "change", [i], tuple(parameter.shape))[0].float())
    sent = {key: tensor.clone() for key, tensor in policies.learned(policies.tuned).items()}
    assert sent.keys() == learned(groups).keys() == policies.start.keys()
    other, _ = made(name)
    other.tuned.load_learned(sent)
    with torch.no_grad():
        assert torch.equal(denoised(other.tuned.tuned), denoised(policies.tuned.tuned))
        assert not torch.equal(denoised(other.tuned.tuned), denoised(other.base.base))


@pytest.mark.parametrize("name", NAMES)
def test_the_choice_travels_to_actors(name: str) -> None:
    choice = ParameterChoice(name=name, settings=PARAMETERS.settings(name))
    assert pickle.loads(pickle.dumps(choice)) == choice
