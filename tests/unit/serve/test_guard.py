# SPDX-License-Identifier: Apache-2.0
import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

pytest.importorskip("litserve", reason="needs the extra serve")

import numpy as np
import uvicorn
from PIL import Image

from anomalib_uniad.inference import Inspection
from anomalib_uniad.serve.api import InspectAPI
from anomalib_uniad.serve.guard import AtMost, protocol
from anomalib_uniad.serve.upload import Upload
from serving import encoded


@contextmanager
def running(seconds: float) -> Iterator[int]:
    """Port of a server that says ``ok`` to all requests."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, port=0, http=protocol(seconds), ws="none", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def test_connections_that_send_no_request_are_closed() -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with running(0.4) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as used:
        used.sendall(request)
        assert used.recv(1000).endswith(b"ok")
        for start in (b"", request[:-2]):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as opened:
                opened.sendall(start)
                with pytest.raises(OSError, match=r"reset|pipe|aborted"):
                    for _ in range(40):  # bytes that trickle in do not count
                        time.sleep(0.05)
                        opened.sendall(b"X: a\r\n" if start else b"")
                        if not start and opened.recv(1) == b"":
                            raise ConnectionResetError("reset")
        used.settimeout(10)
        assert used.recv(1) == b""  # after its answer, it sent nothing either


def test_requests_beyond_a_number_are_refused() -> None:
    go_on, sent = asyncio.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        if scope["fails"]:
            raise RuntimeError("fails")

    async def send(message: Any) -> None:
        sent.append(message.get("status") or message["body"])

    async def ask(guarded: AtMost, path: str = "/inspect", fails: bool = False) -> None:
        await guarded({"type": "http", "path": path, "fails": fails, "method": "POST"}, None, send)

    async def attack() -> None:
        guarded = AtMost(app, "/inspect", 2)
        first = [asyncio.create_task(ask(guarded, fails=fails)) for fails in (False, True)]
        other = asyncio.create_task(ask(guarded, "/health"))  # counts for nothing
        await asyncio.sleep(0)
        await ask(guarded)
        go_on.set()
        await asyncio.gather(*first, other, return_exceptions=True)
        await asyncio.gather(ask(guarded), ask(guarded))  # there is room again

    asyncio.run(attack())
    assert sent == [503, b'{"detail":"The server has 2 requests already: try again in a second."}']


def test_large_images_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 20_000)
    api = InspectAPI({}, 4, 0.0, 10_000)
    there, most, lock = 0, 0, threading.Lock()

    def inspect(pixels: np.ndarray, product: str) -> Inspection:
        nonlocal there, most
        with lock:
            there += pixels.shape[0] * pixels.shape[1]
            most = max(most, there)
        time.sleep(0.02)
        with lock:
            there -= pixels.shape[0] * pixels.shape[1]
        return Inspection("normal", "", 0.5, 0.5, 0.5)

    monkeypatch.setattr("anomalib_uniad.serve.api.signal.signal", lambda *_: None)
    monkeypatch.setattr("anomalib_uniad.serve.api.warnings", Mock())
    limits = []

    def inspector() -> SimpleNamespace:
        limits.append(Image.MAX_IMAGE_PIXELS)
        return SimpleNamespace(inspect=inspect, value_range=None, origin=("", ""))

    monkeypatch.setattr("anomalib_uniad.serve.api.Inspector", inspector)
    api.setup("cpu")
    assert (limits, Image.MAX_IMAGE_PIXELS) == ([20_000], 10_000), "the masks of regions may be larger"
    images = [encoded(np.zeros((side, 100, 3), np.uint8)) for side in (100, 60, 60, 40, 30, 60)]
    answers = api.predict([Upload(image, "", "") for image in images])
    assert [answer.status_code for answer in answers] == [200] * 6
    assert 0 < most <= 10_000
