# SPDX-License-Identifier: Apache-2.0
"""How many images per second the server judges, beside Inspector alone, and what 10,000 requests leave behind.

python benchmarks/serve_load.py                      # about fifteen minutes on two idle cores
python benchmarks/serve_load.py --requests 1000 --rounds 3
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from jsonargparse import auto_cli

from anomalib_uniad.benchmark.machine import processor
from anomalib_uniad.image_files import read_image
from anomalib_uniad.inference import Inspector
from harness import RESULTS, add_rows, at_least, in_turn, origin, ratios, show, write_images

BROKEN = 50  # every so many requests have a broken image
PACKAGES = ("openvino", "litserve", "fastapi", "uvicorn")
Row = dict[str, Any]


def serve_load(
    model: Path | None = None,
    requests: int = 10_000,
    rounds: int = 5,
    images: int = 64,
    pixels: int = 512,
    clients: int = 16,
    workers: int = 1,
    max_batch_size: int = 8,
    output_dir: Path = RESULTS,
    work_dir: Path | None = None,
) -> None:
    """Measure the server on this CPU; writes ``serve.csv``, in place of the rows of this device and these sizes.

    Args:
        model: Exported file; default: UniAD with EfficientNet-Lite0 at 256 pixels and random weights.
        requests: How many are sent in the long run, of which every fiftieth has a broken image.
        rounds: How often server and Inspector are measured in turn; ratios are the median of all rounds.
        images: Images per round, which are generated.
        pixels: Their height and width.
        clients: Requests at a time.
        workers: Of the server.
        max_batch_size: Of the server.
        output_dir: Folder of the csv file.
        work_dir: Folder of model and images, to use them again; default: a temporary one.
    """
    at_least(1, rounds=rounds, images=images, clients=clients)
    at_least(BROKEN, requests=requests)
    with tempfile.TemporaryDirectory() as temporary:
        folder = work_dir or Path(temporary)
        file = model or export(folder)
        paths = write_images(folder / f"images_{images}_{pixels}", images, pixels)
        same: Row = {"pixels": pixels, "clients": clients, "workers": workers, "max_batch_size": max_batch_size}
        one, many = Inspector(file), Inspector(file, performance_hint="THROUGHPUT")
        with serving(file, workers, max_batch_size) as (port, process):
            good = [path.read_bytes() for path in paths]
            send(port, good, clients)  # warm
            measures: dict[str, Callable[[], float]] = {
                "Inspector": partial(judge, one, paths, 1),
                "Inspector, threads": partial(judge, many, paths, max_batch_size),
                "server": lambda: send(port, good, clients)[0],
            }
            for seconds in in_turn(measures, rounds, "images per second"):
                times = seconds
            rows = [
                {
                    "part": name,
                    **same,
                    "requests": images,
                    "rounds": rounds,
                    "per_second": images / median(times[name]),
                    **ratios("inspector", times["Inspector"], times[name]),
                }
                for name in measures
            ]
            rows.append({"part": "long run", **same, **long_run(port, process, good, requests, clients)})
    about = {"model": "random weights" if model is None else model.name}
    about |= origin(f"{processor()}, {os.cpu_count()} cores", packages=PACKAGES)
    path = output_dir / "serve.csv"
    add_rows(path, [{**row, **about} for row in rows], ("part", *same, "model", "device"))
    memories = [f"memory_{when}_mb" for when in ("start", "half", "end")]
    show(path, ("part", "per_second", "inspector_ratio", "requests", "refused", "failed", *memories))


def export(folder: Path) -> Path:
    """The file of a small model, exported if it is not there."""
    from inference import LITE, Models  # heavy

    return Models(folder, LITE, training_images=20, calibration_images=1, seed=0).openvino("any_size")


@contextmanager
def serving(model: Path, workers: int, max_batch_size: int) -> Iterator[tuple[int, psutil.Process]]:
    """Start a server and wait until it is ready; yields its port and process."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = int(opened.getsockname()[1])
    arguments = ["--port", str(port), "--workers", str(workers), "--max_batch_size", str(max_batch_size)]
    code = "from anomalib_uniad.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, "serve", str(model), *arguments], stdout=subprocess.DEVNULL)
    try:
        while not is_ready(port):
            if process.poll() is not None:
                raise RuntimeError("The server did not start.")
            time.sleep(0.2)
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def is_ready(port: int) -> bool:
    """Whether all workers of a server are."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def judge(inspector: Inspector, paths: Sequence[Path], threads: int) -> float:
    """Seconds in which a model judges image files in this process."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(lambda path: inspector.inspect(read_image(path)), paths))
        return time.perf_counter() - start


def send(port: int, images: Sequence[bytes], clients: int) -> tuple[float, list[int]]:
    """Send images, so many at a time; returns seconds and the status of each answer."""
    local = threading.local()

    def connect() -> None:
        local.connection = opened.enter_context(closing(HTTPConnection("127.0.0.1", port, timeout=120)))

    def post(image: bytes) -> int:
        local.connection.request("POST", "/inspect", image, {"content-type": "image/png"})
        answer = local.connection.getresponse()
        answer.read()
        return int(answer.status)

    with ExitStack() as opened, ThreadPoolExecutor(clients, initializer=connect) as pool:
        start = time.perf_counter()
        statuses = list(pool.map(post, images))
        return time.perf_counter() - start, statuses


def long_run(port: int, process: psutil.Process, good: Sequence[bytes], requests: int, clients: int) -> Row:
    """Send many images, broken ones among them; the memory of all processes before, between and after."""
    broken = [image[: len(image) // 2] for image in good]
    sent = [(good if number % BROKEN else broken)[number % len(good)] for number in range(requests)]
    sizes, seconds, statuses = [memory(process)], 0.0, []
    for part in (sent[: requests // 2], sent[requests // 2 :]):
        took, found = send(port, part, clients)
        seconds += took
        statuses += found
        sizes.append(memory(process))
    wanted = [200 if number % BROKEN else 400 for number in range(requests)]
    counts = Counter(statuses)
    return {
        "requests": requests,
        "per_second": requests / seconds,
        "judged": counts[200],
        "refused": counts[400],
        "failed": sum(found != status for found, status in zip(statuses, wanted, strict=True)),
        **dict(zip(("memory_start_mb", "memory_half_mb", "memory_end_mb"), sizes, strict=True)),
    }


def memory(process: psutil.Process) -> int:
    """Megabytes of a process and all below it; what they share is counted once."""
    processes = [process, *process.children(recursive=True)]
    return round(sum(one.memory_full_info().pss for one in processes) / 1e6)


if __name__ == "__main__":
    auto_cli(serve_load)
