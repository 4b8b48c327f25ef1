# SPDX-License-Identifier: Apache-2.0
"""Counts and times of requests, for Prometheus; and the longest time that one may take."""

import asyncio
import time

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Metrics of a server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        name = "anomalib_uniad"
        judged, refused = "Images that were judged", "Requests that were refused or failed"
        self.decisions = Counter(f"{name}_inspections", judged, ["decision"], registry=self._registry)
        self.errors = Counter(f"{name}_errors", refused, ["status"], registry=self._registry)
        self.seconds = Histogram(
            f"{name}_seconds", "Seconds from request to answer", buckets=_BUCKETS, registry=self._registry
        )

    def show(self) -> Response:
        """All of them, as Prometheus reads them."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class Measure:
    """Middleware that counts answers and times of a path, and gives up requests that take too long.

    Args:
        app (ASGIApp): What it measures.
        metrics (Metrics): Where it counts.
        path (str): Of the requests.
        header (str): Name of the header that has the decision.
        limit (float): Seconds after which a request is given up, for example of a worker that has crashed.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, path: str, header: str, limit: float) -> None:
        self._app, self._metrics, self._path, self._header, self._limit = app, metrics, path, header, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        start, answered = time.perf_counter(), False

        async def counted(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                if decision := Headers(raw=message["headers"]).get(self._header):
                    self._metrics.decisions.labels(decision).inc()
                else:
                    self._metrics.errors.labels(str(message["status"])).inc()
                self._metrics.seconds.observe(time.perf_counter() - start)
            await send(message)

        try:
            await asyncio.wait_for(self._app(scope, receive, counted), self._limit)
        except asyncio.TimeoutError:
            if not answered:
                sentence = f"There was no answer within {self._limit:g} seconds."
                await JSONResponse({"detail": sentence}, 504)(scope, receive, counted)
