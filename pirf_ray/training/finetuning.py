"""The fine-tuning loop. This is the canonical one: with Ray, the same loop runs in each Train worker."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.tensorboard import SummaryWriter

from envs.environments import require_same_pde
from envs.rewards import Checked, PhysicsReward, Reward
from pirf_ray.diffusion.checkpoints import ModelInfo, fingerprint, load_weights
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.policy import Policy
from pirf_ray.learning.communicator import Communicator, SingleProcess
from pirf_ray.learning.learner import Learner
from pirf_ray.learning.parameters.attach import tuned_policy
from pirf_ray.learning.rollouts.records import Rollouts
from pirf_ray.learning.rollouts.samples import GroupedReward
from pirf_ray.learning.rollouts.sources import LocalSource, RolloutSource, RolloutWorker
from pirf_ray.training.checks import check_parts
from pirf_ray.training.guard import Guard, GuardMetrics, GuardState
from pirf_ray.training.records import RolloutMetrics, Timing, UpdateRecord
from pirf_ray.training.runs import BEST, Learned, RunDirectory
from pirf_ray.training.settings import TrainConfig

OnRecord = Callable[[UpdateRecord], None]


class FineTuning:
    """Learner, rollouts, guard and run directory brought together. Every rank runs it; rank 0 owns source, guard and files.

    ``source`` and ``run`` belong to rank 0 (None elsewhere); without ``run`` nothing is written.
    """

    def __init__(
        self,
        config: TrainConfig,
        info: ModelInfo,
        base: AbstractDenoiser,
        *,
        source: RolloutSource | None,
        communicator: Communicator,
        device: torch.device,
        run: RunDirectory | None = None,
        reward: Reward | None = None,
    ) -> None:
        if (source is None) == (communicator.rank == 0):
            raise ValueError("rank 0, and only rank 0, needs a source of rollouts")
        self.config, self.info, self.source, self.communicator, self.run = config, info, source, communicator, run
        self.reference = fingerprint(base.identity())
        self._kept: dict[str, torch.Tensor] | None = None
        pde = info.pde()
        process = config.sampler.process(pde)
        reward = reward or config.make_reward(pde)
        check_parts(config, pde, reward)
        self.learner = Learner(
            config.learning,
            base,
            process=process,
            pde=pde,
            reward=GroupedReward(reward, config.rollout.group) if reward.scope == "set" else reward,
            communicator=communicator,
            device=device,
        )
        self.update = self._resume()
        if source is not None:
            source.publish(self.update, self.learner.published())
        self.guard: Guard | None = None
        if communicator.rank == 0 and config.guard.guard != "off":
            other = None if isinstance(reward, PhysicsReward) else reward
            policy, operator = self.learner.policy, config.operator
            self.guard = Guard(config.guard, pde, process, policy, seed=config.seed, operator=operator, reward=other)
            self.guard.state = self._guard_state  # one object: what the guard remembers goes into every checkpoint
        self.writer = SummaryWriter(str(run.paths.root / "tensorboard"), purge_step=self.update) if run else None

    def _resume(self) -> int:
        """Load the newest checkpoint, if there is one; return the updates done."""
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
        """Return whether every update is made."""
        return self.update >= self.config.optimizer.updates

    def fit(self, on_record: OnRecord | None = None) -> GuardState | None:
        """Train to the end, to a stop request or until the guard stops it; return the guard's state (rank 0).

        A kept checkpoint always exists afterwards: with a guard update 0, the base model, is the first; without one it is
        the last update.
        """
        if self.guard and self.guard.state.kept_residual is None:
            self._keep(0, self.guard.measure(self.learner.averaged_policy()))
        stop = self.communicator.broadcast(self._guard_state.stopped)
        while not self.finished and not stop:
            record = self.step()
            if record is not None:
                record, stop = self._after_update(record)
            stop = self.communicator.broadcast(stop)
            if on_record and record is not None:
                on_record(record)
        if self.guard is None and self.source is not None:
            self._guard_state.kept_update = self.update
            self._keep_this()
        if self.writer:
            self.writer.close()
        return self._guard_state if self.source is not None else None

    def step(self) -> UpdateRecord | None:
        """Make one update of the weights, on every rank; return its record on rank 0."""
        started = time.perf_counter()
        shares = self._shares(self.source.batch(self.update)) if self.source else None
        rollouts: list[Rollouts] = self.communicator.scatter(shares)
        waited = time.perf_counter()
        metrics = self.learner.update(rollouts)
        learned = time.perf_counter()
        if self.source:
            self.source.publish(self.update + 1, self.learner.published())
        synced = time.perf_counter()
        self.update += 1
        if shares is None:
            return None
        batch = [chunk for share in shares for chunk in share]
        fixed = self.config.fixed_rollouts
        return UpdateRecord(
            update=self.update,
            metrics=metrics,
            rollout=RolloutMetrics(
                sample_ids=tuple(i for chunk in batch for i in chunk.sample_ids),
                staleness_max=max(0 if fixed else self.update - 1 - chunk.policy_version for chunk in batch),
                samples_per_second=self.config.optimizer.batch / (synced - started),
            ),
            timing=Timing(wait=waited - started, learn=learned - waited, sync=synced - learned),
        )

    def _shares(self, chunks: list[Rollouts]) -> list[list[Rollouts]]:
        world = self.communicator.world
        each = len(chunks) // world
        return [chunks[rank * each : (rank + 1) * each] for rank in range(world)]

    def _after_update(self, record: UpdateRecord) -> tuple[UpdateRecord, bool]:
        """Guard and write files on rank 0; return the whole record, and whether training must stop."""
        stop = bool(self.run and self.run.stop_file.exists())
        settings = self.config
        started = time.perf_counter()
        guard = None
        if self.guard and (self.update % settings.guard.guard_every == 0 or self.finished):
            guard = self.guard.measure(self.learner.averaged_policy())
            self._keep(self.update, guard)
            stop = stop or self.guard.state.stopped
        timing = replace(record.timing, guard=time.perf_counter() - started)
        record = replace(record, guard=guard, timing=timing)
        self._write(record)
        if self.update % settings.learner.checkpoint_every == 0 or self.finished or stop:
            self._save(f"update_{self.update:06d}")
        return record, stop

    def _keep(self, update: int, metrics: GuardMetrics) -> None:
        if self.guard and self.guard.keeps(update, metrics):
            self._keep_this()

    def _keep_this(self) -> None:
        self._kept = {name: tensor.clone() for name, tensor in self.learner.ema.tensors.items()}
        self._save(BEST)

    def kept_weights(self) -> dict[str, torch.Tensor]:
        """Return the learning tensors of the best model inside the guard's limits, or without an enforced guard of the last.

        On rank 0, after ``fit``.
        """
        if self._kept is None and self.run is not None:  # kept before this process resumed the run
            self._kept = load_weights(self.run.paths.checkpoints / BEST, "ema")
        if self._kept is None:
            raise ValueError("nothing is kept yet: call fit first")
        return self._kept

    def kept_policy(self) -> Policy:
        """Return the policy of the kept weights, for sampling."""
        learning, process = self.config.learning_parameters, self.learner.process
        policy = tuned_policy(self.learner.policy.base, process, self.config.policy, learning)
        policy.load_learned(self.kept_weights())
        return policy

    def _save(self, name: str) -> None:
        if self.run is None:
            return
        learned = Learned(self.learner.weights(), self.learner.ema.tensors, self.learner.state())
        meta = {
            "kind": "tuned",
            "policy_version": self.update,
            "seed": self.config.seed,
            "scope": self.config.policy.scope,
            "switch_sigma": self.learner.policy.switch_sigma,
            "reference": self.reference,
            "guard": self._guard_state.to_json(),
        }
        self.run.save(name, self.info, learned, meta)

    def _write(self, record: UpdateRecord) -> None:
        if self.run is None:
            return
        written = record.to_json()
        self.run.journal.append(written)
        if self.writer:
            for name, value in written.items():
                if isinstance(value, float):
                    self.writer.add_scalar(name, value, self.update)


def local_tuning(
    config: TrainConfig,
    info: ModelInfo,
    base: AbstractDenoiser,
    *,
    run: RunDirectory | None = None,
    reward: Reward | None = None,
) -> FineTuning:
    """Return a fine-tuning whose rollouts and updates are made in this process, on the base model's device."""
    if reward is not None and not isinstance(reward, PhysicsReward):
        reward = Checked(reward, "reward")
    device = Policy(base, tuned=base).device
    worker = RolloutWorker(config.rollout_task(info.parameters), base, str(device), reward)
    require_same_pde(info.pde(), worker.env.pde)
    source = LocalSource(config.plan(), worker, fixed=config.fixed_rollouts, staleness=config.rollout.staleness)
    return FineTuning(config, info, base, source=source, communicator=SingleProcess(), device=device, run=run, reward=reward)


def train_here(run: RunDirectory, *, device: str = "cpu", on_record: OnRecord | None = None) -> None:
    """Fine-tune a run in this process, to its end or the guard's stop, from its newest checkpoint on; write its outcome."""
    info, base = run.load_base()
    tuning = local_tuning(run.config, info, base.to(device), run=run)
    guard = tuning.fit(on_record)
    if guard is None:
        raise RuntimeError("the only rank must have the guard's state")
    run.write_outcome(guard.to_json(), updates=tuning.update, finished=tuning.finished)
