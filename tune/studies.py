"""The study: every trial that was ever begun, in Optuna's storage. It alone says what is done and what is left."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from pirf_ray.config import ConfigError
from tune.goals import VALUES, Figures, Goal, Limits
from tune.search_space import Params, SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)
FIGURES, SWEEP, RUN = "figures", "sweep", "run"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
STARTUP_TRIALS = 5
"""Random ones, before TPE has anything to go by; Optuna's default of 10 would be nearly all of a sweep on a laptop."""


@dataclass(frozen=True)
class Suggestion:
    """A trial that is to be run: its number in the study, and its values."""

    number: int
    params: Params
    stoppable: bool
    """Not the first of a sweep: the preset's run, with which the others are compared, is always run to its end."""


def open_study(storage: str, name: str, goal: Goal, about: dict[str, str]) -> optuna.Study:
    """Make a study, or go on with the one of that name; ConfigError if that is about something else."""
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
        raise ConfigError(f"--study {name!r} is of another sweep: {'; '.join(differing) or 'its trials are not of this command'}")
    for key, value in wanted.items():
        study.set_user_attr(key, value)
    with _known_experiments():
        study.set_metric_names(list(VALUES[goal]))
    return study


@contextmanager
def _known_experiments() -> Iterator[None]:
    """Optuna calls experimental what has been as it is since its version 3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _masked(error: Exception, storage: str) -> str:
    """The error's first line, without the storage's address, which may hold a password."""
    return first_line(error).replace(storage, "the storage")


def first_line(error: BaseException) -> str:
    """What a database says; more lines are its statement and its advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def make_sampler(study: optuna.Study, seed: int) -> optuna.samplers.BaseSampler:
    """TPE that knows the constraints. Its seed counts the trials there are: one that began again would repeat itself."""
    with _known_experiments():
        return optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=STARTUP_TRIALS,
            seed=seed + len(study.trials),
        )


class SweepStudy:
    """One sweep's part of a study. Several sweeps may share one: each hands out its own trials and learns from all."""

    def __init__(self, study: optuna.Study, space: SearchSpace, *, sweep: str, goal: Goal, limits: Limits) -> None:
        self.study, self.space, self.sweep, self.goal, self.limits = study, space, sweep, goal, limits
        self._handed: set[int] = set()
        self._check_lists()

    def _check_lists(self) -> None:
        """Optuna cannot change the list that a parameter was searched over."""
        for trial in self.study.trials:
            for name, distribution in trial.distributions.items():
                spec = self.space.specs.get(name)
                if spec is None or not isinstance(distribution, optuna.distributions.CategoricalDistribution):
                    continue
                if not spec.fixed and tuple(distribution.choices) != tuple(spec.ends()):
                    there = ",".join(map(str, distribution.choices))
                    flag = name.replace("_", "-")
                    raise ConfigError(
                        f"--{flag} {spec}: the study searches {there}, which cannot change; use that or another --study"
                    )

    def own(self) -> list[FrozenTrial]:
        """This sweep's trials by number. Enqueued ones that another process asked for are not among them."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.user_attrs.get(SWEEP) == self.sweep]

    def finished(self) -> list[FrozenTrial]:
        return [trial for trial in self.own() if trial.state in FINISHED]

    def begin(self) -> None:
        """Put the preset's own values first in line, the first time."""
        if not self.own():
            self.study.enqueue_trial(self.space.preset(), user_attrs={SWEEP: self.sweep})

    def next(self) -> Suggestion:
        """A trial that an earlier process of this sweep left unfinished, else a new one."""
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
        """All parameters of a trial, those that the space fixes included. Of one that was left while it was asked for, the rest
        is asked for now."""
        return self.space.suggest(self._handle(trial.number))

    def _handle(self, number: int) -> optuna.Trial:
        return optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def note(self, number: int, update: int, value: float) -> None:
        """A running trial's best residual so far, for the dashboard and the report."""
        if len(VALUES[self.goal]) > 1:
            return  # Optuna keeps the course of single values only
        noted = self.study.get_trials(deepcopy=False)[number].intermediate_values
        if update not in noted:  # a resumed trial begins with its past
            self._handle(number).report(value, update)

    def finish(self, number: int, figures: Figures) -> None:
        """Take in a run's end."""
        trial = self._handle(number)
        trial.set_user_attr(FIGURES, {k: _storable(v) for k, v in figures.to_json().items()})
        for name, violation in figures.constraints(self.goal, self.limits).items():
            if name not in trial.constraints:  # else from a driver that died while it told
                trial.set_constraint(name, violation)
        values = figures.values(self.goal)
        state = TrialState.COMPLETE if all(map(math.isfinite, values)) else TrialState.FAIL
        self.study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)

    def stop(self, number: int) -> None:
        """A run that was not worth its end."""
        self.study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, why: str) -> None:
        self._handle(number).set_user_attr("error", why)
        self.study.tell(number, state=TrialState.FAIL)


def run_name(number: int) -> str:
    return f"{number:04d}"


def _storable(value: Any) -> Any:
    """JSON has no inf."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials: those inside the constraints by value, then the others by violation; of two objectives the frontier's
    front first, each front by its first value."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    violation = {t.number: sum(max(0.0, c) for c in t.constraints.values()) for t in complete}
    front = {t.number for t in study.best_trials} if len(study.directions) > 1 else set()
    return sorted(complete, key=lambda t: (violation[t.number], t.number not in front if front else False, t.values[0], t.number))
