"""Whole trainings: every objective resumes to the bit, and each mode of the guard keeps its model."""

from pathlib import Path

import pytest
import torch

from pirf_ray.training.finetuning import FineTuning
from pirf_ray.training.models import load_model
from pirf_ray.training.settings import TrainConfig
from tiny_models import EXACT, start_run, tiny_config, tiny_tuning


@pytest.mark.parametrize(("name", "k"), [("draft-lv", 1), ("alignprop", 2), ("reft", 2)])
def test_every_objective_trains_and_resumes_bit_for_bit(tmp_path: Path, name: str, k: int) -> None:
    rank = 2 if name == "alignprop" else 0
    config = tiny_config(**EXACT, truncation=k, objective=name, lora_rank=rank, anchor=0.0, updates=4, guard="off")
    whole = tuned(config, tmp_path / "whole")
    assert any(not torch.equal(w, whole.learner.reference[n]) for n, w in whole.learner.weights().items())
    part = start_run(tmp_path / "part", config)
    first = tiny_tuning(config, part)
    for _ in range(2):
        first._after_update(first.step())
    second = tiny_tuning(config, part)
    assert second.update == 2
    second.fit()
    for key, tensor in second.learner.weights().items():
        assert torch.equal(tensor, whole.learner.weights()[key])


def tuned(config: TrainConfig, path: Path) -> FineTuning:
    made = tiny_tuning(config, start_run(path, config))
    made.fit()
    return made


# The energy distance of the base model over itself is 1, so these limits refuse every model, the base model too.
NARROW = {"guard_samples": 4, "guard_every": 2, "guard_energy": 1e-9, "guard_amplitude": 1e-9, "guard_spectrum": 1e-9}


def guarded(mode: str, path: Path) -> FineTuning:
    return tuned(tiny_config(guard=mode, guard_patience=1, **NARROW), path)


def test_an_enforced_guard_ends_the_training(tmp_path: Path) -> None:
    run = guarded("enforce", tmp_path)
    assert run.update == 0 and run._guard_state.stopped and run._guard_state.kept_update == 0


def test_a_watching_guard_records_and_stops_nothing(tmp_path: Path) -> None:
    run = guarded("watch", tmp_path)
    assert run.update == 6 and not run._guard_state.stopped and run._guard_state.kept_update == 6
    records = run.run.history()
    assert [r.update for r in records if r.guard] == [2, 4, 6]
    assert not any(r.guard.inside for r in records if r.guard)


def test_without_a_guard_nothing_is_measured_and_the_last_is_kept(tmp_path: Path) -> None:
    run = guarded("off", tmp_path)
    assert run.guard is None and run._guard_state.kept_update == 6
    assert not any(r.guard for r in run.run.history())
    policy_of_run = load_model(run.run.paths.root).model.policy
    last = run.learner.ema.tensors
    assert all(torch.equal(p, last[n]) for n, p in policy_of_run.tuned.network.named_parameters() if n in last)
