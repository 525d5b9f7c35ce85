"""Conversion between physical and model units."""

import pytest
import torch

from envs.numerics.normalization import Normalizer


def test_normalizer_maps_each_channel_and_back():
    normalizer = Normalizer(scale=(0.2, 115.0), shift=(-1.5, -0.9))
    fields = torch.tensor([12.0, 0.01], dtype=torch.float64)[None, :, None, None].expand(3, 2, 4, 5)
    model = normalizer.to_model(fields)
    assert model[0, :, 0, 0].tolist() == pytest.approx([0.9, 0.25])  # .2 * 12 - 1.5, 115 * .01 - .9
    torch.testing.assert_close(normalizer.to_physical(model), fields, rtol=1e-13, atol=0)
    assert normalizer.to_model(fields.float()).dtype == torch.float32


def test_normalizer_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="scale has 2 channels, shift has 1"):
        Normalizer(scale=(1.0, 2.0), shift=(0.0,))
    with pytest.raises(ValueError, match="must not contain 0"):
        Normalizer(scale=(0.0,), shift=(0.0,))
    with pytest.raises(ValueError, match=r"expected 1 channels, got .*\(2, 3, 3\)"):
        Normalizer(scale=(1.0,), shift=(0.0,)).to_model(torch.zeros(2, 3, 3))
