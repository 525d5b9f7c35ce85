"""Checks of settings: each message names the flag, the given value and the allowed values."""

from dataclasses import dataclass

import pytest

from envs.common.checks import ConfigError, at_least, flag, not_negative, positive, require


@dataclass
class Settings:
    num_steps: int = 2
    rate: float = 0.5


def test_a_flag_is_the_settings_name_with_dashes() -> None:
    assert flag("num_steps") == "--num-steps"


def test_require_raises_with_its_message() -> None:
    require(True, "never")
    with pytest.raises(ConfigError, match="^--rate is wrong$"):
        require(False, "--rate is wrong")


def test_settings_at_the_limit_pass() -> None:
    positive(Settings(rate=1e-300), "num_steps", "rate")
    not_negative(Settings(rate=0.0), "num_steps", "rate")
    at_least(Settings(num_steps=2), 2, "num_steps")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_values_that_are_not_positive_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=f"^--rate must be positive, got {value}$"):
        positive(Settings(rate=value), "num_steps", "rate")


@pytest.mark.parametrize("value", [-1e-9, float("nan")])
def test_negative_values_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=f"^--rate must not be negative, got {value}$"):
        not_negative(Settings(rate=value), "rate")


def test_values_below_the_least_are_refused() -> None:
    with pytest.raises(ConfigError, match="^--num-steps must be at least 3, got 2$"):
        at_least(Settings(), 3, "num_steps")
    assert issubclass(ConfigError, ValueError)
