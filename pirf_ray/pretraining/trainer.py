"""Training of a base model by denoising score matching (Karras et al. 2022, arXiv 2206.00364, equation 2 and table 1)."""

import json
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from envs.common import files
from envs.common.checks import ConfigError
from envs.data.datasets import FieldFile
from envs.numerics import seeding
from envs.pdes import PDE
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.ema import Ema
from pirf_ray.diffusion.losses import LOSSES
from pirf_ray.diffusion.networks import NetworkConfig
from pirf_ray.learning.communicator import Communicator, SingleProcess

Precision = Literal["auto", "float32", "tf32", "bf16"]
"""Precision of the network's matrix products."""
PREPARED_BATCHES = 4
"""Number of batches that threads prepare ahead of a training on a GPU."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Settings of the training of a base model."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Architecture."""
    images: int = 240_000
    """Number of training images shown in all."""
    batch: int = 32
    """Images per update, over all workers."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam. The rate is half a cosine down to zero, times a linear warm-up."""
    warmup_images: int = 6_400
    """Number of images of the linear warm-up."""
    ema_decay: float = 0.999
    """Decay per update of the moving average of the weights."""
    loss: str = "denoising"
    """Loss: denoising (EDM); your own: module:name."""
    noise_mean: float = -1.2
    """Mean of ln sigma in training. EDM has -1.2 for data of standard deviation 0.5."""
    noise_std: float = 1.2
    """Standard deviation of ln sigma in training."""
    augment: bool = True
    """Whether random exact symmetries of the equation and of its data's law are applied to the data."""
    precision: Precision = "auto"
    """Precision of the network's matrix products: float32, tf32 (GPUs only) or bf16. auto: tf32 on a GPU, otherwise float32.
    bf16 is autocast of the network; weights, loss and average stay float32."""
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
        """Return the number of updates in all."""
        return self.images // self.batch

    def on(self, device_type: str) -> "PretrainSettings":
        """Return the settings with the precision that ``auto`` means on cpu or cuda. ConfigError for tf32 on a CPU."""
        if self.precision == "tf32" and device_type != "cuda":
            raise ConfigError(f"--precision tf32 needs an NVIDIA GPU, this training is on the {device_type}: float32 or bf16")
        auto: Precision = "tf32" if device_type == "cuda" else "float32"
        return replace(self, precision=auto) if self.precision == "auto" else self


class TrainedDenoiser(Denoiser):
    """Denoiser whose network is evaluated in bf16 autocast, or compiled. Its tensors have the names of a Denoiser's."""

    def __init__(self, config: NetworkConfig, sigma_data: float, *, bf16: bool = False, compiled: bool = False) -> None:
        super().__init__(config, sigma_data)
        self.bf16 = bf16
        # The method is compiled, not the module: a compiled module adds a prefix to the names of its tensors.
        self.evaluate = torch.compile(self.network.forward) if compiled else self.network.forward

    def _network(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self.evaluate(x, c_noise).to(x.dtype)


@contextmanager
def tf32(enabled: bool, device: torch.device) -> Iterator[None]:
    """Switch TF32 of matrix products and convolutions on or off inside the block. CPUs have no TF32."""
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = enabled
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


@contextmanager
def dropout_seed(seed: int, update: int, rank: int, device: torch.device) -> Iterator[None]:
    """Make torch's generator, from which dropout draws, a function of (seed, update, rank) inside the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(seeding.generator(seed, f"dropout of rank {rank}", update).integers(2**63)))
        yield


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Tuple of fields in model units (b, c, h, w), sigma (b,) and standard normal noise (b, c, h, w), float32, on the CPU."""


class Batches:
    """Batches by their update, a pure function of (seed, update). Threads make the next ``prepared`` batches ahead."""

    def __init__(self, settings: PretrainSettings, pde: PDE, data: FieldFile, prepared: int = 0) -> None:
        self.settings, self.pde, self.data, self.prepared = settings, pde, data, prepared
        self._pool = ThreadPoolExecutor(prepared) if prepared else None
        self._pending: dict[int, Future[Batch]] = {}

    def __getitem__(self, update: int) -> Batch:
        if self._pool is None:
            return self.make(update)
        wanted = range(update, update + 1 + self.prepared)
        pending = {u: self._pending.get(u) or self._pool.submit(self.make, u) for u in wanted}
        batch = pending.pop(update).result()
        self._pending = pending
        return batch

    def make(self, update: int) -> Batch:
        """Return the batch of an update, made in this thread."""
        s = self.settings
        rng = seeding.generator(s.seed, "pretrain", update)
        fields = self.data.read(rng.integers(len(self.data), size=s.batch))
        if s.augment:
            fields = self.pde.augment(fields, rng)
        y = self.pde.normalizer.to_model(fields)
        sigma = torch.from_numpy(rng.normal(s.noise_mean, s.noise_std, s.batch)).float().exp()
        return y, sigma, torch.from_numpy(rng.standard_normal(y.shape)).float()


class Pretrainer:
    """State of a training: weights, optimizer, average, data.

    Batches and noise of update u are a function of (seed, u), so a resumed training gives the same bits. Each rank takes an
    equal share of every batch, and all ranks hold the same weights.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        pde: PDE,
        data: FieldFile,
        device: torch.device,
        *,
        communicator: Communicator | None = None,
        compiled: bool = False,
    ) -> None:
        self.communicator = communicator or SingleProcess()
        check_share(settings.batch, self.communicator.world)
        if settings.precision == "auto":
            settings = settings.on(device.type)
        self.settings, self.pde, self.data, self.device = settings, pde, data, device
        self.batches = Batches(settings, pde, data, prepared=PREPARED_BATCHES if device.type == "cuda" else 0)
        sample = pde.normalizer.to_model(data.read(range(min(len(data), 4096))))
        self.info = ModelInfo(
            env_id=pde.env_id,
            network=settings.network,
            sigma_data=round(float(sample.std()), 4),
            parameters=pde.parameters,
        )
        self.init: dict[str, Any] | None = None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)  # torch.manual_seed would also reseed the caller's GPU
            denoiser = TrainedDenoiser(
                settings.network, self.info.sigma_data, bf16=settings.precision == "bf16", compiled=compiled
            )
        self.denoiser = denoiser.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = LOSSES.make(settings.loss)
        self.optimizer = torch.optim.Adam(self.denoiser.parameters(), lr=settings.learning_rate)
        self.ema = Ema(self._tensors(), settings.ema_decay)
        self.update_index = 0
        self.mean_loss: float | None = None

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = self.denoiser.network.state_dict()
        return tensors

    def start_from(self, path: Path) -> None:
        """Start from the averaged weights of a model with the same architecture, of any PDE."""
        info, meta = checkpoints.load_meta(path)
        if info.network != self.settings.network:
            raise checkpoints.CheckpointError(f"--init {path}: {info.network}, expected {self.settings.network}")
        self.denoiser.load_network(checkpoints.load_weights(path, "ema"))
        self.ema = Ema(self._tensors(), self.settings.ema_decay)
        earlier = {"init": meta["init"]} if meta.get("init") else {}
        self.init = {"env_id": info.env_id, "images": meta.get("images"), "weights": meta["hashes"]["ema"], **earlier}

    def learning_rate(self) -> float:
        """Return the learning rate of the next update. The rate of the first update is positive."""
        s = self.settings
        warmup = min(1.0, (self.update_index + 1) * s.batch / max(s.warmup_images, 1))
        return s.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * self.update_index / s.updates))

    def step(self) -> float:
        """Make one update and return its loss. FloatingPointError if the loss is not finite."""
        self.denoiser.train()
        self.optimizer.zero_grad(set_to_none=True)
        with tf32(self.settings.precision != "float32", self.device):
            value = self._sum(self._backward())
        if not math.isfinite(value):
            raise FloatingPointError(f"loss of update {self.update_index} is {value}; lower the learning rate")
        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        self.optimizer.step()
        self.ema.update(self._tensors())
        self.update_index += 1
        self.mean_loss = value if self.mean_loss is None else 0.99 * self.mean_loss + 0.01 * value
        return value

    def _backward(self) -> torch.Tensor:
        """Make the gradient of this rank's part of the batch's mean loss, and return this part."""
        rank, world = self.communicator.rank, self.communicator.world
        each = self.settings.batch // world
        y, sigma, noise = (part[rank * each : (rank + 1) * each] for part in self.batches[self.update_index])
        y = y.to(self.device, memory_format=torch.channels_last)
        sigma, noise = sigma.to(self.device), noise.to(self.device)
        dropout = self.settings.network.dropout > 0
        with dropout_seed(self.settings.seed, self.update_index, rank, self.device) if dropout else nullcontext():
            loss = self.loss(self.denoiser, y, sigma, noise) / world
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _sum(self, loss: torch.Tensor) -> float:
        """Sum the gradients over the ranks, in place, and return the sum of the losses."""
        if self.communicator.world == 1:
            return loss.item()
        gradients = [p.grad for p in self.denoiser.parameters() if p.grad is not None]
        flat = self.communicator.sum(torch.cat([*(g.flatten() for g in gradients), loss.reshape(1)]))
        for gradient, total in zip(gradients, torch.split(flat[:-1], [g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view(gradient.shape))
        return flat[-1].item()

    @property
    def finished(self) -> bool:
        """Return whether all updates are made."""
        return self.update_index >= self.settings.updates

    def described(self) -> dict[str, int | str]:
        """Return the seed, the stream and the number of the training data."""
        return {"seed": self.data.seed, "stream": self.data.stream, "samples": len(self.data)}

    def meta(self) -> dict[str, Any]:
        """Return what the meta.json of a model with these weights holds about its training."""
        return {
            "kind": "base",
            "images": self.update_index * self.settings.batch,
            "mean_loss": self.mean_loss,
            "init": self.init,
            "data": self.described(),
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint to continue from."""
        meta = {**self.meta(), "updates": self.update_index}
        state = {"optimizer": self.optimizer.state_dict(), "ema_updates": self.ema.updates}
        config = asdict(self.settings)
        checkpoints.save(
            path, info=self.info, model=self._tensors(), ema=self.ema.tensors, optimizer=state, config=config, meta=meta
        )

    def load(self, path: Path) -> None:
        """Continue from a checkpoint. CheckpointError if its settings or data are others."""
        _, meta = checkpoints.load_meta(path)
        stored = {"precision": "float32", **files.read_json(path / checkpoints.CONFIG)}  # older checkpoints have no precision
        asked = json.loads(json.dumps(asdict(self.settings)))
        changed = sorted(k for k in stored.keys() | asked.keys() if stored.get(k) != asked.get(k))
        if changed:
            raise checkpoints.CheckpointError(f"{path}: was trained with other settings: {', '.join(changed)}")
        if meta["data"] != self.described():
            raise checkpoints.CheckpointError(f"{path}: was trained on {meta['data']}, not on the given data {self.described()}")
        self.denoiser.load_network(checkpoints.load_weights(path, "model"))
        state = checkpoints.load_optimizer(path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load(checkpoints.load_weights(path, "ema"), state["ema_updates"])
        self.update_index, self.mean_loss, self.init = meta["updates"], meta["mean_loss"], meta.get("init")


def check_share(batch: int, workers: int) -> None:
    """Raise ConfigError unless all workers get equal shares of a batch."""
    if batch % workers:
        raise ConfigError(f"--batch must be a multiple of --workers {workers}, got {batch}")
