"""Counter-based random numbers: their bits, their law and their independence."""

import math

import numpy as np
import pytest
import torch

from envs.numerics import seeding


@pytest.mark.parametrize("size", [1, 3, 4, 10, 99])
def test_noise_has_the_same_bits_however_it_is_batched(size):
    whole = seeding.normal(7, "noise", range(10), (2, 3))
    parts = [seeding.normal(7, "noise", ids, (2, 3)) for ids in seeding.chunks(10, size)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(seeding.normal(7, "noise", [9, 0, 4], (2, 3)), whole[[9, 0, 4]])


def test_noise_is_standard_normal_and_float64():
    noise = seeding.normal(0, "law", range(2000), (10,))
    assert noise.dtype == torch.float64 and noise.shape == (2000, 10)
    # 20,000 draws: standard errors 1/sqrt(20000) = .0071 of the mean, .005 of the std; 5 of them
    assert abs(noise.mean().item()) < 0.036 and abs(noise.std().item() - 1) < 0.025


@pytest.mark.parametrize("other", [(7, "b", 0), (8, "a", 0), (7, "a", 1), (7, "a", 2**62)])
def test_another_seed_stream_or_sample_is_other_noise(other):
    first = seeding.generator(7, "a", 0).standard_normal(2000)
    second = seeding.generator(*other).standard_normal(2000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(2000)


def test_samples_are_2_to_the_192_draws_apart():
    counters = [seeding.generator(1, "a", i).bit_generator.state["state"]["counter"].tolist() for i in (0, 1, 5)]
    assert counters == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 5]]  # little-endian words of a 256-bit counter


def test_drawing_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.randn(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    seeding.normal(3, "a", range(4), (5,))
    assert torch.equal(torch.randn(3), expected[0]) and (np.random.rand(3) == expected[1]).all()


@pytest.mark.parametrize(
    ("seed", "sample", "named"), [(-1, 0, "seed"), (2**63, 0, "seed"), (0, -1, "sample id"), (0, 2**63, "sample id")]
)
def test_seeds_and_sample_ids_out_of_range_are_refused(seed, sample, named):
    with pytest.raises(ValueError, match=f"{named} must be in .*got {seed or sample}"):
        seeding.generator(seed, "a", sample)


def test_no_samples_are_an_empty_batch():
    assert seeding.normal(0, "a", [], (2, 3)).shape == (0, 2, 3)


@pytest.mark.parametrize(("total", "size", "cut"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (0, 5, [])])
def test_chunks_cover_the_range_in_order(total, size, cut):
    parts = list(seeding.chunks(total, size))
    assert [len(p) for p in parts] == cut
    assert [i for p in parts for i in p] == list(range(total))


def test_a_noise_stream_goes_on_where_it_was():
    """Its first draw is that of ``normal``. Draw k depends on seed, stream, id and k only, whatever the batch."""
    stream = seeding.NoiseStream(7, "noise", [9, 0, 4])
    found = [stream.draw((2, 3)) for _ in range(3)]
    assert torch.equal(found[0], seeding.normal(7, "noise", [9, 0, 4], (2, 3)))
    assert found[0].dtype == torch.float64 and found[0].shape == (3, 2, 3)
    alone = seeding.NoiseStream(7, "noise", [0])
    assert all(torch.equal(alone.draw((2, 3))[0], draw[1]) for draw in found)
    whole = seeding.normal(7, "noise", [9, 0, 4], (3, 2, 3))
    assert torch.equal(torch.stack(found, 1), whole)


def test_a_noise_stream_takes_a_seed_per_sample():
    together = seeding.NoiseStream([7, 8, 7], "noise", [0, 0, 1])
    for _ in range(2):
        drawn = together.draw((5,))
    for i, (seed, sample) in enumerate([(7, 0), (8, 0), (7, 1)]):
        alone = seeding.NoiseStream(seed, "noise", [sample])
        alone.draw((5,))
        assert torch.equal(alone.draw((5,))[0], drawn[i])
    with pytest.raises(ValueError, match="one seed per sample: 3 samples, got 2 seeds"):
        seeding.NoiseStream([7, 8], "noise", [0, 1, 2])
    assert seeding.NoiseStream(7, "noise", []).draw((2, 3)).shape == (0, 2, 3)
