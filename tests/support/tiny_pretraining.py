"""A pretraining of seconds, shared by its tests."""

import torch

from envs.pdes import make_pde
from pirf_ray.diffusion import checkpoints
from pirf_ray.pretraining.trainer import PretrainSettings
from tiny_models import tiny_network

CPU = torch.device("cpu")
PDE8 = make_pde("Burgers-v0", 8)
SETTINGS = PretrainSettings(network=tiny_network(), images=480, batch=8, learning_rate=5e-3, warmup_images=32, ema_decay=0.9)
SMOKE = ("--preset", "smoke", "--threads", "1", "--images", "96", "--warmup-images", "16")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return checkpoints.fingerprint(a) == checkpoints.fingerprint(b)
