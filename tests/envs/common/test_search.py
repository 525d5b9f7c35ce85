"""Search ranges: what they hold, their ends, and their text. Parsing is tested further in tests/tune/test_search_space.py."""

import pytest

from envs.common.checks import ConfigError
from envs.common.search import Choice, Range, Spec, Value, parse_spec


@pytest.mark.parametrize(
    ("spec", "inside", "outside", "ends", "fixed"),
    [
        (Choice((1, 2, 4)), 2, 3, (1, 2, 4), False),
        (Choice(("tail",)), "tail", "all", ("tail",), True),
        (Range(1e-4, 10.0), 1e-4, 10.1, (1e-4, 10.0), False),
        (Range(0, 8, log=False, whole=True), 8, "8", (0, 8), False),
        (Range(0, 8, log=False, whole=True), 2.0, 2.5, (0, 8), False),
    ],
)
def test_values_ends_and_fixed(spec: Spec, inside: Value, outside: Value, ends: tuple[Value, ...], fixed: bool) -> None:
    assert spec.holds(inside) and not spec.holds(outside)
    assert spec.ends() == ends and [type(v) for v in spec.ends()] == [type(v) for v in ends]
    assert spec.fixed == fixed


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [
        (Choice((0.5, 1.0)), float, "0.5,1"),
        (Choice((1e-4, 0.12345678)), float, "0.0001,0.12345678"),
        (Range(1 / 3, 1234567.5), float, "0.3333333333333333:1234567.5"),
        (Range(1e-4, 10.0), float, "0.0001:10"),
        (Range(1, 64, whole=True), int, "1:64"),
        (Range(0.5, 0.99, log=False), float, "0.5:0.99:linear"),
        (Choice(("heun", "euler")), str, "heun,euler"),
    ],
)
def test_the_text_is_read_back_exactly(spec: Spec, kind: type, text: str) -> None:
    """Also numbers of more than six digits."""
    assert str(spec) == text
    assert parse_spec("x", text, kind) == spec


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("0:1:log", float, "--my-rate 0:1:log: a logarithmic range must begin above 0; for a linear one write 0:1:linear$"),
        ("1:inf", float, "--my-rate needs numbers, got 'inf'"),
        ("1,2.5", int, "--my-rate needs whole numbers, got '2.5'"),
        ("2:1", float, "--my-rate needs a range whose low end is below its high end, got '2:1'"),
        (",", str, "--my-rate needs values like 1,2,4"),
    ],
)
def test_impossible_texts_are_refused_by_flag(text: str, kind: type, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_spec("my_rate", text, kind)
