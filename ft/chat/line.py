"""Who waits for the model: it works for one at a time, and who leaves gives up place and answer."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ft.chat.openai_request import Refused

WAITING = 64  # requests that may be there at once, the one that is answered among them
T = TypeVar("T")


class Line:
    """Requests in the order that they came; the model works in a thread of its own."""

    def __init__(self, most: int = WAITING) -> None:
        self.most, self.there, self.stopping = most, 0, False
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One place in the line. Raises ``Refused`` where it is full."""
        if self.there >= self.most:
            raise Refused(f"{self.there} requests wait already; try again later", status=503)
        self.there += 1
        try:
            yield
        finally:
            self.there -= 1

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The model's time, until this ends. Raises ``Refused`` when the server stops."""
        async with self._turn:
            self.check()
            yield

    def check(self) -> None:
        """Raise ``Refused`` when the server stops."""
        if self.stopping:
            raise Refused("the server is stopping", status=503)

    async def do(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, done in the model's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def steps(self, work: Any) -> AsyncGenerator[tuple[Any, Any], None]:
        """``(step, None)`` for each of a generator, and ``(None, result)`` in the end.

        It is closed as soon as nobody asks for more.
        """

        def step() -> tuple[Any, Any]:
            try:
                return next(work), None
            except StopIteration as ended:
                return None, ended.value

        try:
            found = await self.do(step)
            while found[0] is not None:
                yield found
                self.check()
                found = await self.do(step)
            yield found
        finally:
            self._thread.submit(work.close)  # behind a step that still goes on


async def unless(gone: Awaitable[Any], work: Coroutine[Any, Any, None]) -> None:
    """Do ``work``, and give it up when ``gone`` comes first: it raises ``ConnectionAbortedError`` then."""
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        given_up = not doing.done()
        doing.cancel()
        leaving.cancel()
        await asyncio.wait((doing, leaving))
    if given_up:
        raise ConnectionAbortedError
    doing.result()
