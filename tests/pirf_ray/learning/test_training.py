"""Whole trainings: low-rank factors are saved alone and resumed to the bit, and each mode of the guard keeps its model."""

from dataclasses import replace
from pathlib import Path

import torch

from pirf_ray.diffusion.checkpoints import load_weights
from pirf_ray.training.finetuning import FineTuning
from pirf_ray.training.models import load_model
from pirf_ray.training.settings import TrainConfig
from tiny_models import EXACT, start_run, tiny_config, tiny_tuning


def test_low_rank_factors_alone_are_saved_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    config = tiny_config(**EXACT, objective="alignprop", parameters="low-rank", lora_rank=2, anchor=0.0, updates=4, guard="off")
    whole = tuned(config, tmp_path / "whole")
    learner = whole.learner
    assert any(not torch.equal(w, learner.policies.start[n]) for n, w in learner.weights().items())
    part = start_run(tmp_path / "part", config)
    first = tiny_tuning(config, part)
    for _ in range(2):
        first._after_update(first.step())
    second = tiny_tuning(config, part)
    assert second.update == 2
    second.fit()
    for key, tensor in second.learner.weights().items():
        assert torch.equal(tensor, learner.weights()[key])
    for which in ("model", "ema"):
        saved = load_weights(part.paths.checkpoints / "update_000004", which)
        assert saved.keys() == learner.weights().keys() and all(name.endswith((".0.up", ".0.down")) for name in saved)


def test_a_run_with_low_rank_factors_is_loaded_with_them(tmp_path: Path) -> None:
    """The loader attaches factors to the base model. It samples like the learner's averaged policy."""
    made = tuned(tiny_config(**EXACT, parameters="low-rank", lora_rank=2, updates=2, guard="off"), tmp_path)
    loaded = load_model(made.run.paths.root).model
    ours = replace(loaded, policy=made.learner.averaged_policy()).sample(range(3), seed=1, stream="t")
    theirs = loaded.sample(range(3), seed=1, stream="t", groups=("base", "tuned"))
    torch.testing.assert_close(theirs["tuned"], ours["tuned"])  # in another layout of the weights
    assert not torch.equal(theirs["tuned"], theirs["base"])


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
