"""The fine-tuning loop. This is the canonical one: with Ray, the same loop runs in each Train worker."""

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from envs.rewards import PhysicsReward
from pirf_ray.checkpoints import ModelInfo, fingerprint, load_weights, names_file
from pirf_ray.communication import Communicator
from pirf_ray.config import TrainConfig
from pirf_ray.denoiser import Denoiser
from pirf_ray.guard import Guard, GuardState
from pirf_ray.learner import Learner, make_policy
from pirf_ray.policy import Policy
from pirf_ray.rollout import Prefix
from pirf_ray.runs import BEST, Learned, RunDirectory
from pirf_ray.sources import PrefixSource

Record = dict[str, Any]


class FineTuning:
    """Learner, prefixes, guard and run directory brought together. Every rank runs it; rank 0 owns source, guard and files.

    ``source`` and ``run`` belong to rank 0 (None elsewhere); without ``run`` nothing is written.
    """

    def __init__(
        self,
        config: TrainConfig,
        info: ModelInfo,
        base: Denoiser,
        *,
        source: PrefixSource | None,
        communicator: Communicator,
        device: torch.device,
        run: RunDirectory | None = None,
        reward: PhysicsReward | None = None,
    ) -> None:
        if (source is None) == (communicator.rank == 0):
            raise ValueError("rank 0, and only rank 0, needs a prefix source")
        self.config, self.info, self.source, self.communicator, self.run = config, info, source, communicator, run
        self.reference = fingerprint(base.network.state_dict())
        self._kept: dict[str, torch.Tensor] | None = None
        pde = info.pde()
        self.learner = Learner(config, base, pde, communicator, device, reward)
        self.update = self._resume()
        if source is not None:
            source.publish(self.update, self.learner.weights())
        self.guard: Guard | None = None
        if communicator.rank == 0 and config.guard.guard != "off":
            operator = config.pirf.operator or pde.default_operator
            process, policy = self.learner.process, self.learner.policy
            self.guard = Guard(config.guard, pde, process, policy, seed=config.seed, operator=operator)
            self.guard.state = self._guard_state  # one object: what the guard remembers goes into every checkpoint
        self.writer = SummaryWriter(str(run.paths.root / "tensorboard"), purge_step=self.update) if run else None

    def _resume(self) -> int:
        """Load the newest checkpoint, if there is one; returns the updates done."""
        self._guard_state = GuardState()
        found = self.run.latest() if self.run else None
        found = self.communicator.broadcast(found)
        update = 0
        if found is not None:
            learned, meta = found
            self.learner.load(learned.model, learned.ema, learned.state)
            self._guard_state = GuardState(**meta["guard"])
            update = int(meta["policy_version"])
        if self.run:
            self.run.rewind_metrics(update)
        return update

    @property
    def finished(self) -> bool:
        return self.update >= self.config.optimizer.updates

    def fit(self, on_record: Callable[[Record], None] | None = None) -> GuardState | None:
        """Train to the end, to a stop request or until the guard stops it; returns the guard's state (rank 0).

        A kept checkpoint always exists afterwards: with a guard update 0, the base model, is the first, without one it is
        the last update.
        """
        if self.guard and self.guard.state.kept_residual is None:
            self._keep(0, self.guard.measure(self.learner.averaged_policy()))
        stop = self.communicator.broadcast(self._guard_state.stopped)
        while not self.finished and not stop:
            record = self.step()
            stop = self.communicator.broadcast(self._after_update(record) if self.source else False)
            if on_record and self.communicator.rank == 0:
                on_record(record)
        if self.guard is None and self.source is not None:
            self._guard_state.kept_update = self.update
            self._keep_this()
        if self.writer:
            self.writer.close()
        return self._guard_state if self.source is not None else None

    def step(self) -> Record:
        """One update of the weights, on every rank; returns its record."""
        started = time.perf_counter()
        shares = self._shares(self.source.batch(self.update)) if self.source else None
        prefixes: list[Prefix] = self.communicator.scatter(shares)
        waited = time.perf_counter()
        metrics = self.learner.update(prefixes)
        learned = time.perf_counter()
        if self.source:
            self.source.publish(self.update + 1, self.learner.weights())
        synced = time.perf_counter()
        record: Record = {"update": self.update + 1, **metrics}
        if shares:
            batch = [prefix for share in shares for prefix in share]
            record["rollout/sample_ids"] = [i for prefix in batch for i in prefix.sample_ids]
            fixed = self.config.pirf.scope == "tail"
            lags = [0 if fixed else self.update - prefix.policy_version for prefix in batch]
            record["rollout/staleness_max"] = max(lags)
        self.update += 1
        record |= {"timing/wait": waited - started, "timing/learn": learned - waited, "timing/sync": synced - learned}
        record["rollout/samples_per_second"] = self.config.optimizer.batch / (synced - started)
        return record

    def _shares(self, chunks: list[Prefix]) -> list[list[Prefix]]:
        world = self.communicator.world
        each = len(chunks) // world
        return [chunks[rank * each : (rank + 1) * each] for rank in range(world)]

    def _after_update(self, record: Record) -> bool:
        """Rank 0: guard, files; True if training must stop."""
        stop = bool(self.run and self.run.stop_file.exists())
        settings = self.config
        started = time.perf_counter()
        if self.guard and (self.update % settings.guard.guard_every == 0 or self.finished):
            record |= self.guard.measure(self.learner.averaged_policy())
            self._keep(self.update, record)
            stop = stop or self.guard.state.stopped
        record["timing/guard"] = time.perf_counter() - started
        self._write(record)
        if self.update % settings.learner.checkpoint_every == 0 or self.finished or stop:
            self._save(f"update_{self.update:06d}")
        return stop

    def _keep(self, update: int, figures: Record) -> None:
        if self.guard and self.guard.judge(update, figures):
            self._keep_this()

    def _keep_this(self) -> None:
        self._kept = {name: tensor.clone() for name, tensor in self.learner.ema.tensors.items()}
        self._save(BEST)

    def kept_weights(self) -> dict[str, torch.Tensor]:
        """Learning tensors of the best model inside the guard's limits, or without an enforced guard of the last (rank 0,
        after ``fit``)."""
        if self._kept is None and self.run is not None:  # kept before this process resumed the run
            self._kept = load_weights(self.run.paths.checkpoints / BEST, "ema")
        if self._kept is None:
            raise ValueError("nothing is kept yet: call fit first")
        return self._kept

    def kept_policy(self) -> Policy:
        """The policy of the kept weights, for sampling."""
        policy = make_policy(self.config, self.learner.policy.base)
        policy.load_learned(self.kept_weights())
        policy.tuned.requires_grad_(False)
        return policy

    def _save(self, name: str) -> None:
        if self.run is None:
            return
        learned = Learned(self.learner.weights(), self.learner.ema.tensors, self.learner.state())
        meta = {
            "kind": "tuned",
            "policy_version": self.update,
            "seed": self.config.seed,
            "scope": self.config.pirf.scope,
            "switch_sigma": self.learner.policy.switch_sigma,
            "reference": self.reference,
            "guard": self._guard_state.to_json(),
        }
        self.run.save(name, self.info, learned, meta)

    def _write(self, record: Record) -> None:
        if self.run is None:
            return
        path = self.run.paths.metrics
        with names_file(path), path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.writer:
            for name, value in record.items():
                if isinstance(value, float):
                    self.writer.add_scalar(name, value, self.update)
