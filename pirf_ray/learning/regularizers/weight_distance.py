"""The squared distance of the weights from the pretrained weights (Yuan et al. 2025, arXiv 2509.20570)."""

import torch


def weight_distance(tensors: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the scalar sum ||theta - theta_0||^2 over the learning weights theta; theta_0 are the pretrained weights."""
    return torch.stack([(tensor - reference[name]).square().sum() for name, tensor in tensors.items()]).sum()
