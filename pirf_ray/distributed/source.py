"""Rollouts from Ray actors: every actor is kept busy as far ahead as the plan allows, and lost actors are survived."""

import logging
import time
from collections import deque
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from envs.rewards import RewardError
from pirf_ray.distributed.weights import WeightMessage
from pirf_ray.learning.rollouts.plan import RolloutPlan
from pirf_ray.learning.rollouts.records import Rollouts

PROBE_SECONDS = 0.5
GIVE_UP_SECONDS = 300.0
log = logging.getLogger(__name__)


class ActorSource:
    """A RolloutSource over Ray actors. Each chunk is made once: a lost actor's chunk returns to the head of the queue."""

    def __init__(self, plan: RolloutPlan, actors: list[Any], *, fixed: bool, staleness: int) -> None:
        """``fixed``: the base model makes every rollout, so that no weights are sent."""
        self.plan, self.fixed, self.staleness = plan, fixed, staleness
        self._idle = deque(actors)
        self._running: dict[ray.ObjectRef, tuple[Any, int]] = {}
        self._probes: dict[ray.ObjectRef, Any] = {}
        self._queue: deque[int] = deque()
        self._queued_until = 0
        self._made: dict[int, Rollouts] = {}
        self._messages: dict[int, ray.ObjectRef] = {}
        self.chunks_made = 0
        self.actors_lost = 0

    def publish(self, version: int, weights: dict[str, torch.Tensor]) -> None:
        """Make version ``version`` available, and let the actors begin what it allows. Learning continues beside them."""
        if not self.fixed:
            self._messages[version] = ray.put(WeightMessage.pack(version, weights))
            oldest = version - self.staleness
            self._messages = {v: m for v, m in self._messages.items() if v >= oldest}
        elif not self._messages:
            self._messages[0] = ray.put(None)
        self._advance(version)

    def batch(self, update: int) -> list[Rollouts]:
        self._advance(update)
        wanted = self.plan.batch_chunks(update)
        last_arrival = time.monotonic()
        while missing := [chunk for chunk in wanted if chunk not in self._made]:
            self._prioritize(missing)
            if self._collect(timeout=PROBE_SECONDS):
                last_arrival = time.monotonic()
            elif time.monotonic() - last_arrival > GIVE_UP_SECONDS:
                raise TimeoutError(f"no rollout arrived for {GIVE_UP_SECONDS:.0f} s; missing chunks {missing[:4]}")
        return [self._made[chunk] for chunk in wanted]

    def _advance(self, update: int) -> None:
        """Forget retired chunks, queue those that the plan now allows, give idle actors work."""
        retired = self.plan.retired(update)
        self._made = {c: r for c, r in self._made.items() if c >= retired}
        self._queued_until = max(self._queued_until, retired)
        horizon = self.plan.horizon(update)
        while self._queued_until < horizon and self.plan.version(self._queued_until) <= update:
            self._queue.append(self._queued_until)
            self._queued_until += 1
        self._collect(timeout=0)

    def _prioritize(self, missing: list[int]) -> None:
        """Put the chunks that the learner waits for first."""
        waiting = [chunk for chunk in missing if chunk in self._queue]
        rest = [chunk for chunk in self._queue if chunk not in waiting]
        self._queue = deque([*waiting, *rest])

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            actor, chunk = self._idle.popleft(), self._queue.popleft()
            # A resumed run no longer has weights older than its checkpoint: fresher ones are within the bound.
            version = max(self.plan.version(chunk), min(self._messages))
            self._running[actor.make.remote(chunk, version, self._messages[version])] = (actor, chunk)

    def _collect(self, timeout: float) -> bool:
        """Take in what has arrived, waiting at most ``timeout`` s; refill the actors first. Return whether a chunk came."""
        self._dispatch()
        refs = [*self._running, *self._probes]
        if not refs:
            return False
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if ready:  # then everything else that is there already
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        arrived = [self._receive(ref) for ref in ready]
        self._dispatch()
        return any(arrived)

    def _receive(self, ref: ray.ObjectRef) -> bool:
        if ref in self._probes:
            self._answer(ref)
            return False
        actor, chunk = self._running.pop(ref)
        try:
            rollouts: Rollouts = ray.get(ref)
        except RayActorError as error:
            log.warning("a rollout actor was lost while making chunk %d: %s", chunk, str(error).splitlines()[0])
            self.actors_lost += 1
            self._queue.appendleft(chunk)
            self._probes[actor.ping.remote()] = actor
            return False
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, RewardError) else error from None
        self._idle.append(actor)
        self._made[chunk] = rollouts
        self.chunks_made += 1
        return True

    def _answer(self, ref: ray.ObjectRef) -> None:
        """Give a restarted actor that answers work again. Ask an actor that fails again once more; Ray restarts it meanwhile."""
        actor = self._probes.pop(ref)
        try:
            ray.get(ref)
        except RayActorError:
            self._probes[actor.ping.remote()] = actor
            return
        self._idle.append(actor)
