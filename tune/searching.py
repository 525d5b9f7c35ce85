"""The search: what is left of a sweep, run on Ray."""

from rich.console import Console

from pirf_ray.training.outcome import LearnerFailed
from tune.directory import Sweep
from tune.studies import SweepStudy
from tune.trial_log import ConsoleLog
from tune.trials import TrialJob


def search(sweep: Sweep, study: SweepStudy, console: Console) -> None:
    """Run the trials that are left. KeyboardInterrupt after Ctrl-C, LearnerFailed after a full disk: both say how to continue."""
    left = sweep.total - len(study.finished())
    if left <= 0:
        console.print(f"all {sweep.total} trials are done; a larger --num-trials adds more", highlight=False)
        return
    from pirf_ray.distributed import cluster  # before ray: it sets Ray's switches
    from tune.execution import execute
    from tune.placement import place_trials

    cluster.join(sweep.arguments.address, dashboard=True)
    placement = place_trials(sweep, cluster.node_resources())
    console.print(f"{left} trials to do, {placement.at_once} at once, {placement.mode}", highlight=False)
    a = sweep.arguments
    job = TrialJob(
        trials=sweep.trials,
        base=sweep.base,
        mode=placement.mode,
        threads=max(1, int(a.trial_cpus)),
        device="cuda" if placement.mode == "in-process" and a.trial_gpus else "cpu",
    )
    study.enqueue_preset()
    refusal = execute(sweep, study, job, placement, ConsoleLog(study, console, total=sweep.total))
    advice = f"nothing is lost; continue with: {sweep.resume_command}"
    if refusal:
        raise LearnerFailed(f"{refusal}; {advice}")
    if len(study.finished()) < sweep.total:
        raise KeyboardInterrupt(f"stopped; {advice}")
