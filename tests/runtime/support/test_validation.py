"""Checks of fields: what passes, and the errors of the rest."""

import math

import numpy as np
import pytest

from runtime.errors import ConfigError, ModelError
from runtime.support.validation import FieldChecks

CHECK = FieldChecks(ModelError, "card field ")


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        ("integer", (1, 1)),
        ("integer", (10**30, 1)),
        ("integer", (8, 1, 8)),
        ("number", (0, 0, 1)),
        ("number", (1.0, 0, 1)),
        ("number", (np.float64(0.5), 0, 1)),
        ("choice", ("b", ("a", "b"))),
        ("choice", (None, ("a", None))),
        ("choice", (True, (True, False))),
        ("text", ("é", 1, 1)),
        ("length", ((), 0, 1)),
        ("mapping", ({"a": 1}, 1, 1)),
    ],
)
def test_what_is_within_its_bounds_passes(check, arguments):
    getattr(CHECK, check)("name", *arguments)


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        ("integer", (0, 1), "found 0, expected an integer from 1"),
        ("integer", (9, 1, 8), "found 9, expected an integer from 1 to 8"),
        ("integer", (True, 0, 8), "found True, expected an integer from 0 to 8"),
        ("integer", (1.0, 0, 8), "found 1.0, expected an integer from 0 to 8"),
        ("number", (math.nan, 0, 1e-6), "found nan, expected a number from 0 to 1e-06"),
        ("number", (-1, 0, 3_600_000, "milliseconds"), "found -1, expected a number of milliseconds from 0 to 3600000"),
        ("number", ("1", 0, 1), "found '1', expected a number from 0 to 1"),
        ("number", (True, 0, 1), "found True, expected a number from 0 to 1"),
        ("choice", (1, (True, False)), "found 1, expected one of True, False"),
        ("choice", (2.0, (2, 4)), "found 2.0, expected one of 2, 4"),
        ("text", ("", 1, 200), "found '', expected text of 1 to 200 characters"),
        ("length", ([1], 1, 1), "found [1], expected 1 values"),
        ("length", ((), 1, 8), "found (), expected 1 to 8 values"),
        ("mapping", ({"a": 1, "b": 2}, 1, 1), "found {'a': 1, 'b': 2}, expected a record of at most 1 entries"),
        ("mapping", ({1: 1}, 1, 1), "found 1, expected text of 1 to 1 characters"),
    ],
)
def test_the_rest_is_refused_by_name(check, arguments, message):
    with pytest.raises(ModelError) as caught:
        getattr(CHECK, check)("name", *arguments)
    assert str(caught.value) == f"card field name: {message}"


def test_what_was_found_is_shown_on_one_short_line():
    with pytest.raises(ConfigError) as caught:
        FieldChecks().integer("name", "\n" * 10_000, 1)
    assert len(str(caught.value)) < 100 and "\n" not in str(caught.value)
