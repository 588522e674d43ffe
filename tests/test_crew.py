"""Threads that share out work: in order, bounded, and ended at once when nobody waits any more."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crew import Crew


@given(st.lists(st.integers(0, 3)), st.integers(1, 4), st.integers(1, 6))
def test_results_come_in_the_items_order(items: list[int], size: int, ahead: int) -> None:
    def work(_: None, item: int) -> int:
        time.sleep(item / 1000)  # so that later ones may be done first
        return item * item

    with Crew(size, contextlib.nullcontext, work) as crew:
        assert list(crew.in_order(items, ahead=ahead)) == [item * item for item in items]


def test_no_more_is_taken_up_than_was_taken_out() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1_000_000):
            taken.append(item)
            yield item

    with Crew[None, int, int](3, contextlib.nullcontext, lambda _, item: item) as crew:
        results = crew.in_order(items(), ahead=5)
        for expected in range(20):
            assert next(results) == expected
            assert len(taken) == expected + 5


def test_each_thread_opens_a_tool_of_its_own_and_closes_it() -> None:
    opened: list[int] = []
    closed: list[int] = []

    @contextlib.contextmanager
    def tool() -> Iterator[int]:
        opened.append(threading.get_ident())
        yield threading.get_ident()
        closed.append(threading.get_ident())

    def work(tool: int, _: int) -> bool:
        time.sleep(0.01)
        return tool == threading.get_ident()

    with Crew(3, tool, work) as crew:
        assert all(crew.in_order(range(12), ahead=6))
    assert sorted(opened) == sorted(closed)
    assert len(set(opened)) == 3


def test_what_fails_is_raised_where_its_result_is_asked_for() -> None:
    with Crew[None, int, float](1, contextlib.nullcontext, lambda _, item: 1 / item) as crew:
        results = crew.in_order([1, 0, 2], ahead=3)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        raise OSError("no tool")
        yield

    toolless = Crew[None, int, int](2, broken, lambda _, item: item)
    with toolless, pytest.raises(OSError, match="no tool"):
        next(toolless.in_order([1], ahead=1))


def test_nobody_waits_for_work_that_does_not_end() -> None:
    never = threading.Event()
    begun = time.monotonic()

    def interrupted() -> None:
        with Crew[None, int, bool](1, contextlib.nullcontext, lambda _, __: never.wait()) as crew:
            results = crew.in_order([1, 2, 3], ahead=3)
            threading.Thread(target=lambda: next(results), daemon=True).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begun < 10
    never.set()
