"""The number of updates that a budget pays for. Every update's actual draw is counted, before anything is computed."""

from collections.abc import Iterator

import torch

from envs.common.checks import ConfigError
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.learning.losses import Batch, Context
from pirf_ray.learning.rollouts import MAKERS, Prefix, Rollouts, Sample, Trajectory
from pirf_ray.learning.rollouts.plan import sample_ids
from pirf_ray.training.settings import TrainConfig


def updates_within(config: TrainConfig, info: ModelInfo, budget: float) -> int:
    """Return the updates that a budget (network forwards, a gradient counting two more) pays for, rollouts included.

    ConfigError if it pays for none, or if an update costs nothing.
    """
    spent, updates = 0.0, 0
    for cost in update_costs(config, info):
        if not cost:
            raise ConfigError(
                f"--objective {config.objective}: update {updates} evaluates no network, so no budget ends a training"
            )
        spent += cost
        if spent > budget:
            break
        updates += 1
    if not updates:
        raise ConfigError(f"--budget {budget:g} pays for no update: the first costs {spent:g} network forwards")
    return updates


def update_costs(config: TrainConfig, info: ModelInfo) -> Iterator[float]:
    """Yield the cost of each update in network forwards, without end: of its loss, and of the chunks that it uses first."""
    pde, task, plan = info.pde(), config.rollout_task(info.parameters), config.plan()
    process = config.sampler.process(pde)
    maker = MAKERS.make(task.maker, task.maker_settings, task.context)
    context = Context(process=process, pde=pde, truncation=config.truncation_steps)
    objective = config.learning.parts.make(context).objective
    made: set[int] = set()
    update = 0
    while True:
        chunks = plan.batch_chunks(update)
        new = set(chunks) - made
        made = {chunk for chunk in made | new if chunk >= plan.retired(update)}
        ids = tuple(i for chunk in chunks for i in sample_ids(chunk, task.chunk))
        groups = tuple(i // task.group for i in ids)
        rollouts = outline(maker.makes, ids, groups, pde.shape, num_steps=process.num_steps, start=task.context.stop_step)
        cost = objective.cost(Batch(rollouts=rollouts, key=(config.seed, update)))
        yield cost.units + len(new) * task.chunk * maker.cost(process)
        update += 1


def outline(
    kind: type[Rollouts],
    ids: tuple[int, ...],
    groups: tuple[int, ...],
    shape: tuple[int, int, int],
    *,
    num_steps: int,
    start: int,
) -> Rollouts:
    """Return rollouts of a kind whose tensors have shapes but no values, for ``Objective.cost``.

    ``shape``: (c, h, w) of a sample. ``start``: step before which a prefix ends. Trajectories are chains. TypeError for another kind.
    """

    def empty(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, device="meta")

    b = len(ids)
    if issubclass(kind, Prefix):
        return kind(sample_ids=ids, groups=groups, x=empty(b, *shape), step=start)
    if issubclass(kind, Sample):
        return kind(sample_ids=ids, groups=groups, x=empty(b, *shape), reward=empty(b))
    if issubclass(kind, Trajectory):
        nodes = num_steps + 1
        return kind(
            sample_ids=ids,
            groups=groups,
            x=empty(nodes, b, *shape),
            steps=tuple(range(nodes)),
            parents=tuple(range(-1, num_steps)),
            leaves=(num_steps,),
            mean=empty(nodes, b, *shape),
            log_density=empty(nodes, b),
            reward=empty(1, b),
        )
    raise TypeError(f"the cost of rollouts of the kind {kind.__name__} is not known; known: Prefix, Sample, Trajectory")
