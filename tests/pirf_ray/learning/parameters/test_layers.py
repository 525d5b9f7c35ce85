"""Layer-wise truncation: the learning tensors, and their gradients in the layout of training."""

import pytest
import torch

from pirf_ray.learning.parameters import layers
from tiny_models import RESOLUTION, tiny_denoiser


def test_top_level_holds_the_highest_resolution_blocks_and_the_output_layer() -> None:
    names = layers.learning_names(tiny_denoiser(), 1)
    assert {n.split(".")[0] + "." + n.split(".")[1] for n in names} == {
        "dec.8x8_up",
        "dec.8x8_block0",
        "dec.8x8_block1",
        "dec.8x8_aux_norm",
        "dec.8x8_aux_conv",
    }


@pytest.mark.parametrize("levels", [-1, 3])
def test_levels_outside_the_network_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=rf"--levels must be in \[0, 2\].*got {levels}"):
        layers.learning_names(tiny_denoiser(), levels)


@pytest.mark.parametrize(
    ("levels", "mode", "cut_at"), [(0, "freeze", None), (0, "truncate", None), (1, "freeze", None), (1, "truncate", 1)]
)
def test_only_learning_tensors_ask_for_a_gradient(levels: int, mode: layers.LayerMode, cut_at: int | None) -> None:
    denoiser = tiny_denoiser().train()
    learning = layers.prepare(denoiser, levels, mode)
    asking = {name for name, p in denoiser.network.named_parameters() if p.requires_grad}
    assert asking == set(learning) == set(layers.learning_names(denoiser, levels))
    assert (len(learning) == len(list(denoiser.network.parameters()))) == (levels == 0)
    assert denoiser.truncate_levels == cut_at and not denoiser.training


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("mode", ["freeze", "truncate"])
def test_top_levels_learn_in_the_layout_of_training(levels: int, mode: layers.LayerMode) -> None:
    """Channels-last fields on a frozen trunk give the gradients of the plain layout. Plain torch ends in a segmentation fault."""
    x = torch.randn(2, 1, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0))
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        denoiser = tiny_denoiser().to(memory_format=memory_format)
        learning = layers.prepare(denoiser, levels, mode)
        denoiser(x.contiguous(memory_format=memory_format), 0.1).square().sum().backward()
        gradients.append([p.grad for p in learning.values()])
    for plain, last in zip(*gradients, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)
