# SPDX-License-Identifier: Apache-2.0
"""A server of a tiny model in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

PIXELS = np.full((48, 64, 3), 60, np.uint8)
PIXELS[10:20, 30:50] = 230


def encoded(pixels: np.ndarray = PIXELS, kind: str = "PNG") -> bytes:
    data = BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@contextmanager
def serving(model: Path, *arguments: str) -> Iterator[httpx.Client]:
    """Start it, and see in the end that it has said nothing more, ends as it should and has left no file."""
    port = free_port()
    code = "from anomalib_uniad.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(model), "--port", str(port), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
        cwd=model.parent,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert "Serving model.xml at http://127.0.0.1" in process.stdout.readline()
            for _ in range(300):
                try:
                    if client.get("/health").text == "ok":
                        break
                except httpx.ConnectError:
                    time.sleep(0.1)
            yield client
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
        assert said == "", said
        assert process.returncode == 0
        assert [path.name for path in model.parent.iterdir() if path.suffix == ".py"] == []
    finally:
        process.kill()
        process.communicate()
