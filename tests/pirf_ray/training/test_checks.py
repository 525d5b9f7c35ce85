"""What is refused before a training starts: parts that do not fit, and settings files that name code."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.common.checks import ConfigError
from envs.common.registry import VARIABLE
from envs.rewards import Reward
from pirf_ray.training.checks import check, check_named, check_parts
from pirf_ray.training.models import load_model
from pirf_ray.training.runs import RunDirectory, load_settings
from pirf_ray.training.settings import CHOICES, TrainConfig
from recorded_reward import RecordedReward
from tiny_models import start_run, tiny_config, tiny_info, tiny_tuning, write_base

CHAIN: dict[str, Any] = {
    "objective": "policy-gradient",
    "solver": "stochastic",
    "regularizers": ("l2",),
    "group": 2,
    "strategy": "fresh",
}
STOCHASTIC: dict[str, Any] = {"solver": "stochastic", "regularizers": ("l2",)}


def refused(config: TrainConfig, reward: Reward | None = None) -> str:
    """Return the one line with which the parts of a training are refused."""
    pde = tiny_info().pde()
    with pytest.raises(ConfigError) as told:
        check_parts(config, pde, reward or config.make_reward(pde))
    text = str(told.value)
    assert "\n" not in text and ". " not in text, "one sentence"
    return text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**CHAIN, "group": 1}, "--group must be at least 2 for --credit group, got 1"),
        ({"objective": "preference", "group": 1}, "--group must be at least 2 for --objective preference, got 1"),
        (
            {"objective": "preference", "group": 3, "chunk": 3, "batch": 6, "micro_batch": 6, "pool_start": 6},
            "--group must be a multiple of 2 for --objective preference, got 3",
        ),
        (
            {"objective": "preference", "regularizers": ("l2",), "group": 2, "micro_batch": 3},
            "--micro-batch must be a multiple of --group 2 for --objective preference, got 3",
        ),
        ({**CHAIN, "kl": 0.1, "kl_in_return": True, "micro_batch": 1}, "--micro-batch must be a multiple of --group 2"),
        (
            {**CHAIN, "solver": "heun"},
            "--objective policy-gradient needs log densities of steps: --solver stochastic, got heun",
        ),
        ({"objective": "alignprop", **STOCHASTIC}, "--objective alignprop needs a deterministic solver, got --solver stochastic"),
        ({"objective": "reft", **STOCHASTIC}, "--objective reft needs a deterministic solver"),
        ({**STOCHASTIC, "truncation": 1}, "the base model makes the last step, so --truncation must be at least 2, got 1"),
        ({"objective": "draft-lv"}, "--objective draft-lv differentiates the last step only: --truncation must be 1, got 2"),
        (
            {**CHAIN, "regularizers": ("l2", "anchor")},
            "--regularizers anchor needs prefixes, got --maker trajectories; leave it out: --regularizers l2",
        ),
        ({"solver": "stochastic"}, "--regularizers anchor needs a deterministic solver, got --solver stochastic"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_sentence(settings: dict[str, Any], message: str) -> None:
    assert message in refused(tiny_config(**settings))


def test_a_maker_of_other_rollouts_is_refused() -> None:
    for objective, maker, known in (("pathwise", "samples", "prefixes"), ("preference", "data", "samples")):
        with pytest.raises(ConfigError, match=f"--maker {maker}: --objective {objective} uses rollouts of {known}"):
            tiny_config(objective=objective, maker=maker)


def test_a_strength_of_zero_needs_no_prefixes() -> None:
    pde = tiny_info().pde()
    for settings in (CHAIN, {"solver": "stochastic"}):
        config = tiny_config(**{**settings, "regularizers": ("l2", "anchor"), "anchor": 0.0})
        check_parts(config, pde, config.make_reward(pde))


def test_a_black_box_cannot_be_differentiated() -> None:
    text = refused(tiny_config(), RecordedReward())
    assert (
        "--objective pathwise differentiates the reward, but --reward physics has no gradient; objectives that need none: "
        in text
    )
    assert "policy-gradient" in text and "pathwise" not in text.partition("none:")[2]


def test_a_reward_of_sets_needs_groups() -> None:
    alone = tiny_config(**{**CHAIN, "credit": "none", "group": 1})
    assert "--reward physics rewards sets of samples: --group must be at least 2, got 1" in refused(
        alone, RecordedReward(scope="set")
    )
    split = tiny_config(group=2, micro_batch=1)
    text = refused(split, RecordedReward(differentiable=True, scope="set"))
    assert "--micro-batch must be a multiple of --group 2, got 1" in text


def test_a_differentiable_reward_of_sets_gets_whole_groups() -> None:
    """In the loss too, where a micro-batch has two groups."""
    reward = RecordedReward(differentiable=True, scope="set")
    tuning = tiny_tuning(tiny_config(group=2, guard="off", strategy="fresh"), reward=reward)
    tuning.step()
    assert reward.rows == [2, 2] and all(call.with_graph for call in reward.calls)


def test_an_object_that_is_no_reward_is_a_type_error_that_names_the_protocol() -> None:
    with pytest.raises(TypeError, match=r"must be a Reward \(envs\.rewards\.base\.Reward\)"):
        tiny_tuning(tiny_config(), reward=lambda fields: fields.sum())  # type: ignore[arg-type]


def test_everything_is_checked_before_a_run(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    assert check(tiny_config(), base=base, data=None) == base
    for settings, message in (
        ({"objective": "draft-lv"}, "--truncation must be 1"),
        ({"levels": 3}, r"--levels must be in \[0, 2\]"),
        ({"operator": "upwind"}, "--operator 'upwind' is not one of Burgers-v0"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(tiny_config(**settings), base=base, data=None)


TRAP = "import pathlib\npathlib.Path({path!r}).touch()\n"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears if the module ``trap`` is imported, or its program started."""
    sprung = tmp_path / "sprung"
    (tmp_path / "trap.py").write_text(TRAP.format(path=str(sprung)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    return sprung


def written(tmp_path: Path, change: Any) -> Path:
    """Return a settings file with changes."""
    data = tiny_config().to_json()
    change(data)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    return path


CHANGES = {
    **{part: (lambda data, part=part: data.update({part: "trap:x"})) for part in CHOICES if part != "regularizers"},
    "env": lambda data: data.update(env="trap:Burgers-v0"),
    "one of several": lambda data: data.update(regularizers=["l2", "trap:x"]),
    "in another group": lambda data: data["guard"].update(objective="trap:x"),
    "in a group of its own": lambda data: data.update(anything={"parameters": "trap:x"}),
    "in place of a list": lambda data: data.update(regularizers="trap:x"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("given", [(), None], ids=["command", "loader"])
def test_a_settings_file_that_names_a_module_imports_nothing(change: Any, given: Any, trap: Path, tmp_path: Path) -> None:
    path = written(tmp_path, change)
    with pytest.raises(ConfigError, match=rf"config.json: names code of the module 'trap'.*{VARIABLE}=trap"):
        load_settings(path, given)
    assert not trap.exists() and "trap" not in sys.modules


PROGRAM = "command:{python} {script}"


def test_a_settings_file_that_names_a_program_starts_nothing(trap: Path, tmp_path: Path) -> None:
    program = PROGRAM.format(python=sys.executable, script=tmp_path / "trap.py")
    path = written(tmp_path, lambda data: data.update(reward=program, reward_settings={}))
    with pytest.raises(ConfigError, match="config.json: names the program .*name it too: --reward"):
        load_settings(path)
    with pytest.raises(ConfigError, match="names the program"):
        load_settings(path, given=["command:other"])
    assert not trap.exists()
    for given in ([program], None):  # named by the user, or for a reader that starts no program
        assert load_settings(path, given).reward == program
    assert not trap.exists(), "reading starts nothing"


SERVED = """
import numpy, sys
from envs.rewards import serve
serve(lambda fields: -(fields ** 2).mean((1, 2, 3)))
"""


def test_a_run_with_a_program_is_read_again_where_nothing_is_started(tmp_path: Path) -> None:
    """By the loader of models, and by the workers of the run, after the command has checked the file."""
    (tmp_path / "score.py").write_text(SERVED)
    program = PROGRAM.format(python=sys.executable, script=tmp_path / "score.py")
    config = tiny_config(
        **{**CHAIN, "reward": program, "updates": 1, "num_steps": 3, "guard": "off", "reward_directory": str(Path.cwd())}
    )
    run = start_run(tmp_path, config)
    tiny_tuning(config, run).fit()
    loaded = load_model(run.paths.root)
    assert loaded.config == config and loaded.model.operator == ""
    assert RunDirectory.open(run.paths.root, given=None).config == config
    with pytest.raises(ConfigError, match="names the program"):
        RunDirectory.open(run.paths.root)


def test_what_the_user_has_named_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("config.json")
    monkeypatch.setenv(VARIABLE, "mine")
    check_named(["mine:x", "physics", ""], file)
    check_named(["yours:x"], file, given=["yours:x"])
    with pytest.raises(ConfigError, match="the module 'yours'"):
        check_named(["yours:x"], file, given=["yours:y"])


def test_settings_of_versions_without_named_parts_are_read(tmp_path: Path) -> None:
    """There ``reward`` and ``parameters`` were groups. No name in them is taken for a module."""
    data = tiny_config(operator="simpson", levels=1, weights={"initial": 0.5}).to_json()
    expected = TrainConfig.from_json(data)
    for part in CHOICES:
        settings = data.pop(f"{part}_settings")
        if part in ("reward", "parameters"):
            data[part] = settings
        elif part == "regularizers":
            data["regularization"] = settings
            del data[part]
        elif part != "objective":
            del data[part]
    data["parameters"]["lora_rank"] = 0
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    assert load_settings(path) == expected
