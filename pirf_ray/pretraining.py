"""Training of a base model by denoising score matching (Karras et al. 2022, arXiv 2206.00364, equation 2 and table 1)."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from envs import seeding
from envs.datasets import FieldFile
from envs.pdes import PDE
from pirf_ray import checkpoints
from pirf_ray.checkpoints import ModelInfo
from pirf_ray.denoiser import Denoiser
from pirf_ray.ema import Ema
from pirf_ray.networks import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How a base model is trained."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Architecture."""
    images: int = 240_000
    """Training images shown in all."""
    batch: int = 32
    """Images an update."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam; linear warm-up, then half a cosine down to zero."""
    warmup_images: int = 6_400
    """Images of the linear warm-up."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, an update."""
    noise_mean: float = -1.2
    """Mean of ln sigma in training. EDM: -1.2, for data of standard deviation .5."""
    noise_std: float = 1.2
    """Standard deviation of ln sigma in training."""
    augment: bool = True
    """Apply the exact symmetries of the equation and of its data's law."""
    seed: int = 0
    """Seed of weights, batches and noise."""

    def __post_init__(self) -> None:
        for name in ("images", "batch", "learning_rate", "noise_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.images < self.batch:
            raise ValueError(f"images must be at least one batch of {self.batch}, got {self.images}")

    @property
    def updates(self) -> int:
        return self.images // self.batch


def denoising_loss(denoiser: Denoiser, y: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """lambda(s) ||D(y + s n; s) - y||^2 per element, lambda = (s^2 + sd^2) / (s sd)^2. y, noise (b, c, h, w), sigma (b,)."""
    s = sigma[:, None, None, None]
    weight = (s**2 + denoiser.sigma_data**2) / (s * denoiser.sigma_data) ** 2
    return (weight * (denoiser(y + s * noise, sigma) - y).square()).mean()


class Pretrainer:
    """The training loop's state. Batches and noise of update u are a function of (seed, u), so a resumed run is the same run."""

    def __init__(self, settings: PretrainSettings, pde: PDE, data: FieldFile, device: torch.device) -> None:
        self.settings, self.pde, self.data, self.device = settings, pde, data, device
        sample = pde.normalizer.to_model(data.read(range(min(len(data), 4096))))
        self.info = ModelInfo(
            env_id=pde.env_id,
            network=settings.network,
            sigma_data=round(float(sample.std()), 4),
            parameters=pde.parameters,
        )
        self.init: dict[str, Any] | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.denoiser = self.info.build().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.denoiser.parameters(), lr=settings.learning_rate)
        self.ema = Ema(self._tensors(), settings.ema_decay)
        self.update_index = 0
        self.mean_loss: float | None = None

    def _tensors(self) -> dict[str, torch.Tensor]:
        return self.denoiser.network.state_dict()

    def start_from(self, path: Path) -> None:
        """Begin with the averaged weights of another model of the same architecture, of any PDE."""
        info, meta = checkpoints.load_meta(path)
        if info.network != self.settings.network:
            raise checkpoints.CheckpointError(f"--init {path}: {info.network}, expected {self.settings.network}")
        self.denoiser.load_network(checkpoints.load_weights(path, "ema"))
        self.ema = Ema(self._tensors(), self.settings.ema_decay)
        self.init = {"env_id": info.env_id, "images": meta.get("images"), "weights": meta["hashes"]["ema"]}

    def learning_rate(self) -> float:
        """Rate of the next update; the first one is already positive."""
        s = self.settings
        warmup = min(1.0, (self.update_index + 1) * s.batch / max(s.warmup_images, 1))
        return s.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * self.update_index / s.updates))

    def step(self) -> float:
        """One update; returns its loss. A non-finite loss raises FloatingPointError: a base model must not hide one."""
        s = self.settings
        rng = seeding.generator(s.seed, "pretrain", self.update_index)
        fields = self.data.read(rng.integers(len(self.data), size=s.batch))
        if s.augment:
            fields = self.pde.augment(fields, rng)
        y = self.pde.normalizer.to_model(fields).to(self.device, memory_format=torch.channels_last)
        sigma = torch.from_numpy(rng.normal(s.noise_mean, s.noise_std, s.batch)).float().exp().to(self.device)
        noise = torch.from_numpy(rng.standard_normal(y.shape)).float().to(self.device)
        self.denoiser.train()
        loss = denoising_loss(self.denoiser, y, sigma, noise)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss of update {self.update_index} is {loss.item()}; lower the learning rate")
        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.ema.update(self._tensors())
        self.update_index += 1
        value = loss.item()
        self.mean_loss = value if self.mean_loss is None else 0.99 * self.mean_loss + 0.01 * value
        return value

    @property
    def finished(self) -> bool:
        return self.update_index >= self.settings.updates

    def save(self, path: Path) -> None:
        meta = {
            "kind": "base",
            "updates": self.update_index,
            "images": self.update_index * self.settings.batch,
            "mean_loss": self.mean_loss,
            "init": self.init,
            "data": {"seed": self.data.seed, "stream": self.data.stream, "samples": len(self.data)},
        }
        state = {"optimizer": self.optimizer.state_dict(), "ema_updates": self.ema.updates}
        config = asdict(self.settings)
        checkpoints.save(
            path, info=self.info, model=self._tensors(), ema=self.ema.tensors, optimizer=state, config=config, meta=meta
        )

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same settings."""
        _, meta = checkpoints.load_meta(path)
        stored = checkpoints.read_json(path / checkpoints.CONFIG)
        asked = json.loads(json.dumps(asdict(self.settings)))
        changed = sorted(k for k in stored.keys() | asked.keys() if stored.get(k) != asked.get(k))
        if changed:
            raise checkpoints.CheckpointError(f"{path}: was trained with other settings: {', '.join(changed)}")
        self.denoiser.load_network(checkpoints.load_weights(path, "model"))
        state = checkpoints.load_optimizer(path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load(checkpoints.load_weights(path, "ema"), state["ema_updates"])
        self.update_index, self.mean_loss, self.init = meta["updates"], meta["mean_loss"], meta.get("init")
