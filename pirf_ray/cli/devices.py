"""Which device a command computes on: decided once, here, and handed down."""

import re

import torch

from envs.common.checks import ConfigError


def available(device: str) -> str:
    """Return the device if this machine has it; ConfigError names what is asked for and what is allowed."""
    if device != "cpu" and not re.fullmatch(r"cuda(:\d+)?", device):
        raise ConfigError(f"--device must be cpu, cuda or cuda:1, got {device!r}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: this machine has no usable GPU")
    return device


def best_device() -> str:
    """Return cuda if this machine has a usable GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"
