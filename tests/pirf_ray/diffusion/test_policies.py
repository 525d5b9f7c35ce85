"""The policies of a training: the reference and its resets, the average, the lagged snapshot, their state."""

from collections.abc import Callable

import pytest
import torch

from envs.denoising import DenoisingProcess
from pirf_ray.diffusion.policies import Policies
from pirf_ray.diffusion.policy import Policy, PolicySettings, make_policy
from tiny_models import tiny_denoiser

NAMES = ("dec.8x8_aux_conv.weight", "dec.8x8_aux_conv.bias")


def one() -> Policy:
    return make_policy(tiny_denoiser(), DenoisingProcess(4), PolicySettings(truncation=2))


def made(*, old: bool = True) -> Policies:
    return Policies(one(), one, NAMES, old=old)


def move(policy: Policy, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the learning tensors of a policy."""
    tensors = policy.tuned.tensors()
    policy.load_learned({name: function(tensors[name].detach().clone()) for name in NAMES})


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_all_policies_start_as_the_base_model() -> None:
    policies = made()
    for policy in (policies.base, policies.tuned, policies.average, policies.old):
        assert_equal(policies.learned(policy), policies.start)
    assert tuple(policies.start) == NAMES
    assert policies.behaviour("base").tuned is policies.tuned.base
    assert [policies.behaviour(name) for name in ("tuned", "average", "old")] == [policies.tuned, policies.average, policies.old]


def test_the_start_is_a_copy() -> None:
    policies = made()
    move(policies.tuned, lambda t: t + 1)
    assert all(torch.equal(policies.learned(policies.tuned)[name], start + 1) for name, start in policies.start.items())


def test_the_old_policy_follows_the_tuned_one_by_its_weight() -> None:
    """old <- (1 - 1/4) old + 1/4 tuned; the whole way without a weight."""
    policies = made()
    move(policies.tuned, lambda t: t + 8)
    policies.move_old(0.25)
    for name, tensor in policies.learned(policies.old).items():
        torch.testing.assert_close(tensor, policies.start[name] + 2)
    policies.move_old()
    for name, tensor in policies.learned(policies.old).items():
        torch.testing.assert_close(tensor, policies.learned(policies.tuned)[name])


def test_there_is_no_old_policy_unless_an_objective_asks() -> None:
    policies = made(old=False)
    for ask in (lambda: policies.old, lambda: policies.behaviour("old"), policies.move_old):
        with pytest.raises(ValueError, match="there is no old policy"):
            ask()
    assert policies.state() == {}


def test_a_reset_makes_the_tuned_policy_of_now_the_reference() -> None:
    """Later changes of the tuned policy do not move it, and the pretrained model stays."""
    policies = made()
    pretrained = policies.base
    move(policies.tuned, lambda t: t + 1)
    policies.reset_reference()
    move(policies.tuned, lambda t: t + 1)
    for name, start in policies.start.items():
        torch.testing.assert_close(policies.learned(policies.base)[name], start + 1)
    assert_equal(policies.learned(pretrained), policies.start)
    assert policies.resets == 1 and not any(p.requires_grad for p in policies.base.tuned.parameters())


def test_the_reference_acts_where_the_tuned_policy_acts() -> None:
    """A moved reference has the tuned policy's scope and switch, so that both differ in the learned tensors only."""
    policies, process = made(), DenoisingProcess(4)
    move(policies.tuned, lambda t: t + 1)
    policies.reset_reference()
    assert (policies.base.scope, policies.base.switch_sigma) == (policies.tuned.scope, policies.tuned.switch_sigma)
    reference = [policies.base.denoisers(process)(sigma) is policies.base.tuned for sigma in process.sigmas[:-1]]
    assert reference == [policies.tuned.denoisers(process)(sigma) is policies.tuned.tuned for sigma in process.sigmas[:-1]]


@pytest.mark.parametrize("resets", [0, 1])
def test_policies_continue_from_their_state(resets: int) -> None:
    policies = made()
    move(policies.tuned, lambda t: t + 1)
    policies.move_old(0.5)
    for _ in range(resets):
        policies.reset_reference()
    state = {kind: {name: t.clone() for name, t in tensors.items()} for kind, tensors in policies.state().items()}
    assert state.keys() == ({"old", "reference"} if resets else {"old"})
    other = made()
    other.load(state, policies.resets)
    assert_equal(other.learned(other.old), policies.learned(policies.old))
    assert_equal(other.learned(other.base), policies.learned(policies.base))
    assert other.resets == resets


def test_all_policies_move_to_a_device() -> None:
    policies = made()
    move(policies.tuned, lambda t: t + 1)
    policies.reset_reference()
    policies.to(torch.device("meta"))
    for policy in (policies.base, policies.tuned, policies.average, policies.old):
        assert policy.device.type == "meta"
    assert {tensor.device.type for tensor in policies.start.values()} == {"meta"}
