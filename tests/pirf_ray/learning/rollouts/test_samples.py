"""Finished samples: their fields, their rewards, rewards of sets."""

import pytest
import torch

from envs.numerics import seeding
from envs.rewards import PhysicsReward
from pirf_ray.diffusion.sampling import finish
from pirf_ray.learning.rollouts.samples import GroupedReward
from pirf_ray.learning.rollouts.sources import ROLLOUT_STREAM
from pirf_ray.training.settings import TrainConfig
from recorded_reward import RecordedReward
from tiny_models import RESOLUTION, tiny_config, tiny_denoiser, tiny_worker

SHAPE = (1, RESOLUTION, RESOLUTION)


def config(**settings: object) -> TrainConfig:
    made: dict[str, object] = {
        "objective": "preference",
        "online": True,
        "regularizers": ("l2",),
        "strategy": "fresh",
        "group": 2,
    }
    return tiny_config(**{**made, "scope": "all", **settings})


@pytest.mark.parametrize("solver", ["heun", "euler", "2m"])
def test_a_sample_is_the_policys_episode_from_its_noise(solver: str) -> None:
    settings = config(solver=solver)
    worker = tiny_worker(settings)
    worker.load(dict(tiny_denoiser(seed=1).network.named_parameters()))
    sample, policy, process = worker.make(2, 4), worker.policies.tuned, settings.process
    noise = seeding.normal(settings.seed, ROLLOUT_STREAM, (4, 5), SHAPE).float()
    with torch.no_grad():
        expected = finish(process, policy.denoisers(process), process.initial(noise))
    torch.testing.assert_close(sample.x, expected, rtol=1e-4, atol=1e-5)
    assert (sample.sample_ids, sample.groups, sample.policy_version, sample.source) == ((4, 5), (2, 2), 4, "policy")


def test_samples_carry_the_reward_of_their_physical_fields() -> None:
    worker = tiny_worker(config())
    sample = worker.make(0, 0)
    assert isinstance(worker.env.reward, PhysicsReward)
    out = worker.env.reward(worker.env.pde.normalizer.to_physical(sample.x))
    torch.testing.assert_close(sample.reward, out.reward)
    assert {"consistent", "initial"} & sample.parts.keys()
    for name, violation in out.violations.items():
        torch.testing.assert_close(sample.parts[name], violation)


def test_a_black_box_is_called_once_for_each_chunk_without_a_graph() -> None:
    reward = RecordedReward()
    worker = tiny_worker(config(chunk=4), reward=reward)
    sample = worker.make(0, 0)
    assert reward.rows == [4] and not reward.calls[0].with_graph
    assert torch.equal(reward.calls[0].fields, worker.env.pde.normalizer.to_physical(sample.x))


def test_a_reward_of_sets_gets_one_group_at_a_time() -> None:
    """Each call is one group, so the centred rewards of a group add up to zero, whatever else is in the chunk."""
    reward = RecordedReward(scope="set")
    sample = tiny_worker(config(chunk=4), reward=reward).make(1, 0)
    assert reward.rows == [2, 2] and sample.groups == (2, 2, 3, 3)
    sizes = sample.reward.abs().max().item()
    assert sample.reward.reshape(2, 2).sum(1).abs().max().item() < 1e-5 * max(sizes, 1.0)
    torch.testing.assert_close(sample.parts["largest"], torch.cat([c.fields for c in reward.calls]).abs().flatten(1).amax(1))


def test_a_grouped_reward_gives_each_group_its_own_rows_of_the_condition() -> None:
    reward = RecordedReward(scope="set")
    fields, y = torch.arange(6.0).reshape(6, 1, 1, 1), torch.arange(12.0).reshape(6, 2)
    out = GroupedReward(reward, 3)(fields, {"y": y})
    assert [call.condition["y"].tolist() for call in reward.calls] == [y[:3].tolist(), y[3:].tolist()]
    assert out.reward.tolist() == pytest.approx([5 / 3, 2 / 3, -7 / 3, 50 / 3 - 9, 50 / 3 - 16, 50 / 3 - 25])
    assert out.parts["largest"].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_same_samples_in_another_chunking() -> None:
    """Noise and reward of a sample depend on its id only. Convolutions of other batches differ by rounding."""
    small, large = (tiny_worker(config(chunk=size)) for size in (2, 4))
    pair = [small.make(i, 0) for i in (0, 1)]
    four = large.make(0, 0)
    torch.testing.assert_close(torch.cat([s.x for s in pair]), four.x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([s.reward for s in pair]), four.reward, rtol=1e-3, atol=1e-4)
