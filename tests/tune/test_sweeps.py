"""The study as a sweep's only memory, the searcher, ASHA, and the room of trials."""

import errno
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import optuna
import pytest
from optuna.trial import TrialState

from envs.common.checks import ConfigError
from pirf_ray.distributed.cluster import fits
from pirf_ray.distributed.driver import errno_of
from pirf_ray.training.guard import GuardSettings
from pirf_ray.training.outcome import LearnerFailed
from pirf_ray.training.presets import paper, small
from sweep_metrics import METRICS
from tiny_models import tiny_config
from tune import execution
from tune.goals import Goal, Limits
from tune.halving import Halving
from tune.placement import HEAD_CPUS, choose_mode, place
from tune.search_space import SearchSpace
from tune.searcher import DISK, ERROR, FINAL, StudySearcher
from tune.studies import RUN, SWEEP, SweepStudy, best_first, make_sampler, metrics_of, open_study
from tune.trial_log import TrialLog

SPACE = SearchSpace.around(tiny_config(), decoder_levels=2, narrowed={"num_steps": "4", "truncation": "1,2"})
ABOUT = {"env": "Burgers-v0", "preset": "tiny"}


def sweep(path: Path, *, identity: str = "a", goal: Goal = "residual", space: SearchSpace = SPACE) -> SweepStudy:
    """Open the study as a new process does."""
    study = open_study(f"sqlite:///{path / 'study.db'}", "s", goal, ABOUT)
    study.sampler = make_sampler(study, 0)
    return SweepStudy(study, space, sweep=identity, goal=goal, limits=Limits(guard=GuardSettings(), residual=0.1))


def test_the_first_trial_is_the_preset_and_is_not_stopped(tmp_path: Path) -> None:
    made = sweep(tmp_path)
    made.enqueue_preset()
    made.enqueue_preset()
    first, second = made.next(), made.next()
    assert SPACE.run_config(first.params) == tiny_config()
    assert (first.number, second.number) == (0, 1) and not first.stoppable and second.stoppable
    assert [t.user_attrs[RUN] for t in made.own()] == ["0000", "0001"]


def test_no_trial_is_lost_or_doubled_when_the_driver_dies(tmp_path: Path) -> None:
    before = sweep(tmp_path)
    before.enqueue_preset()
    given = [before.next() for _ in range(3)]
    before.finish(given[0].number, METRICS)
    asked = before.study.ask()  # died between asking and naming it its own: nobody's, and not counted
    after = sweep(tmp_path)
    after.enqueue_preset()
    again = [after.next() for _ in range(3)]
    assert [(s.number, s.params) for s in again[:2]] == [(s.number, s.params) for s in given[1:]]
    assert again[2].number == asked.number + 1
    for suggestion in again:
        after.finish(suggestion.number, METRICS)
    assert [t.number for t in after.finished()] == [0, 1, 2, 4]
    assert len({t.number for t in after.finished()}) == 4


def test_a_driver_that_died_while_recording_records_again(tmp_path: Path) -> None:
    made = sweep(tmp_path)
    made.enqueue_preset()
    number = made.next().number
    trial = made.study.trials[number]
    optuna.Trial(made.study, trial._trial_id).set_constraint("data floor", 0.0)
    sweep(tmp_path).finish(number, METRICS)
    (trial,) = sweep(tmp_path).finished()
    assert trial.values == [pytest.approx(-3.0)] and metrics_of(trial) == METRICS
    assert trial.user_attrs["figures"]["energy"] == METRICS.energy, "old studies hold this name"


def test_a_storage_that_refuses_ends_the_sweep_and_leaves_the_trial_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite refuses on a full disk, at the moment that a trial's metrics are recorded."""
    subject, log = sweep(tmp_path), Mock(spec=TrialLog)
    searcher = StudySearcher(subject, total=3, log=log)
    assert searcher.suggest("a") is not None

    def refuse(*_: object, **__: object) -> None:
        raise optuna.exceptions.StorageInternalError("rolled back") from OSError("database or disk is full")

    with monkeypatch.context() as full:
        full.setattr(subject.study, "tell", refuse)
        searcher.on_trial_complete("a", {FINAL: json.dumps(METRICS.to_json())})
    assert searcher.halted == "the study's storage refused: database or disk is full"
    assert searcher.suggest("b") == StudySearcher.FINISHED
    assert [event[0] for event in log.method_calls] == ["started"]
    assert [t.state for t in sweep(tmp_path).own()] == [TrialState.RUNNING]
    assert sweep(tmp_path).next().number == 0


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), DISK),
        (LearnerFailed("the learner failed: OSError: [Errno 28] No space left on device", errno.ENOSPC), DISK),
        (LearnerFailed("the learner failed: 3 updates had a non-finite gradient"), ERROR),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), ERROR),
    ],
)
def test_a_disk_is_no_fault_of_the_trials(error: Exception, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, and on Ray, whose workers bring back the text of what failed."""

    def fail(*_: object) -> None:
        raise error

    reports: list[dict[str, object]] = []
    monkeypatch.setattr(execution, "run_trial", fail)
    monkeypatch.setattr("ray.tune.report", reports.append)
    execution.trial({"number": 0, "params": {}}, SimpleNamespace(), SimpleNamespace(run_config=dict))
    assert [{DISK, ERROR} & report.keys() for report in reports] == [{what}]
    text = "Training failed due to worker errors:\nTraceback\nOSError: [Errno 28] No space left on device: 'runs/x'\n"
    assert errno_of(RuntimeError(text)) == errno.ENOSPC and errno_of(RuntimeError("TrainingDiverged: 3 updates")) is None


def test_states_of_trials(tmp_path: Path) -> None:
    made = sweep(tmp_path)
    made.enqueue_preset()
    for _ in range(4):
        made.next()
    made.finish(0, METRICS)
    made.record_score(1, 5, -1.0)
    made.record_score(1, 5, -2.0)  # a continued trial reports its past again
    made.stop(1)
    made.fail(2, "out of memory")
    made.finish(3, replace(METRICS, residual=math.inf))
    states = [t.state for t in made.own()]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL]
    assert made.own()[1].intermediate_values == {5: -1.0} and made.own()[2].user_attrs["error"] == "out of memory"
    assert len(made.finished()) == 4


def test_sweeps_that_share_a_study_hand_out_their_own(tmp_path: Path) -> None:
    one, other = sweep(tmp_path), sweep(tmp_path, identity="b")
    one.enqueue_preset()
    one.next()
    other.enqueue_preset()
    assert other.next().number == 1 and [t.user_attrs[SWEEP] for t in other.own()] == ["b"]
    assert sweep(tmp_path).next().number == 0


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    made = sweep(tmp_path)
    made.enqueue_preset()
    made.next()
    with pytest.raises(ConfigError, match=r"--study 's' belongs to another sweep: goal 'residual' there, 'frontier' asked"):
        sweep(tmp_path, goal="frontier")
    with pytest.raises(ConfigError, match=r"env 'Burgers-v0' there, 'Darcy-v0' asked"):
        open_study(f"sqlite:///{tmp_path / 'study.db'}", "s", "residual", {"env": "Darcy-v0"})
    wider = SearchSpace.around(tiny_config(), decoder_levels=2, narrowed={"num_steps": "4", "truncation": "1,2,4"})
    with pytest.raises(ConfigError, match=r"--truncation 1,2,4: the study searches 1,2, which cannot change"):
        sweep(tmp_path, space=wider)
    foreign = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}", study_name="foreign")
    foreign.tell(foreign.ask(), 1.0)
    with pytest.raises(ConfigError, match="its trials are not of this command"):
        open_study(f"sqlite:///{tmp_path / 'study.db'}", "foreign", "residual", ABOUT)


def test_an_address_that_may_hold_a_password_is_not_printed() -> None:
    with pytest.raises(ConfigError) as error:
        open_study("mysql+nothing://me:secret@nowhere/x", "s", "residual", ABOUT)
    assert "--storage" in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize("goal", ["residual", "fidelity", "frontier"])
def test_the_best_is_inside_the_limits(tmp_path: Path, goal: Goal) -> None:
    made = sweep(tmp_path, goal=goal)
    made.enqueue_preset()
    changes = [{}, {"residual": 1e-6, "below_floor": True, "energy": 0.01}, {"residual": 1e-4, "energy": 0.05}]
    for change in changes:
        made.finish(made.next().number, replace(METRICS, **change))
    assert [t.number for t in best_first(made.study)] == [2, 0, 1]


def test_a_new_process_draws_anew(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        made = sweep(tmp_path)
        made.enqueue_preset()
        suggestion = made.next()
        made.finish(suggestion.number, METRICS)
        seen.append(suggestion.params["learning_rate"])
    assert len(set(seen)) == 3


def test_the_study_learns(tmp_path: Path) -> None:
    """On a value that is lowest at a learning rate of 1e-3, the last of 30 trials lie nearer to it than the first ones."""
    made = sweep(tmp_path)
    made.enqueue_preset()
    distances = []
    for _ in range(30):
        suggestion = made.next()
        distance = abs(math.log10(float(suggestion.params["learning_rate"])) + 3)
        made.finish(suggestion.number, replace(METRICS, residual=10**distance))
        distances.append(distance)
    assert sum(distances[-10:]) < 0.7 * sum(distances[1:11])


def test_trials_in_one_process_share_the_machine() -> None:
    config = small("Burgers-v0")
    assert choose_mode("auto", config) == "in-process" and choose_mode("distributed", config) == "distributed"
    placement = place(config, "in-process", [{"CPU": 4, "GPU": 0}], cpus=1, gpus=0, at_most=12)
    assert placement.at_once == 4 and placement.bundles == [{"CPU": 1}] and placement.beside == []
    assert place(config, "in-process", [{"CPU": 4, "GPU": 0}], cpus=1, gpus=0, at_most=3).at_once == 3
    assert place(config, "in-process", [{"CPU": 8, "GPU": 1}], cpus=1, gpus=0.25, at_most=12).at_once == 4
    with pytest.raises(ConfigError, match=r"--trial-cpus, --trial-gpus: one in-process trial needs 4 CPUs and 1 GPUs"):
        place(config, "in-process", [{"CPU": 4, "GPU": 0}], cpus=4, gpus=1, at_most=1)


def test_distributed_trials_have_room_for_actors_and_workers_both() -> None:
    config = tiny_config(actors=2, actor_cpus=0.5, workers=1, worker_cpus=0.5)
    placement = place(config, "distributed", [{"CPU": 4, "GPU": 0}], cpus=1, gpus=0, at_most=12)
    assert placement.bundles == [{"CPU": HEAD_CPUS}, {"CPU": 0.5}, {"CPU": 0.5}] and placement.beside == [{"CPU": 0.5}]
    assert placement.at_once == 2  # 1.51 CPUs each
    with pytest.raises(
        ConfigError, match=r"one distributed trial needs 1.51 CPUs and 0 GPUs in 4 pieces, the cluster has 1 and 0"
    ):
        place(config, "distributed", [{"CPU": 1, "GPU": 0}], cpus=1, gpus=0, at_most=12)
    gpu = paper("Burgers-v0")
    assert choose_mode("auto", gpu) == "distributed"
    assert place(gpu, "distributed", [{"CPU": 8, "GPU": 1}] * 3, cpus=1, gpus=0, at_most=12).at_once == 3


def test_pieces_must_fit_on_single_nodes() -> None:
    assert fits([{"CPU": 1.0}, {"CPU": 1.0}], [{"CPU": 1.0}, {"CPU": 0.5}, {"CPU": 0.5}])
    assert not fits([{"CPU": 1.0}, {"CPU": 1.0}], [{"CPU": 1.5}])
    assert not fits([{"CPU": 8.0}], [{"CPU": 1.0, "GPU": 1.0}])


def test_asha_remembers_earlier_processes_and_spares_the_preset() -> None:
    def trial(name: str, *, stoppable: bool = True) -> SimpleNamespace:
        return SimpleNamespace(trial_id=name, config={"stoppable": stoppable})

    def result(update: int, score: float) -> dict[str, float]:
        return {"update": update, "score": score}

    halving = Halving(10, 40, [[(10, -3.0), (20, -4.0)], [(10, -2.0), (20, -2.5)]])
    good, bad, preset = trial("good"), trial("bad"), trial("preset", stoppable=False)
    for each in (good, bad, preset):
        halving.on_trial_add(None, each)
    assert halving.on_trial_result(None, bad, result(5, 0.0)) == "CONTINUE"
    assert halving.on_trial_result(None, bad, result(10, -1.0)) == "STOP"
    assert halving.on_trial_result(None, good, result(12, -3.5)) == "CONTINUE"
    assert halving.on_trial_result(None, preset, result(10, -1.0)) == "CONTINUE"
    ended = trial("ended")
    halving.on_trial_add(None, ended)
    assert halving.on_trial_result(None, ended, result(40, 0.0)) == "CONTINUE"  # its training has ended
    assert Halving(10, 40, []).debug_string()
