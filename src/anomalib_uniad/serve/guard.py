# SPDX-License-Identifier: Apache-2.0
"""What keeps a server answering: limits of connections, requests and pixels at the same time."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol


class AtMost:
    """Middleware that refuses requests of a path while there are as many as can be held in memory.

    Args:
        app (ASGIApp): What answers.
        path (str): Of the requests.
        requests (int): How many may be there at the same time.
    """

    def __init__(self, app: ASGIApp, path: str, requests: int) -> None:
        self._app, self._path, self._most, self._there = app, path, requests, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before its body is read."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
        elif self._there >= self._most:
            sentence = f"The server has {self._most} requests already: try again in a second."
            await JSONResponse({"detail": sentence}, 503, {"retry-after": "1"})(scope, receive, send)
        else:
            self._there += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._there -= 1


def protocol(seconds: float) -> type[H11Protocol]:
    """Make the HTTP of a server, with limits that uvicorn's faster one does not have.

    The head of a request may have 16 KiB, and has to be there in time, however it trickles in.

    Args:
        seconds (float): After so many, counted from the connection or the last answer, a connection without a whole
            head of a request is closed.
    """

    class Protocol(H11Protocol):
        _end: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()  # Measure gives up what takes long

        def on_response_complete(self) -> None:
            self._wait()
            super().on_response_complete()

        def _wait(self) -> None:
            self._stop()
            self._end = self.loop.call_later(seconds, self.transport.abort)

        def _stop(self) -> None:
            if self._end is not None:
                self._end.cancel()

    return Protocol


class Room:
    """Room in memory for threads, each of which waits until there is enough for it.

    Args:
        size (int): How much there is.

    Examples:
        >>> room = Room(10)
        >>> with room.taken(6), room.taken(4):
        ...     print("both")
        both
    """

    def __init__(self, size: int) -> None:
        self._free, self._changed = size, threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Take a part of it, at most all."""
        with self._changed:
            self._changed.wait_for(lambda: size <= self._free)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()
