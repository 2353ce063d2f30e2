"""Temperature schedules: their ends, their order, and what they refuse."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import TaskAssignment, Temperature

TEMPERATURES = st.floats(1e-30, 1e30)
MOVING = ("linear", "exponential", "cosine")


@given(start=TEMPERATURES, end=TEMPERATURES, schedule=st.sampled_from(MOVING), progress=st.floats(-1, 2))
def test_every_temperature_on_the_way_can_be_used(start, end, schedule, progress):
    low, high = sorted((start, end))
    found = Temperature(start, end, schedule).at(progress)
    assert low <= found <= high
    TaskAssignment(1, 2, sampling="softmax").sample(found)


@given(start=TEMPERATURES, end=TEMPERATURES, schedule=st.sampled_from(MOVING))
def test_ends_and_order(start, end, schedule):
    temperature = Temperature(start, end, schedule)
    assert temperature.at(0) == pytest.approx(start, rel=1e-12)
    assert temperature.at(1) == pytest.approx(end, rel=1e-12)
    assert temperature.at(-3) == temperature.at(0)
    assert temperature.at(7) == temperature.at(1)
    steps = [temperature.at(i / 20) for i in range(21)]
    slack = 1e-12 * max(start, end)
    pairs = list(itertools.pairwise(steps))
    assert all(a <= b + slack for a, b in pairs) if start <= end else all(a >= b - slack for a, b in pairs)


@given(value=TEMPERATURES, progress=st.floats(0, 1))
def test_a_constant_is_the_same_number_throughout(value, progress):
    same = Temperature(value, value)
    for temperature in (Temperature(value), Temperature.of(value), same, Temperature(value, value, "cosine")):
        assert temperature.at(progress) == value
    assert Temperature.of(Temperature(value, 1.0)) == Temperature(value, 1.0)


def test_the_formulas():
    for x in np.random.default_rng().random(20).tolist():
        assert Temperature(4, 0.5, "linear").at(x) == pytest.approx(4 - 3.5 * x)
        assert Temperature(4, 0.5).at(x) == pytest.approx(4 * (0.5 / 4) ** x)
        assert Temperature(4, 0.5, "cosine").at(x) == pytest.approx(0.5 + 3.5 * (1 + math.cos(math.pi * x)) / 2)


def test_text():
    assert str(Temperature(2.5)) == "2.5"
    assert str(Temperature(2.5, 0.1)) == "2.5 to 0.1 (exponential)"
    assert isinstance(Temperature(Fraction(1, 2)).at(0.3), float)


@pytest.mark.parametrize("value", [0, -1, 9e-31, 2e30, math.nan, math.inf, -math.inf, 10**400, np.float32("nan")])
def test_values_out_of_range(value):
    for make in (Temperature, lambda v: Temperature(1, v), TaskAssignment(2, 2).sample):
        with pytest.raises(InvalidArgumentError, match=r"temperature.* must lie in 1e-30..1e\+30; got"):
            make(value)


@pytest.mark.parametrize("value", ["warm", True, 1j, [1.0]])
def test_no_numbers(value):
    for make in (Temperature, lambda v: Temperature(1, v), TaskAssignment(2, 2).sample):
        with pytest.raises(InvalidTypeError, match=r"temperature.* must be a number; got"):
            make(value)


def test_bad_schedules():
    for schedule in ("step", 3, ["linear"]):
        with pytest.raises(InvalidArgumentError, match="schedule must be one of constant, linear, exponential, cosine"):
            Temperature(1, 2, schedule)
    with pytest.raises(InvalidArgumentError, match="'constant' must not have an end of its own; got start 1, end 2"):
        Temperature(1, 2, "constant")
    assert Temperature(1, 1, "constant").at(0.5) == 1
