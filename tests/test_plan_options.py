"""What a plan is built with: batches, sizes, capabilities."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deploy_plan import settle_batches
from pipeline.graph import Graph, Tensor
from pipeline.plan_options import Batches, PlanOptions, parse_size
from provision.errors import UsageError

NUMBERS = st.integers(1, 10_000)
DYNAMIC = Graph((Tensor("input", "float32", (-1, 3, 8, 8)),), ())
FIXED = Graph((Tensor("input", "float32", (4, 3, 8, 8)),), ())


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS).map(sorted))
def test_batches_are_read_as_they_are_written(numbers: list[int]) -> None:
    text = ":".join(map(str, numbers))
    assert str(Batches.parse(text)) == text
    assert Batches.parse(text).each == tuple(sorted(set(numbers)))


def test_one_number_is_a_fixed_batch() -> None:
    assert Batches.parse("4") == Batches(4, 4, 4)


@pytest.mark.parametrize(
    "text", ["", "0", "1:2", "1:2:3:4", "4:2:8", "8:4:1", "a:b:c", "1:-1:2", "1::2", "0:1:2", "²"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="batches"):
        Batches.parse(text)


@given(st.text(max_size=12))
def test_no_text_makes_reading_fail_otherwise(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert Batches.parse(text).most >= 1
    with contextlib.suppress(UsageError):
        assert parse_size(text) >= 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("512M", 2**29), ("4GiB", 2**32), ("1.5 gb", 3 * 2**29), ("64 KiB", 2**16)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GiB", "-1", "4TiB", "1e9", "0.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_a_compute_capability_has_two_numbers() -> None:
    assert PlanOptions(capabilities=("8.6", "12.0")).capabilities == ("8.6", "12.0")
    for wrong in ("86", "sm86", "8.", "0.1", ""):
        with pytest.raises(UsageError, match="is not a compute capability"):
            PlanOptions(capabilities=(wrong,))


def test_a_profile_has_the_batches_in_each_input() -> None:
    profile = DYNAMIC.profile(Batches(1, 4, 8))
    assert profile == {"input": [[1, 3, 8, 8], [4, 3, 8, 8], [8, 3, 8, 8]]}
    assert FIXED.profile(None) == FIXED.profile(Batches(4, 4, 4)) == {}


@pytest.mark.parametrize(
    ("graph", "batches", "said"),
    [
        (DYNAMIC, None, "has a dynamic batch, and no profile is given"),
        (FIXED, Batches(1, 4, 8), "has a fixed batch of 4, and --batch 1:4:8 is asked for"),
        (FIXED, Batches(8, 8, 8), "has a fixed batch of 4"),
        (
            Graph((Tensor("ids", "int64", (-1, -1)),), ()),
            Batches(1, 1, 1),
            "ids has the shape [-1, -1], in which more than the batch is dynamic",
        ),
    ],
)
def test_a_wrong_or_missing_profile_is_refused(
    graph: Graph, batches: Batches | None, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        graph.profile(batches)
    assert said in caught.value.what


@pytest.mark.parametrize(
    ("batches", "source", "given", "expected"),
    [
        (None, 8, None, (8, "1:4:8")),
        (None, 0, 0, (0, "1:1:1")),
        (None, 1, 1, (1, "1:1:1")),
        (Batches(1, 2, 16), 8, None, (16, "1:2:16")),
        (Batches(1, 1, 1), 8, 0, (0, "1:1:1")),
        (Batches(1, 4, 8), 8, 8, (8, "1:4:8")),
    ],
)
def test_the_largest_batch_comes_from_the_profile(
    batches: Batches | None, source: int, given: int | None, expected: tuple[int, str]
) -> None:
    most, options = settle_batches(PlanOptions(batches=batches), source, given=given)
    assert (most, str(options.batches)) == expected


@pytest.mark.parametrize(
    ("batches", "given", "said"),
    [
        (Batches(2, 4, 8), None, "starts at 2, and Triton asks for single images"),
        (Batches(1, 4, 8), 4, "--max-batch-size 4 and --batch 1:4:8 do not go together"),
        (Batches(1, 4, 8), 0, "do not go together"),
    ],
)
def test_batches_that_cannot_be_served_are_refused(
    batches: Batches, given: int | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        settle_batches(PlanOptions(batches=batches), 8, given=given)
