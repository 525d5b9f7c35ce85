"""Floors and references: the shipped table, the cache on disk, constants that a class states, and PDEs without exact data."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest
import torch

from bare_pdes import Heat, StatedHeat
from envs.common.checks import ConfigError
from envs.pdes import PDE, make_pde
from envs.pdes.base import NotProvided
from envs.rewards import PhysicsReward, RewardSettings, calibrated_term, calibration, constants, physics_reward
from envs.rewards.calibration import CACHE_VARIABLE, Constants, constants_of, measured, shipped
from places import ROOT

FIVE = ("Burgers-v0", "Darcy-v0", "Helmholtz-v0", "Kolmogorov-v0", "Poisson-v0")
SOURCE = """
import torch
from bare_pdes import Heat

calls = []


class Decay(Heat):
    env_id = "Decay-v0"
    solver = "none worth a name"

    def solve(self, seed, stream, sample_ids):
        calls.append(stream)
        rows = torch.arange(self.resolution, dtype=torch.float64)
        return 1e-3 * (rows**3)[None, None, :, None].repeat(len(sample_ids), 1, 1, self.resolution)
"""
"""A user's module. The 5-point Laplacian of r^3 is 6 r, so the floor is far above rounding."""


def forget() -> None:
    """Forget what this process has measured and read, as a new process would."""
    for function in (
        calibration.measured,
        calibration._floor,
        calibration._exact_fields,
        calibration._cached,
        calibration._sources,
        calibration._table,
        calibration.violations,
    ):
        function.cache_clear()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "constants"
    forget()


@pytest.fixture
def decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The user's module, with a file of its own."""
    (tmp_path / "decay_of_a_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "decay_of_a_test", raising=False)
    return __import__("decay_of_a_test")


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*")) if cache.exists() else []


def unsolvable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every solver of the five fail."""

    def fail(self: PDE, seed: int, stream: str, sample_ids: Any) -> torch.Tensor:
        raise AssertionError(f"{self.env_id} is solved for {stream}")

    for name in FIVE:
        monkeypatch.setattr(type(make_pde(name)), "solve", fail)


# --- the shipped table ---


@pytest.mark.parametrize("name", [f"{name}:32" for name in FIVE])
def test_the_shipped_constants_are_what_is_measured_now(name: str) -> None:
    """Equal bits on the machine that wrote them. Elsewhere rounding, and other draws of a chaotic flow, stay in the tolerance."""
    assert constants.main(["--check", name]) == 0


def test_the_shipped_table_covers_the_presets_and_the_shipped_models(monkeypatch: pytest.MonkeyPatch) -> None:
    unsolvable(monkeypatch)
    models = [json.loads(path.read_text())["info"] for path in (ROOT / "pirf_ray" / "zoo").glob("*/*/meta.json")]
    pdes = [make_pde(m["env_id"], m["network"]["resolution"], **m.get("parameters", {})) for m in models]
    pdes += [make_pde(name, 128) for name in FIVE]
    assert len(models) >= 5
    for pde in pdes:
        for term in (*pde.operators, *pde.conditions):
            for noise in constants.NOISES:
                found = shipped(pde, term, noise)
                assert found is not None and 0 <= found.floor <= found.reference, (pde.env_id, pde.resolution, term, noise)


def test_the_noises_are_those_of_the_presets() -> None:
    presets = pytest.importorskip("pirf_ray.training.presets")
    used = {settings.get("reference_noise", RewardSettings().reference_noise) for settings in presets.SMALL.values()}
    assert used <= set(constants.NOISES)
    assert constants.NOISES[0] == RewardSettings().reference_noise


@pytest.mark.parametrize("resolution", [None, 32, 128])
@pytest.mark.parametrize("name", FIVE)
def test_environments_and_rewards_are_made_without_solving(
    name: str, resolution: int | None, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """In under a second of this process's time, whatever else the machine does.

    The constants of Kolmogorov flow on 256 x 256 points are not shipped. Its environment measures them with the first reward.
    """
    unsolvable(monkeypatch)
    parameters = {"reynolds": 40.0} if name == "Kolmogorov-v0" and resolution == 32 else {}
    start = time.process_time()
    gymnasium.make(f"envs:{name}", resolution=resolution, **parameters)
    if (name, resolution) != ("Kolmogorov-v0", None):
        physics_reward(make_pde(name, resolution, **parameters))
        RewardSettings(reference_noise=3e-5).make(make_pde(name, resolution, **parameters))
    assert time.process_time() - start < 1
    assert entries(cache) == []


def test_a_new_process_makes_the_default_environment_at_once() -> None:
    """Kolmogorov flow on 256 x 256 points, whose 256 samples take 20 minutes to solve."""
    code = (
        "import time, gymnasium, envs; start = time.process_time(); "
        "gymnasium.make('Kolmogorov-v0'); print(time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    assert float(done.stdout) < 1


def test_other_parameters_noises_and_classes_are_not_in_the_table() -> None:
    poisson = make_pde("Poisson-v0", 32)
    assert shipped(poisson, "consistent", 3e-4) and shipped(poisson, "consistent", 2e-4) is None
    assert shipped(make_pde("Kolmogorov-v0", 32), "consistent", 3e-4) is None

    class Other(type(poisson)):  # type: ignore[misc]
        """A user's, with a solver of its own, under the same id."""

    assert shipped(Other(32), "consistent", 3e-4) is None


@pytest.mark.parametrize("name", ["version", "samples"])
def test_a_table_of_another_measurement_is_not_used(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "constants.json"
    other.write_text(json.dumps({**json.loads(calibration.TABLE.read_text()), name: 0}))
    monkeypatch.setattr(calibration, "TABLE", other)
    assert shipped(make_pde("Poisson-v0", 32), "consistent", 3e-4) is None


def test_the_command_writes_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A floor that is wrong by a tenth of the reference is found."""
    table = tmp_path / "constants.json"
    for module in (calibration, constants):
        monkeypatch.setattr(module, "TABLE", table)
    assert calibration.read_table() == {}
    assert constants.main(["--write", "Poisson-v0:32"]) == 0
    assert constants.main(["--check", "Poisson-v0:32"]) == 0
    assert constants.main(["Poisson-v0:32"]) == 0
    data = json.loads(table.read_text())
    assert list(data["constants"]) == ["Poisson-v0 32"]
    wall = data["constants"]["Poisson-v0 32"]["wall"]
    wall["floor"] += 0.1 * max(wall["references"].values())
    table.write_text(json.dumps(data))
    assert constants.main(["--check", "Poisson-v0:32"]) == 1
    assert "(wall, noise 3e-05)" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(SystemExit):
        constants.main(["--check", "Poisson-v0:33"])
    assert "unknown grid Poisson-v0:33; known: Burgers-v0:32" in capsys.readouterr().err


def test_a_table_with_other_terms_is_refused() -> None:
    entry = {"wall": {"floor": 0.0, "references": {"0.0003": 1.0}}}
    with pytest.raises(ValueError, match=r"the table has the terms .*wall.*, and the PDE has \[\]"):
        constants.differences(entry, {})


# --- measuring ---


def test_measurements_take_a_single_thread() -> None:
    """Sums over points are split by the number of threads, and chaotic flows amplify their rounding."""
    seen, before = [], torch.get_num_threads()

    def violation(fields: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return fields.square().flatten(1).mean(1)

    torch.set_num_threads(2)
    try:
        measured(make_pde("Poisson-v0", 8), "energy", violation, 3e-4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize("patience", [0.05, 60.0])
def test_a_long_measurement_is_announced(patience: float, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """A violation of .3 s against a patience of .05 s; a short measurement says nothing."""

    def slow(fields: torch.Tensor) -> torch.Tensor:
        time.sleep(0.3)
        return fields.square().flatten(1).mean(1)

    monkeypatch.setattr(calibration, "PATIENCE", patience)
    measured(make_pde("Poisson-v0", 8), "energy", slow, 3e-4)
    said = ["measuring floor and reference of energy of Poisson-v0 8 on solved fields, once; this may take minutes"]
    assert [record.getMessage() for record in caplog.records] == (said if patience < 1 else [])


def test_violations_are_computed_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of 256 float32 numbers in another order: 256 times the rounding 6e-8 at most."""
    pde, sizes = make_pde("Poisson-v0", 8), []

    def violation(fields: torch.Tensor) -> torch.Tensor:
        sizes.append(len(fields))
        return fields.square().flatten(1).mean(1)

    whole = measured(pde, "energy", violation, 0.1)
    assert max(sizes) == calibration.SAMPLES
    forget()
    sizes.clear()
    monkeypatch.setattr(calibration, "CHUNK_VALUES", 10 * 64)
    parts = measured(pde, "energy", violation, 0.1)
    assert max(sizes) == 10
    assert parts == pytest.approx(whole, rel=256 * 6e-8)


@pytest.mark.parametrize(
    "violation", [lambda f: f.flatten(1).mean(1) * 0 - 1, lambda f: f.mean(), lambda f: f.flatten(1).mean(1) * torch.nan]
)
def test_a_function_that_returns_no_violations_is_refused(violation: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"violation 'mine' must return a finite value >= 0 per sample, shape \(2,\), got"):
        calibrated_term(make_pde("Poisson-v0", 8), "mine", violation)


# --- the cache on disk ---


def test_constants_are_measured_once_for_all_processes(decay: ModuleType, cache: Path) -> None:
    pde = decay.Decay()
    first = constants_of(pde, "laplace", 3e-4)
    assert decay.calls == ["calibration"] and len(entries(cache)) == 1
    forget()
    assert constants_of(decay.Decay(), "laplace", 3e-4) == first and 0 < first.floor < first.reference
    assert decay.calls == ["calibration"]
    constants_of(pde, "laplace", 1e-4)
    constants_of(decay.Decay(16), "laplace", 3e-4)
    constants_of(pde, "cold", 3e-4)
    assert len(entries(cache)) == 4


def test_a_changed_source_is_measured_anew(decay: ModuleType, cache: Path) -> None:
    constants_of(decay.Decay(), "laplace", 3e-4)
    Path(decay.__file__).write_text(SOURCE.replace("1e-3", "2e-3"))
    forget()
    constants_of(decay.Decay(), "laplace", 3e-4)
    assert len(decay.calls) == 2 and len(entries(cache)) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: text[:40],
        lambda text: text.replace('"floor": ', '"floor": -'),
        lambda text: text.replace('"floor": ', '"floor": "x", "ignored": '),
        lambda text: text.replace('"reference"', '"other"'),
        lambda text: text.replace("laplace", "cold"),
    ],
)
def test_a_damaged_entry_is_a_warning_and_measured_anew(damage: Callable[[str], str], decay: ModuleType, cache: Path) -> None:
    first = constants_of(decay.Decay(), "laplace", 3e-4)
    (entry,) = entries(cache)
    whole = entry.read_text()
    entry.write_text(damage(whole))
    assert entry.read_text() != whole
    forget()
    with pytest.warns(UserWarning, match="the constants of Decay-v0 are measured anew, not read from the cache: .*"):
        assert constants_of(decay.Decay(), "laplace", 3e-4) == first
    assert entry.read_text() == whole


def test_a_cache_that_cannot_be_written_is_a_warning(decay: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="the constants of Decay-v0 are not kept in the cache: .*below"):
        assert constants_of(decay.Decay(), "laplace", 3e-4).floor > 0


def test_processes_that_write_at_once_leave_one_whole_entry(decay: ModuleType, cache: Path) -> None:
    pde, found = decay.Decay(), Constants(0.5, 1.0)
    key = calibration._key(pde, "laplace", calibration.violations(pde)["laplace"], 3e-4)
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("error")
        list(pool.map(lambda _: calibration._write(pde, key, found), range(32)))
    assert len(entries(cache)) == 1 and calibration._read(pde, key) == found


def test_violations_of_the_users_own_are_not_kept_on_disk(decay: ModuleType, cache: Path) -> None:
    def energy(fields: torch.Tensor) -> torch.Tensor:
        return fields.square().flatten(1).mean(1)

    pde = decay.Decay()
    assert calibrated_term(pde, "energy", energy) == calibrated_term(pde, "energy", energy)
    assert decay.calls == ["calibration"] and entries(cache) == []


def test_a_class_without_a_source_file_is_not_kept_on_disk(cache: Path) -> None:
    names: dict[str, Any] = {"__name__": "typed_in"}
    exec(SOURCE, names)
    assert constants_of(names["Decay"](), "laplace", 3e-4).floor > 0
    assert names["calls"] == ["calibration"] and entries(cache) == []


def test_the_cache_is_in_the_home_directory_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert calibration.cache_directory() == tmp_path / ".cache" / "pirf_ray" / "constants"
    assert os.environ[CACHE_VARIABLE] == ""


# --- without exact data ---


def test_the_plain_form_needs_no_solver() -> None:
    """The floor is 0: the reward is the negative residual, whatever its size."""
    pde = Heat()
    fields = torch.randn(3, *pde.shape, generator=torch.Generator().manual_seed(0))
    reward = physics_reward(pde, form="plain")
    assert torch.equal(reward(fields).reward, -pde.residual(fields, "laplace"))
    assert torch.equal(RewardSettings(reward_form="plain", condition_weight=0.0).make(pde)(fields).reward, reward(fields).reward)


@pytest.mark.parametrize("form", ["log", "saturating"])
def test_other_forms_are_refused_with_what_helps(form: str) -> None:
    message = (
        rf"^Heat-v0 has no solver \(solve\): the {form} form of the reward needs one; "
        r"give --reward-form plain, or state floor and reference of laplace, cold in `constants` of the class$"
    )
    settings = RewardSettings(reward_form=form)
    for refused in (lambda: settings.check(Heat()), lambda: settings.make(Heat())):
        with pytest.raises(NotProvided, match=message):
            refused()


def test_stated_constants_are_used() -> None:
    """log(v + 2), v at least .5: -ln 2.5 below the floor."""
    reward = physics_reward(StatedHeat(), form="log", reference_noise=1e-5)
    assert (reward.terms[0].floor, reward.terms[0].reference) == (0.5, 2.0)
    assert reward(torch.zeros(1, 1, 8, 8)).reward.item() == pytest.approx(-0.9162907, rel=1e-6)
    with pytest.raises(NotProvided, match="reference of cold in `constants`"):
        physics_reward(StatedHeat(), form="log", condition_weight=0.1)


def test_a_term_of_the_users_own_has_no_floor_without_a_solver() -> None:
    term = calibrated_term(Heat(), "energy", lambda fields: fields.square().flatten(1).mean(1))
    assert (term.floor, term.reference) == (0.0, 0.0)
    with pytest.raises(ValueError, match="divides by the reference of each term, which is 0 for energy: there are no exact data"):
        PhysicsReward([term], "log")


def test_settings_refuse_a_pde_without_operators() -> None:
    class Unlawful(Heat):
        default_operator, operators, conditions = "", PDE.operators, PDE.conditions

    with pytest.raises(
        ConfigError, match=r"Heat-v0 has no residual operator \(operators\): the physics reward needs one; give an"
    ):
        RewardSettings().check(Unlawful())
