"""The canonical loop in one process: learner, regularizers, guard, checkpoints, resume."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs.common.files import DirectoryTakenError
from envs.denoising import DenoisingProcess
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.diffusion.sampling import finish
from pirf_ray.learning.learner import TrainingDiverged
from pirf_ray.learning.losses import Batch
from pirf_ray.learning.regularizers.output_anchor import output_anchor
from pirf_ray.learning.regularizers.weight_distance import weight_distance
from pirf_ray.learning.rollouts.records import Prefix
from pirf_ray.training.models import load_model
from pirf_ray.training.records import UpdateRecord
from pirf_ray.training.runs import RunDirectory
from pirf_ray.training.settings import TrainConfig
from tiny_models import EXACT, RESOLUTION, start_run, tiny_config, tiny_learner, tiny_policy, tiny_tuning


def prefix(config: TrainConfig, count: int = 4, seed: int = 0) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 1, RESOLUTION, RESOLUTION)
    return Prefix(
        x=0.2 * torch.randn(shape, generator=generator),
        step=config.prefix_steps,
        sample_ids=tuple(range(count)),
        policy_version=0,
        base_output=0.2 * torch.randn(shape, generator=generator),
    )


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("groups", [EXACT, {}, {**EXACT, "reuse": 2, "staleness": 1}], ids=["all", "pool", "reuse"])
def test_training_lowers_the_residual_and_is_repeatable(groups: dict) -> None:
    config = tiny_config(**{**groups, "learning_rate": 3e-3})
    runs = []
    for _ in range(2):
        records: list[UpdateRecord] = []
        run = tiny_tuning(config)
        run.fit(records.append)
        runs.append(run.learner.weights())
    assert records[-1].guard.residual < 0.9 * records[-1].guard.base_residual
    assert_equal(runs[0], runs[1])
    assert max(r.rollout.staleness_max for r in records) <= config.rollout.staleness


def test_the_learning_rate_begins_whole_and_falls_by_half_a_cosine() -> None:
    settings = {"updates": 4, "learning_rate": 1e-3}
    records: list[UpdateRecord] = []
    tiny_tuning(tiny_config(schedule="cosine", **settings)).fit(records.append)
    # 1e-3 (1 + cos(pi u/4)) / 2 for u = 0..3.
    assert [r.metrics.learning_rate for r in records] == pytest.approx([1e-3, 8.5355e-4, 5e-4, 1.46447e-4], rel=1e-4)
    records.clear()
    tiny_tuning(tiny_config(schedule="constant", **settings)).fit(records.append)
    assert {r.metrics.learning_rate for r in records} == {1e-3}


def test_adam_takes_the_scheduled_step() -> None:
    """The first step of Adam moves a weight by the learning rate, whatever the gradient's size: the second of two by half."""
    one, two = (tiny_learner(tiny_config(updates=n, learning_rate=1e-3, schedule="cosine")) for n in (1, 2))
    rates = []
    for run in (one, two):
        gradient = torch.ones(sum(w.numel() for w in run.weights().values()))
        for update in range(run.settings.optimizer.updates):
            before = torch.cat([w.flatten() for w in run.weights().values()]).clone()
            run.optimizer.step(gradient, rate=run.settings.optimizer.rate(update), clip_norm=math.inf)
            rates.append((before - torch.cat([w.flatten() for w in run.weights().values()])).mean().item())
    assert rates == pytest.approx([1e-3, 1e-3, 0.5e-3], rel=1e-3)


def test_exact_mode_learns_from_every_sample_once() -> None:
    records: list[UpdateRecord] = []
    tiny_tuning(tiny_config(**EXACT)).fit(records.append)
    assert [i for r in records for i in r.rollout.sample_ids] == list(range(24))


@pytest.mark.parametrize("groups", [EXACT, {}], ids=["all", "pool"])
@pytest.mark.parametrize("interrupted_at", [2, 3])
def test_resumed_equals_never_interrupted_bit_for_bit(tmp_path: Path, groups: dict, interrupted_at: int) -> None:
    config = tiny_config(**groups)
    whole = start_run(tmp_path / "whole", config)
    uninterrupted = tiny_tuning(config, whole)
    uninterrupted.fit()

    run = start_run(tmp_path / "parts", config)
    first = tiny_tuning(config, run)
    first.fit(lambda record: run.stop_file.touch() if record.update == interrupted_at - 1 else None)
    assert first.update == interrupted_at
    run.stop_file.unlink()
    second = tiny_tuning(config, run)
    assert second.update == interrupted_at
    second.fit()

    assert_equal(second.learner.weights(), uninterrupted.learner.weights())
    assert_equal(second.learner.ema.tensors, uninterrupted.learner.ema.tensors)
    assert [r.update for r in run.history()] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(run.journal.records(), whole.journal.records(), strict=True):
        assert {k: v for k, v in ours.items() if "timing" not in k and "per_second" not in k} == {
            k: v for k, v in theirs.items() if "timing" not in k and "per_second" not in k
        }


def test_a_killed_run_goes_on_from_its_last_checkpoint_without_holes_or_doubles(tmp_path: Path) -> None:
    config = tiny_config(**EXACT)
    run = start_run(tmp_path, config)

    class Killed(Exception):
        pass

    def kill(record: UpdateRecord) -> None:
        if record.update == 5:
            raise Killed

    with pytest.raises(Killed):
        tiny_tuning(config, run).fit(kill)
    with run.paths.metrics.open("a") as file:
        file.write('{"update": 6, "rewa')  # the line that the kill cut short
    resumed = tiny_tuning(config, run)
    assert resumed.update == 4
    resumed.fit()
    assert [r.update for r in run.history()] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config()
    run = start_run(tmp_path, config)
    tiny_tuning(config, run).fit()
    newest = run.paths.checkpoints / "update_000006" / checkpoints.MODEL
    newest.write_bytes(newest.read_bytes()[:100])
    assert tiny_tuning(config, run).update == 4
    assert "update_000006" in caplog.text
    assert "using the checkpoint before it" in caplog.text


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    config = tiny_config()
    whole, parts = tiny_learner(config), tiny_learner(tiny_config(micro_batch=1))
    a, b = whole.update([prefix(config)]), parts.update([prefix(config)])
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    assert a.reward == pytest.approx(b.reward, rel=1e-5)


def test_l2_gradient_is_towards_the_pretrained_weights() -> None:
    """d/dtheta of lambda ||theta - theta_0||^2 is 2 lambda (theta - theta_0): by hand, from a displaced weight."""
    plain, held = (tiny_learner(tiny_config(l2=l2, anchor=0.0)) for l2 in (0.0, 0.5))
    gradients = []
    for subject in (plain, held):
        subject.weights()["dec.8x8_aux_conv.bias"].add_(0.25)
        subject._accumulate(Batch(rollouts=prefix(tiny_config()), key=(0, 0)))
        gradients.append(subject.optimizer.flat_gradient())
    difference = gradients[1] - gradients[0]
    assert difference.abs().max().item() == pytest.approx(2 * 0.5 * 0.25, rel=1e-4)
    assert (difference.abs() > 1e-4).sum() == 1


def test_weight_distance_and_output_anchor_by_hand() -> None:
    """||(3, 4)||^2 = 25. x - base = 1 in one of four 4x4 cells, base = 2: (1/4) / 4. Flicker is invisible to the low pass."""
    assert weight_distance({"a": torch.tensor([3.0, 4.0])}, {"a": torch.zeros(2)}).item() == 25
    base = torch.full((1, 1, 8, 8), 2.0)
    x = base.clone()
    x[..., :4, :4] += 1
    assert output_anchor(x, base).item() == pytest.approx(1 / 16)
    flicker = base + (-1.0) ** torch.arange(8)
    assert output_anchor(flicker, base).item() == pytest.approx(0)


def test_the_anchor_holds_inputs_at_all_scales() -> None:
    """Flicker of 1 in a channel of two, base = 2 in both: its mean square 1 / 2 channels over 4, if the channel is an input."""
    base = torch.full((1, 2, 8, 8), 2.0)
    flicker = base.clone()
    flicker[:, 0] += (-1.0) ** torch.arange(8)
    assert output_anchor(flicker, base, inputs=(0,)).item() == pytest.approx(1 / 8)
    assert output_anchor(flicker, base, inputs=(0,), input_weight=5.0).item() == pytest.approx(5 / 8)
    assert output_anchor(flicker, base, inputs=(1,)).item() == pytest.approx(0)
    assert output_anchor(base + 1, base, inputs=(0,)).item() == pytest.approx(1 / 4)


def test_non_finite_gradients_are_skipped_counted_and_end_the_run() -> None:
    config = tiny_config(updates=6, batch=4, micro_batch=4, max_skipped=2)
    subject = tiny_learner(config)
    before = {name: tensor.clone() for name, tensor in subject.weights().items()}
    broken = prefix(config)
    broken.x[0, 0, 0, 0] = float("nan")
    assert [subject.update([broken]).skipped for _ in range(2)] == [1, 2]
    assert_equal(subject.weights(), before)
    with pytest.raises(TrainingDiverged, match="3 updates had a non-finite gradient, allowed are 2"):
        subject.update([broken])


def test_guard_keeps_the_best_inside_and_ends_the_training(tmp_path: Path) -> None:
    """A limit that no change can meet: the kept model is the base model itself, and the run says it was stopped."""
    config = tiny_config(guard_every=1, guard_amplitude=1e-9, guard_energy=1.05, guard_spectrum=0.1, guard_patience=2)
    run = start_run(tmp_path, config)
    state = tiny_tuning(config, run).fit()
    assert state is not None
    assert state.stopped
    assert state.kept_update == 0
    assert len(run.history()) == 2
    policy = load_model(run.paths.root).model.policy
    assert_equal(policy.tuned.network.state_dict(), policy.base.network.state_dict())


def test_smoothed_small_scales_are_outside_the_guard() -> None:
    """Against the base model's own samples as the truth: a denoiser that averages neighbours fails by the spectrum alone."""
    tune = tiny_tuning(tiny_config(guard_every=1, guard_amplitude=100.0, guard_energy=100.0, guard_spectrum=0.1))
    watch, policy = tune.guard, tune.learner.policy
    assert watch is not None
    watch.floor = 1e-30  # whatever the residual of an untrained net is, it is not below the floor
    with torch.no_grad():
        own = torch.cat([finish(watch.process, policy.base_from, start.state) for start in watch._starts])
    watch.real = watch.pde.normalizer.to_physical(own)
    watch.base = replace(watch.base, spectrum=torch.zeros_like(watch.base.spectrum))  # of the truth itself
    assert watch.measure(policy).drift.spectrum_rise == pytest.approx(0, abs=1e-6)
    assert watch.measure(policy).inside

    class Smoothing:
        def denoisers(self, process: DenoisingProcess):
            denoiser_from = policy.denoisers(process)

            def smoothed_from(step_sigma: float):
                def smoothed(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
                    d = denoiser_from(step_sigma)(x, sigma)
                    return (d + d.roll(1, -1)) / 2

                return smoothed

            return smoothed_from

    metrics = watch.measure(Smoothing())
    assert metrics.drift.spectrum_rise > 0.1
    assert not metrics.inside


def test_a_residual_below_the_floor_is_outside_the_guard(tmp_path: Path) -> None:
    tune = tiny_tuning(tiny_config())
    assert tune.guard is not None
    tune.guard.floor = 1e9
    assert not tune.guard.measure(tune.learner.policy).inside


def test_loaded_run_generates_what_the_learner_would(tmp_path: Path) -> None:
    config = tiny_config()
    run = start_run(tmp_path, config)
    tune = tiny_tuning(config, run)
    state = tune.fit()
    assert state is not None
    assert state.kept_update == 6
    loaded = load_model(run.paths.root)
    assert loaded.config == config
    ours = replace(loaded.model, policy=tune.learner.averaged_policy()).sample(range(3), seed=1, stream="t")
    theirs = loaded.model.sample(range(3), seed=1, stream="t", groups=("base", "tuned"))
    torch.testing.assert_close(theirs["tuned"], ours["tuned"])
    assert not torch.equal(theirs["tuned"], theirs["base"])


def test_tail_switch_is_a_sigma_and_holds_at_other_step_counts() -> None:
    policy = tiny_policy(tiny_config())  # N = 4, K = 2: switches at sigma_2
    coarse, fine = DenoisingProcess(4), DenoisingProcess(12)
    assert policy.switch_step(coarse) == 2
    first = policy.switch_step(fine)
    assert fine.sigmas[first] <= coarse.sigmas[2] * 1.000001 < fine.sigmas[first - 1]


@pytest.mark.parametrize("truncation", [1, 2, 4, 20])
@pytest.mark.parametrize("num_steps", [5, 10, 15, 20, 40])
def test_tuned_weights_make_no_step_coarser_than_those_they_learned(truncation: int, num_steps: int) -> None:
    """Learned at N = 20. The step to 0 is the same at every N."""
    config = tiny_config(num_steps=20, truncation=truncation)
    policy, learned, process = tiny_policy(config), DenoisingProcess(20), DenoisingProcess(num_steps)
    switch = 20 - truncation
    coarsest = max([high / low for high, low in itertools.pairwise(learned.sigmas[switch:-1])], default=0)
    denoiser_from = policy.denoisers(process)
    steps = list(itertools.pairwise(process.sigmas))
    makers = [denoiser_from(high) is policy.tuned for high, _ in steps]
    assert makers == sorted(makers) and makers[-1] and makers.index(True) == policy.switch_step(process)
    for (high, low), tuned in zip(steps[:-1], makers[:-1], strict=True):
        assert not tuned or (high <= learned.sigmas[switch] * 1.00001 and high / low <= coarsest * 1.00001)
    if num_steps >= 20:  # and all of the others
        assert all(tuned or high > learned.sigmas[switch] * 0.99999 for (high, _), tuned in zip(steps, makers, strict=True))
    if num_steps in (5, 10, 20):
        assert sum(makers) == (truncation if num_steps == 20 else 1)


def test_run_directory_refuses_what_is_there_and_round_trips_settings(tmp_path: Path) -> None:
    config = tiny_config(**EXACT)
    run = start_run(tmp_path, config)
    assert TrainConfig.from_json(config.to_json()) == config
    assert RunDirectory.open(run.paths.root).config == config
    with pytest.raises(DirectoryTakenError, match="output directory holds another run"):
        RunDirectory.create(run.paths.root, config, tmp_path / "base")
    with run.locked(), pytest.raises(DirectoryTakenError, match="another process is running this run"), run.locked():
        pass
    with pytest.raises(CheckpointError, match="no such file"):
        RunDirectory.open(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run with a kept checkpoint"):
        load_model(run.paths.root)


def test_records_are_read_back_as_they_were(tmp_path: Path) -> None:
    """With and without a guard evaluation; the numbers of metrics.jsonl keep their names."""
    run = start_run(tmp_path, tiny_config())
    records: list[UpdateRecord] = []
    tiny_tuning(run.config, run).fit(records.append)
    assert run.history() == records
    assert [record.guard is not None for record in records] == [False, True] * 3
    written = run.journal.records()[-1]
    assert written["guard/residual"] == records[-1].guard.residual
    assert written["residual/consistent/mean"] == records[-1].metrics.terms["consistent"].mean


def test_settings_of_a_file_with_older_groups_are_read() -> None:
    """config.json of version 0.1 had the groups pirf and rollout for what are five groups now."""
    config = tiny_config(truncation=1, scope="all", strategy="fresh", levels=1, operator="simpson", actors=3, objective="reft")
    old = {
        "env": config.env,
        "resolution": config.resolution,
        "seed": 0,
        "sampler": {"num_steps": 4, "solver": "heun", "corrections": 0},
        "pirf": {"truncation": 1, "scope": "all", "levels": 1, "operator": "simpson", "objective": "reft", "weights": {}},
        "rollout": {
            "actors": 3,
            "actor_cpus": 0.25,
            "chunk": 2,
            "strategy": "fresh",
            "pool": 8,
            "pool_start": 4,
            "pool_growth": 2,
        },
        "regularization": {"l2": 0.01, "anchor": 1.0, "anchor_inputs": 1.0},
        **{name: config.to_json()[name] for name in ("optimizer", "learner", "guard", "evaluation")},
    }
    assert TrainConfig.from_json(old) == config
