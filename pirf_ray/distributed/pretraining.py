"""Data-parallel pretraining over Ray Train: the loop of pirf_ray.pretraining.loop in each worker, and its driver."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist

from envs.data.datasets import FieldFile
from envs.pdes import make_pde
from pirf_ray.distributed import cluster, driver
from pirf_ray.distributed.communicator import TorchCommunicator
from pirf_ray.learning.communicator import Communicator, SingleProcess
from pirf_ray.pretraining.loop import Lines, Log, TrainingRecord, Workers, begin, diverged, run_updates
from pirf_ray.pretraining.trainer import Pretrainer, PretrainSettings
from pirf_ray.training.outcome import LearnerFailed

STOP_FILE = ".stop"


@dataclass(frozen=True, kw_only=True)
class PretrainJob:
    """Everything that a training's workers must know. Paths are absolute: Ray's workers run in a session folder."""

    env_id: str
    parameters: dict[str, float]
    settings: PretrainSettings
    data: Path
    init: Path | None
    checkpoint: Path
    compiled: bool
    workers: Workers

    @property
    def out(self) -> Path:
        """Return the directory of the training."""
        return self.checkpoint.parent

    @property
    def stop_file(self) -> Path:
        """Return the file that asks the workers to end after their update, with a checkpoint."""
        return self.out / STOP_FILE

    def trainer(self, communicator: Communicator, device: torch.device) -> Pretrainer:
        """Return this rank's trainer, continued from the checkpoint if there is one, also after the loss of a worker."""
        pde = make_pde(self.env_id, self.settings.network.resolution, **self.parameters)
        data = FieldFile(self.data, pde)
        trainer = Pretrainer(self.settings, pde, data, device, communicator=communicator, compiled=self.compiled)
        begin(trainer, self.checkpoint, self.init)
        return trainer


def pretrain_loop(settings: dict[str, Any]) -> None:
    """Train in one worker; ``settings``: job. A non-finite loss ends it with a record, since a restart would repeat it."""
    logging.basicConfig(level=logging.WARNING)
    job: PretrainJob = settings["job"]
    torch.set_num_threads(job.workers.threads)
    communicator: Communicator = TorchCommunicator() if dist.is_initialized() and dist.get_world_size() > 1 else SingleProcess()
    device = torch.device("cuda", torch.cuda.current_device()) if job.workers.worker_gpus else torch.device("cpu")
    trainer, log = job.trainer(communicator, device), Log(job.out)
    if communicator.rank == 0:
        log.rewind(trainer.update_index)
    try:
        run_updates(trainer, job.checkpoint, asked_to_stop=job.stop_file.exists, on_record=log.append)
    except FloatingPointError as error:
        if communicator.rank == 0:
            log.fail(trainer.update_index, str(error))
    ray.train.report({"update": trainer.update_index})


def check_workers(workers: Workers) -> None:
    """Raise ConfigError if the workers find no room, before anything is placed."""
    pieces = [cluster.resources(workers.worker_cpus, workers.worker_gpus or 0)] * workers.workers
    cluster.require_room("--workers, --worker-cpus, --worker-gpus", "the training", pieces, cluster.known_nodes())


def run_pretraining(job: PretrainJob, lines: Lines, *, begun: int) -> None:
    """Train on Ray from update ``begun`` to the end. KeyboardInterrupt after a stop with a checkpoint, ConfigError for a non-finite loss,
    LearnerFailed if workers were lost more often than ``max_failures`` allows."""
    w, log = job.workers, Log(job.out)
    job.out.mkdir(parents=True, exist_ok=True)
    job.stop_file.unlink(missing_ok=True)
    lines.console.print(f"starting Ray and {w.workers} workers", highlight=False)
    cluster.join(w.address)
    gpus = w.worker_gpus or 0
    trainer = driver.torch_trainer(
        pretrain_loop,
        {"job": job},
        workers=w.workers,
        cpus=w.worker_cpus,
        gpus=gpus,
        root=job.out,
        max_failures=w.max_failures,
    )
    follow = Following(log, lines, begun)
    failure, interrupted = driver.fit(trainer, job.stop_file, follow)
    follow()
    if failure:
        kept = (
            f"the last checkpoint is {job.checkpoint}; --resume continues from it"
            if job.checkpoint.exists()
            else "no checkpoint was written yet"
        )
        raise LearnerFailed(f"the training failed: {driver.last_line(failure)}; {kept}") from failure
    if error := log.failure():
        raise diverged(error, job.checkpoint)
    if interrupted:
        raise KeyboardInterrupt


class Following:
    """Shows the log's records of updates after ``begun`` when they come; called again and again."""

    def __init__(self, log: Log, lines: Lines, begun: int) -> None:
        self.log, self.lines, self.begun = log, lines, begun
        self.seen: TrainingRecord | None = None

    def __call__(self) -> None:
        latest = self.log.latest()
        if latest and latest != self.seen and latest.update > self.begun:
            self.seen = latest
            self.lines.show(latest)
