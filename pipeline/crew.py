"""Threads that share out a stream of work: results in order, a bounded number of items alive."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Generic, TypeAlias, TypeVar

Tool = TypeVar("Tool")
Item = TypeVar("Item")
Result = TypeVar("Result")
_Task: TypeAlias = "tuple[Item, Future[Result]] | None"

_PATIENCE_SECONDS = 2.0


class Crew(Generic[Tool, Item, Result]):
    """Threads that do one kind of work, each with a tool of its own, such as a connection.

    Not :class:`concurrent.futures.ThreadPoolExecutor`: Python's exit waits for its threads, so that
    Ctrl-C would wait for a server that does not answer. Use it as a context manager.

    Args:
        size: How many threads.
        equip: Opens the tool, in the thread that uses it, with the first item; the tool is closed
            there, too.
        work: Does an item; what it raises is raised where the result is asked for.
    """

    def __init__(
        self,
        size: int,
        equip: Callable[[], AbstractContextManager[Tool]],
        work: Callable[[Tool, Item], Result],
    ) -> None:
        self._equip = equip
        self._work = work
        self._tasks: queue.SimpleQueue[_Task[Item, Result]] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(size)]

    def __enter__(self) -> Crew[Tool, Item, Result]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:  # what nobody has begun is not begun any more
            while not self._tasks.empty():
                self._tasks.get()
        for _thread in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(_PATIENCE_SECONDS if kind else None)

    def in_order(self, items: Iterable[Item], *, ahead: int) -> Iterator[Result]:
        """The result of each item, in the items' order.

        Args:
            items: The work; taken up as results are taken out.
            ahead: How many items may be under way, or done and not taken out.
        """
        under_way: deque[Future[Result]] = deque()
        for item in items:
            done: Future[Result] = Future()
            self._tasks.put((item, done))
            under_way.append(done)
            if len(under_way) >= ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _serve(self) -> None:
        with contextlib.ExitStack() as held:
            tools: list[Tool] = []
            while task := self._tasks.get():
                self._do(held, tools, *task)

    def _do(
        self,
        held: contextlib.ExitStack,
        tools: list[Tool],
        item: Item,
        done: Future[Result],
    ) -> None:
        try:
            if not tools:
                tools.append(held.enter_context(self._equip()))
            done.set_result(self._work(tools[0], item))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            done.set_exception(error)
