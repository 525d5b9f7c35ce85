"""Rewards from programs: the same numbers, no gradient, and what happens when a program dies, hangs or prints nonsense.

The time limits of programs that must answer are generous; only the limits of programs that hang are short.
"""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.common.checks import ConfigError
from envs.common.parts import PartSettings
from envs.numerics import seeding
from envs.pdes import make_pde
from envs.rewards import CommandReward, CommandSettings, RewardError, located, programs
from envs.rewards.programs import TAIL_BYTES, Program
from places import ROOT
from processes import wait_for

PDE = make_pde("Poisson-v0", 8)
READ = """
    import os, sys, time
    import numpy as np
    class Pipe:
        read = staticmethod(sys.stdin.buffer.read)
    def batches():
        while sys.stdin.buffer.peek(1):
            yield np.lib.format.read_array(Pipe)
    def mean(batch):
        return batch.astype(float).mean((1, 2, 3))
    def answer(numbers):
        sys.stdout.write("".join(f"{float(number)!r}\\n" for number in numbers))
        sys.stdout.flush()
    def starts():
        with open("starts", "a") as file:
            file.write("x")
        return os.path.getsize("starts")
"""
ANSWER = """
    for batch in batches():
        answer(mean(batch))
"""


def fields(batch: int = 3) -> torch.Tensor:
    return seeding.normal(0, "test", range(batch), PDE.shape).float()


def mean(x: torch.Tensor) -> torch.Tensor:
    return x.double().mean((1, 2, 3)).to(x.dtype)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the reward of a Python script, in a directory of its own, and closes it after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = []

    def make(script: str, *words: str, **settings: Any) -> CommandReward:
        (tmp_path / "script.py").write_text(textwrap.dedent(READ) + textwrap.dedent(script))
        made.append(CommandReward([sys.executable, "script.py", *words], PDE, **settings))
        return made[-1]

    yield make
    for reward in made:
        reward.close()


def running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def pid_of(reward: CommandReward) -> int:
    assert reward._program is not None
    return reward._program._process.pid


def test_the_numbers_are_those_of_the_program_and_have_no_gradient(program: Any) -> None:
    """Float32 fields and repr of float64 numbers lose nothing, so the rewards differ by the order of a sum only: rtol 1e-6."""
    reward = program(ANSWER)
    x = fields().requires_grad_()
    output = reward(x, {"seen": torch.zeros(3)})
    assert (reward.differentiable, reward.scope, output.reward.requires_grad) == (False, "sample", False)
    assert output.reward.dtype == torch.float32
    torch.testing.assert_close(output.reward, mean(x.detach()), rtol=1e-6, atol=1e-9)
    assert reward(x.double()).reward.dtype == torch.float64


def test_one_program_serves_all_batches_of_any_size(program: Any) -> None:
    reward = program("starts()\n" + textwrap.dedent(ANSWER))
    for batch in (1, 5, 0, 2):
        torch.testing.assert_close(reward(fields(batch)).reward, mean(fields(batch)), rtol=1e-6, atol=1e-9)
    assert Path("starts").read_text() == "x" and reward.restarts_done == 0


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sys.exit(3)", "exit code 3 after 0 of 3 lines"),
        ("next(batches()); answer([1]); print('so sorry', file=sys.stderr); sys.exit(4)", r"exit code 4 after 1 of 3 lines"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL after 0 of 3 lines"),
        ("next(batches()); answer([1, 'nan', 2])", "line 2 of 3 is 'nan', expected a finite number"),
        ("next(batches()); answer([1, '-inf', 2])", "line 2 of 3 is '-inf', expected a finite number"),
        ("next(batches()); print('1\\nabout 2\\n3', flush=True)", "line 2 of 3 is 'about 2', expected a number"),
        ("next(batches()); answer([1, 2, 3, 4])", "printed more than 3 lines, next '4.0'"),
        ("next(batches()); print('x' * 10000, flush=True); time.sleep(60)", "printed more than 1024 bytes per line: 'xxx"),
    ],
)
def test_a_program_that_fails_is_named_with_what_happened(program: Any, script: str, message: str) -> None:
    reward = program(f"print('last words', file=sys.stderr)\nstarts()\n{script}", restarts=1)
    with pytest.raises(RewardError, match=message) as raised:
        reward(fields())
    assert f"reward command '{sys.executable} script.py': " in str(raised.value)
    assert " (attempt 2 of 2); its last lines on stderr:\n  last words" in str(raised.value)
    assert Path("starts").read_text() == "xx" and reward.restarts_done == 1
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value), "it travels from an actor"


def test_a_program_that_closes_its_output_and_stays_is_killed(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "EXIT_SECONDS", 0.1)
    reward = program("os.close(1); time.sleep(60)", restarts=0)
    with pytest.raises(RewardError, match="closed its output after 0 of 3 lines"):
        reward(fields())


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("time.sleep(60)", r"0 of 3 lines within 0.5 s, and \d+ bytes of the batch are not read"),
        ("next(batches()); answer([1, 2]); time.sleep(60)", r"[02] of 3 lines within 0.5 s"),
        ("while True: os.write(2, b'noise')", "0 of 3 lines within 0.5 s"),
    ],
)
def test_a_program_that_hangs_is_killed_at_its_limit(program: Any, script: str, message: str) -> None:
    """The third never stops to print on stderr. The first batch is larger than a pipe of 64 KiB."""
    reward = program(script, time_limit=0.5, restarts=0)
    x = fields(3).repeat(1, 1, 16, 16)
    with pytest.raises(RewardError, match=message):
        reward(x)
    assert reward._program is None


def test_a_program_that_fails_now_and_then_is_started_again_with_the_same_batch(program: Any, caplog: Any) -> None:
    reward = program("n = starts()\nbatch = next(batches())\nanswer(mean(batch) if n > 2 else [np.nan] * 3)", restarts=3)
    torch.testing.assert_close(reward(fields()).reward, mean(fields()), rtol=1e-6, atol=1e-9)
    assert reward.restarts_done == 2
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    assert "line 1 of 3 is 'nan', expected a finite number; it is started again" in caplog.text


def test_numbers_that_nobody_asked_for_are_no_rewards_of_the_next_batch(program: Any) -> None:
    """The program prints one number too many, late: without the check each sample would get its neighbour's reward."""
    reward = program("for b in batches():\n  answer(mean(b))\n  time.sleep(.05)\n  answer([7])\n  open('late', 'w')", restarts=0)
    reward(fields())
    wait_for(lambda: Path("late").exists())
    with pytest.raises(RewardError, match=r"printed '7.0' before it was asked"):
        reward(fields())


def test_a_chatty_program_is_not_blocked_and_its_last_lines_are_kept(program: Any) -> None:
    """4 MB on stderr before and after each answer; a pipe holds 64 KiB."""
    noise = "sys.stderr.write('noise ' * 700_000)"
    reward = program(f"for b in batches():\n  {noise}\n  answer(mean(b))\n  {noise}\n  print('end', file=sys.stderr)")
    for _ in range(2):
        torch.testing.assert_close(reward(fields()).reward, mean(fields()), rtol=1e-6, atol=1e-9)
    held = reward._program
    reward.close()
    assert held.stderr_tail()[-1].endswith("noise end") and len("".join(held.stderr_tail())) <= TAIL_BYTES


def test_large_batches_do_not_deadlock(program: Any) -> None:
    """10^6 numbers in and 250,000 lines out, half of them before the program reads: each pipe is full at some time."""
    early = "answer(np.zeros(125_000))\nb = next(batches())\nanswer(b[125_000:, 0, 0, 0])"
    x = torch.arange(1_000_000, dtype=torch.float32).reshape(250_000, 1, 2, 2)
    expected = torch.cat([torch.zeros(125_000), x[125_000:, 0, 0, 0]])
    reward = program("sys.stdin.buffer.peek(1)\n" + early, restarts=0)
    assert torch.equal(reward(x).reward, expected)


def test_a_field_that_is_not_finite_may_get_any_number(program: Any) -> None:
    x = fields()
    x[1, 0, 0, 0] = torch.nan
    assert program(ANSWER, restarts=0)(x).reward.isnan().tolist() == [False, True, False]


def test_a_file_is_handed_over_where_the_command_asks_for_it(program: Any) -> None:
    reward = program(
        "answer(mean(np.load(sys.argv[1].removeprefix('--in='))))\nprint(*sys.argv[1:], file=sys.stderr)", "--in={file}"
    )
    for batch in (3, 2):
        torch.testing.assert_close(reward(fields(batch)).reward, mean(fields(batch)), rtol=1e-6, atol=1e-9)
    assert reward._program is None


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("answer([1, 2])", "printed 2 lines, expected 3"),
        ("answer([1, 2, 3, 4])", "printed 4 lines, expected 3"),
        ("answer([1, 2, 3]); sys.exit(5)", "exit code 5 after 3 of 3 lines"),
        ("answer([1, 2, np.nan])", "line 3 of 3 is 'nan', expected a finite number"),
        ("answer([1]); time.sleep(60)", r"[01] lines within 0.5 s"),
    ],
)
def test_a_program_with_a_file_that_fails_is_named(program: Any, script: str, message: str) -> None:
    limit = 0.5 if "sleep" in script else 60
    reward = program(script, "{file}", restarts=0, time_limit=limit)
    with pytest.raises(RewardError, match=rf"{{file}}.*: {message} \(attempt 1 of 1\); nothing on stderr"):
        reward(fields())


def test_programs_end_with_their_reward_and_what_they_started_too(program: Any) -> None:
    """The program ignores the end of its input, and so does the process that it started."""
    script = "import subprocess\nchild = subprocess.Popen(['sleep', '600'])\nopen('child', 'w').write(str(child.pid))\n"
    reward = program(script + textwrap.dedent(ANSWER) + "time.sleep(600)")
    reward(fields())
    pids = [pid_of(reward), int(Path("child").read_text())]
    assert all(map(running, pids))
    reward.close()
    wait_for(lambda: not any(map(running, pids)), timeout=10)
    assert torch.equal(reward(fields()).reward, reward(fields()).reward), "it starts again"


def test_an_interrupted_question_ends_the_program(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the answer that is still on its way would be the next batch's."""
    reward = program(ANSWER)
    reward(fields())
    pid = pid_of(reward)
    with monkeypatch.context() as patch:
        patch.setattr(Program, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reward(fields())
    assert not running(pid)
    torch.testing.assert_close(reward(2 * fields()).reward, mean(2 * fields()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "sys.exit(0)"])
def test_programs_end_with_the_process_that_asks_them(program: Any, ending: str) -> None:
    """A killed process closes the program's input. A process that exits ends the program even if it does not listen."""
    stubborn = "\ntime.sleep(600)" if ending.startswith("sys") else ""
    program(textwrap.dedent(ANSWER) + stubborn)
    asker = f"""
        import os, sys, torch
        from envs.rewards import CommandReward
        reward = CommandReward([sys.executable, "script.py"])
        reward(torch.zeros(2, 1, 4, 4))
        print(reward._program._process.pid, flush=True)
        {ending}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(asker)], capture_output=True, text=True)
    wait_for(lambda: not running(int(done.stdout)), timeout=10)


def test_copies_start_programs_of_their_own(program: Any) -> None:
    reward = program(ANSWER, time_limit=50.0, restarts=2)
    reward(fields())
    for made in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        assert (made.settings, made.command) == (reward.settings, reward.command)
        assert torch.equal(made(fields()).reward, reward(fields()).reward)
        assert pid_of(made) != pid_of(reward)
        made.close()


def test_the_program_runs_where_the_reward_was_made_and_knows_the_fields(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors run in other directories. The variables of the user's environment are untouched."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    keep = (
        "import json\njson.dump([os.getcwd(), os.environ['OMP_NUM_THREADS'], os.environ['PIRF_RAY_FIELDS']], open('seen', 'w'))"
    )
    reward = program(keep + textwrap.dedent(ANSWER))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    reward(fields())
    directory, threads, described = json.loads((tmp_path / "seen").read_text())
    assert (Path(directory).resolve(), threads) == (tmp_path.resolve(), "7")
    assert reward.settings.reward_directory == str(tmp_path)
    assert json.loads(described) == {"env_id": "Poisson-v0", "resolution": 8, "parameters": {}, "channels": ["f", "phi"]}


def test_settings_carry_the_directory_to_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program beside the user's files is found from the settings, wherever the actor runs."""
    script = tmp_path / "front"
    script.write_text(f"#!{sys.executable}\n" + textwrap.dedent(READ) + textwrap.dedent(ANSWER))
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    sent = pickle.loads(pickle.dumps(located(CommandSettings(reward_restarts=0))))
    assert located(sent) == sent and located(PartSettings()) == PartSettings()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    reward = CommandReward.with_settings(["./front"], sent)
    torch.testing.assert_close(reward(fields()).reward, mean(fields()), rtol=1e-6, atol=1e-9)
    reward.close()


def test_missing_programs_are_refused_when_the_reward_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reward.py").write_text("")
    for words, message in [
        ([], "--reward command: needs a program, such as command:python reward.py"),
        (["./nothing"], f"--reward command: no program './nothing' on the PATH or in {tmp_path}"),
        (["reward.py"], "--reward command: reward.py is not executable; name its interpreter, such as command:python reward.py"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            CommandReward(words)
    os.chmod("reward.py", 0o755)
    assert CommandReward(["reward.py"]).command == (str(tmp_path / "reward.py"),)
    with pytest.raises(RewardError, match="cannot be started in .*Exec format error.*attempt 2 of 2.*nothing on stderr"):
        CommandReward(["reward.py"], restarts=1)(fields())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_limit": 0.0}, "--reward-time-limit must be positive, got 0.0"),
        ({"restarts": -1}, "--reward-restarts must not be negative, got -1"),
        ({"directory": "/nowhere/at/all"}, "--reward-directory: no directory /nowhere/at/all"),
    ],
)
def test_bad_settings_name_their_flags(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CommandReward(["cat"], **settings)


def test_a_python_program_serves_a_function_and_may_print_what_it_likes(program: Any) -> None:
    """Prints of Python and of libraries go to stderr. A wrong number of rewards ends the program with its reason."""
    script = """
    from envs.rewards import serve
    def function(batch):
        print("python prints")
        os.write(1, b"a library prints\\n")
        return mean(batch)[: 3]
    serve(function)
    """
    reward = program(script, restarts=0)
    for batch in (3, 2):
        torch.testing.assert_close(reward(fields(batch)).reward, mean(fields(batch)), rtol=1e-6, atol=1e-9)
    with pytest.raises(
        RewardError, match=r"(?s)exit code 1 after 0 of 4 lines.*a library prints.*4 numbers, shape \(4,\), got \(3,\)"
    ):
        reward(fields(4))


def test_the_program_of_the_tutorial_serves(program: Any) -> None:
    """The very text of the page, as a file of the user's."""
    page = (ROOT / "docs" / "tutorials" / "own_reward.md").read_text()
    (block,) = (b for b in re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE) if "serve(" in b)
    program("")
    Path("script.py").write_text(block)
    reward = CommandReward([sys.executable, "script.py"], PDE, restarts=0)
    x = fields()
    assert reward(x).reward.shape == (3,) and reward(x).reward.unique().numel() == 3
    reward.close()
