"""The study: every trial that was ever started, in Optuna's storage. It alone holds what is done and what is left."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from envs.common.checks import ConfigError, flag
from tune.goals import VALUES, Goal, Limits, TrialMetrics
from tune.search_space import Params, SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)
METRICS, SWEEP, RUN, FAILURE = "figures", "sweep", "run", "error"
"""User attributes of a trial. Old studies hold these names too."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
STARTUP_TRIALS = 5
"""Random trials before TPE models the others. Optuna's default of 10 would be nearly all of a sweep on a laptop."""


@dataclass(frozen=True)
class Suggestion:
    """A trial that is to be run: its number in the study, and its values."""

    number: int
    params: Params
    stoppable: bool
    """Whether ASHA may stop it. The first trial of a sweep, the preset's, always runs to its end: the others are compared with it."""


def open_study(storage: str, name: str, goal: Goal, about: dict[str, str]) -> optuna.Study:
    """Create a study, or open the existing study of that name; ConfigError if that is about something else."""
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize"] * len(VALUES[goal]), load_if_exists=True
        )
    except (optuna.exceptions.OptunaError, SQLAlchemyError, ValueError, ImportError) as error:
        raise ConfigError(f"--storage: {_masked(error, storage)}") from None
    wanted = {**about, "goal": goal}
    found = {key: study.user_attrs[key] for key in wanted if key in study.user_attrs}
    differing = [f"{key} {found[key]!r} there, {wanted[key]!r} asked" for key in found if found[key] != wanted[key]]
    if differing or (study.trials and not found):
        reason = "; ".join(differing) or "its trials are not of this command"
        raise ConfigError(f"--study {name!r} belongs to another sweep: {reason}")
    for key, value in wanted.items():
        study.set_user_attr(key, value)
    with _known_experiments():
        study.set_metric_names(list(VALUES[goal]))
    return study


@contextmanager
def _known_experiments() -> Iterator[None]:
    """Silence Optuna's warning about functions that it calls experimental and has not changed since its version 3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _masked(error: Exception, storage: str) -> str:
    """Return the error's first line, without the storage's address, which may hold a password."""
    return first_line(error).replace(storage, "the storage")


def first_line(error: BaseException) -> str:
    """Return the message of a database's error; its further lines are the statement and advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def make_sampler(study: optuna.Study, seed: int) -> optuna.samplers.BaseSampler:
    """Return a TPE sampler that knows the constraints.

    Its seed counts the trials that the study has. A sampler that started again with the same seed would repeat itself.
    """
    with _known_experiments():
        return optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=STARTUP_TRIALS,
            seed=seed + len(study.trials),
        )


class SweepStudy:
    """One sweep's part of a study. Several sweeps may share a study: each hands out its own trials and learns from all."""

    def __init__(self, study: optuna.Study, space: SearchSpace, *, sweep: str, goal: Goal, limits: Limits) -> None:
        """``sweep``: the identity of the sweep, which its trials carry."""
        self.study, self.space, self.sweep, self.goal, self.limits = study, space, sweep, goal, limits
        self._handed: set[int] = set()
        self._check_lists()

    def _check_lists(self) -> None:
        """Raise ConfigError if the space has another list than the study: Optuna cannot change the list of a parameter."""
        for trial in self.study.trials:
            for name, distribution in trial.distributions.items():
                spec = self.space.specs.get(name)
                if spec is None or not isinstance(distribution, optuna.distributions.CategoricalDistribution):
                    continue
                if not spec.fixed and tuple(distribution.choices) != tuple(spec.ends()):
                    there = ",".join(map(str, distribution.choices))
                    raise ConfigError(
                        f"{flag(name)} {spec}: the study searches {there}, which cannot change; use that or another --study"
                    )

    def own(self) -> list[FrozenTrial]:
        """Return this sweep's trials by number, without the enqueued trials that another process has asked for."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.user_attrs.get(SWEEP) == self.sweep]

    def finished(self) -> list[FrozenTrial]:
        """Return this sweep's trials that are complete, stopped or failed."""
        return [trial for trial in self.own() if trial.state in FINISHED]

    def ranked(self) -> list[FrozenTrial]:
        """Return this sweep's complete trials, best first."""
        own = {trial.number for trial in self.own()}
        return [trial for trial in best_first(self.study) if trial.number in own]

    def enqueue_preset(self) -> None:
        """Put the preset's own values first in line, unless the sweep has trials."""
        if not self.own():
            self.study.enqueue_trial(self.space.preset(), user_attrs={SWEEP: self.sweep})

    def next(self) -> Suggestion:
        """Return a trial that an earlier process of this sweep left unfinished, or else a new trial."""
        for trial in self.own():
            if trial.state == TrialState.RUNNING and trial.number not in self._handed:
                self._handed.add(trial.number)
                return self._suggestion(trial.number, self.params(trial))
        asked = self.study.ask()
        asked.set_user_attr(SWEEP, self.sweep)
        params = self.space.suggest(asked)
        asked.set_user_attr(RUN, run_name(asked.number))
        self._handed.add(asked.number)
        return self._suggestion(asked.number, params)

    def _suggestion(self, number: int, params: Params) -> Suggestion:
        return Suggestion(number, params, stoppable=number != self.own()[0].number)

    def params(self, trial: FrozenTrial) -> Params:
        """Return all parameters of a trial, fixed ones included.

        If a process died while it asked for them, the missing ones are asked for now.
        """
        return self.space.suggest(self._handle(trial.number))

    def _handle(self, number: int) -> optuna.Trial:
        return optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def record_score(self, number: int, update: int, score: float) -> None:
        """Record the best residual so far of a running trial, for the dashboard and the report."""
        if len(VALUES[self.goal]) > 1:
            return  # Optuna keeps the learning curve of single values only
        recorded = self.study.get_trials(deepcopy=False)[number].intermediate_values
        if update not in recorded:  # a continued trial reports its past again
            self._handle(number).report(score, update)

    def finish(self, number: int, metrics: TrialMetrics) -> None:
        """Record the metrics of a finished trial."""
        trial = self._handle(number)
        trial.set_user_attr(METRICS, metrics.to_json())
        for name, violation in metrics.constraints(self.goal, self.limits).items():
            if name not in trial.constraints:  # a driver that died while recording may have set it
                trial.set_constraint(name, violation)
        values = metrics.values(self.goal)
        state = TrialState.COMPLETE if all(map(math.isfinite, values)) else TrialState.FAIL
        self.study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)

    def stop(self, number: int) -> None:
        """Record that ASHA has stopped a trial."""
        self.study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, why: str) -> None:
        """Record that a trial has failed."""
        self._handle(number).set_user_attr(FAILURE, why)
        self.study.tell(number, state=TrialState.FAIL)


def run_name(number: int) -> str:
    """Return the name of a trial's run directory."""
    return f"{number:04d}"


def metrics_of(trial: FrozenTrial) -> TrialMetrics:
    """Return the metrics of a finished trial."""
    return TrialMetrics.from_json(trial.user_attrs[METRICS])


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """Return the complete trials, best first.

    Trials inside the constraints come first, by value, then the others, by violation. If there are two values, the Pareto
    front comes first; it and the others are each ordered by the first value.
    """
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    violation = {t.number: sum(max(0.0, c) for c in t.constraints.values()) for t in complete}
    front = {t.number for t in study.best_trials} if len(study.directions) > 1 else set()
    return sorted(complete, key=lambda t: (violation[t.number], t.number not in front if front else False, t.values[0], t.number))
