"""The verification gate's arithmetic; that it catches a wrong export is tested in test_export."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from pipeline.verify import Case, Tolerance, compare, same_ranking
from provision.errors import VerificationError

Array = NDArray[np.float32]
TOLERANCE = Tolerance.of("fp32")
logits = st.floats(-50, 50, width=32)
shapes = st.tuples(st.integers(1, 4), st.integers(2, 30))


@st.composite
def references(draw: st.DrawFn) -> Array:
    """Logits that a comparison can be made with."""
    expected: Array = draw(arrays.arrays(np.float32, shapes, elements=logits))
    assume(expected.std(axis=1).min() > 0.1)
    return expected


@st.composite
def nearly_equal(draw: st.DrawFn) -> tuple[Array, Array]:
    """Logits, and others that are off by less than is allowed."""
    expected = draw(references())
    share = draw(
        arrays.arrays(np.float32, expected.shape, elements=st.floats(-0.875, 0.875, width=32))
    )
    return expected, (expected + share * TOLERANCE.allowed(expected)).astype(np.float32)


@st.composite
def one_wrong(draw: st.DrawFn) -> tuple[Array, Array, tuple[int, int]]:
    """Logits, and others of which one is off by more than is allowed."""
    expected, actual = draw(nearly_equal())
    row, column = (draw(st.integers(0, size - 1)) for size in expected.shape)
    wrong = draw(
        st.sampled_from([math.nan, math.inf, -math.inf])
        | st.floats(1.1, 1e6).map(
            lambda n: expected[row, column] + n * TOLERANCE.allowed(expected)[row, column]
        )
    )
    actual[row, column] = wrong
    return expected, actual, (row, column)


@settings(deadline=None)
@given(references())
def test_equal_outputs_pass(expected: Array) -> None:
    case = compare("x", expected, expected.copy(), TOLERANCE)
    assert case.passed
    assert (case.batch, case.max_abs, case.max_rel) == (len(expected), 0, 0)
    assert (case.top1, case.top5) == (1, 1)
    assert case.cosine == pytest.approx(1, abs=1e-5)


@settings(deadline=None)
@given(nearly_equal())
def test_outputs_within_the_tolerance_pass(pair: tuple[Array, Array]) -> None:
    case = compare("x", *pair, TOLERANCE)
    assert case.passed, case.worst
    assert case.max_abs <= TOLERANCE.atol + TOLERANCE.rtol * 50


@settings(deadline=None)
@given(one_wrong())
def test_one_element_beyond_it_fails_and_is_shown_first(
    case: tuple[Array, Array, tuple[int, int]],
) -> None:
    expected, actual, (row, column) = case
    judged = compare("x", expected, actual, TOLERANCE)
    assert not judged.passed
    assert judged.worst[0].startswith(f"row {row}, class {column}: expected ")
    assert len(judged.worst) == min(5, expected.size)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1e38])
def test_output_of_nothing_but(value: float) -> None:
    expected = np.linspace(-5, 5, 20, dtype=np.float32)[np.newaxis]
    case = compare("x", expected, np.full_like(expected, value), TOLERANCE)
    assert not case.passed


@pytest.mark.parametrize(
    "expected",
    [
        np.zeros((1, 1000)),
        np.full((1, 1000), 7.0),
        np.linspace(0, 1e-3, 1000)[np.newaxis],
        np.stack([np.linspace(-5, 5, 1000), np.full(1000, 1e-20)]),
        np.full((1, 1000), math.nan),
        np.array([[0.0, 1.0, math.inf]]),
        np.array([[0.0, 1.0, math.nan]]),
        np.array([[-3e38, 0.0, 3e38]]),
    ],
    ids=["zeros", "constant", "close", "one row", "nan", "an inf", "a nan", "too large"],
)
def test_reference_that_says_nothing_is_refused(expected: NDArray[np.float64]) -> None:
    reference = expected.astype(np.float32)
    with pytest.raises(VerificationError, match="would prove nothing"):
        compare("x", reference, reference.copy(), TOLERANCE)


def test_other_shape_is_refused() -> None:
    with pytest.raises(VerificationError, match=r"shape \[1, 5\], not \[1, 6\]"):
        compare("x", np.ones((1, 6), np.float32), np.ones((1, 5), np.float32), TOLERANCE)


def test_case_is_plain_data_without_the_worst_elements() -> None:
    expected = np.linspace(-5, 5, 20, dtype=np.float32)[np.newaxis]
    data: dict[str, Any] = compare("x", expected, expected, TOLERANCE).to_json()
    assert set(data) == set(Case.__dataclass_fields__) - {"worst"}
    assert data["passed"] is True


def test_swapped_places_count_where_logits_differ() -> None:
    expected = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], np.float32)
    swapped = np.array([4.0, 5.0, 3.0, 2.0, 1.0, 0.0], np.float32)
    assert same_ranking(expected, expected, allowed=0)
    assert not same_ranking(expected, swapped, allowed=0.1)
    assert same_ranking(expected, swapped, allowed=0.6)


def test_sixth_place_does_not_count() -> None:
    expected = np.array([9, 8, 7, 6, 5, 4, 3], np.float32)
    assert same_ranking(expected, np.array([9, 8, 7, 6, 5, 1, 2], np.float32), allowed=0)
    assert not same_ranking(expected, np.array([9, 8, 7, 6, 1, 5, 2], np.float32), allowed=0.1)


@settings(deadline=None)
@given(nearly_equal())
def test_what_is_allowed_never_changes_the_ranking(pair: tuple[Array, Array]) -> None:
    for expected, actual in zip(*pair, strict=True):
        allowed = float(TOLERANCE.allowed(expected).max())
        assert same_ranking(expected, actual, allowed=allowed)


@settings(deadline=None)
@given(st.permutations(range(8)))
def test_ranking_of_well_separated_logits_is_exact(order: list[int]) -> None:
    expected = np.arange(8, 0, -1, dtype=np.float32)
    actual = expected[order]
    assert same_ranking(expected, actual, allowed=0.1) == (order[:5] == list(range(5)))
