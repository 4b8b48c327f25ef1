# SPDX-License-Identifier: Apache-2.0
"""Images per second of predictions with workers, and what the process that writes their rows can take.

python benchmarks/ray_predictions.py MODEL
"""

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pyarrow as pa
from jsonargparse import auto_cli

from anomalib_uniad.benchmark.machine import processor
from anomalib_uniad.inference import workers as room
from anomalib_uniad.inference.images import TABLE, find_images
from anomalib_uniad.inference.inspection import Inspection
from anomalib_uniad.inference.predictor import Output
from anomalib_uniad.inference.writer import Writer
from harness import RESULTS, add_rows, at_least, origin, show, write_images

DIFFERENT = 8  # images, of which the others are links


class Free(room.Worker):
    """A worker whose predictions cost nothing."""

    def __init__(self, task: room.Task) -> None:
        pass

    def __call__(self, batch: pa.Table) -> pa.Table:
        output = pickle.dumps(Output(None, inspection=Inspection("normal", "bolt", 0.25, 12.5, 20.0)))
        return pa.table({"output": pa.array([output] * len(batch), pa.large_binary())})


def ray_predictions(
    model: Path, count: int = 20_000, pixels: int = 128, workers: Sequence[int] = (0, 1, 2), output_dir: Path = RESULTS
) -> None:
    """Measure `anomalib-uniad predict --workers`; writes ``ray_predictions.csv``.

    Args:
        model: Exported file.
        count: Images of each prediction.
        pixels: Their height and width.
        workers: How many; 0, one process without Ray, comes first.
        output_dir: Folder of the table.
    """
    at_least(100, count=count)
    at_least(8, pixels=pixels)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        sources = write_images(folder / "sources", DIFFERENT, pixels)
        images = folder / "images"
        for number in range(count):
            file = images / f"{number // 1000:03d}" / f"{number:06d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            os.link(sources[number % DIFFERENT], file)
        rows = []
        for number in dict.fromkeys([0, *workers]):
            table = folder / str(number) / TABLE
            rows.append({"workers": number, "simulated": False} | _predict(model, images, table, count, number))
            rows[-1]["different"] = _different(folder / "0" / TABLE, table)
        rows.append({"workers": max(workers), "simulated": True} | _write_alone(images, folder / "free", max(workers)))
    about = origin(f"{processor()}, {os.cpu_count()} threads", packages=("openvino", "ray"))
    same = ("model", "workers", "simulated", "device")
    common = {"model": model.name, "images": count, "pixels": pixels}
    add_rows(output_dir / "ray_predictions.csv", [common | row | about for row in rows], same)
    show(output_dir / "ray_predictions.csv", ["workers", "simulated", "per_second", "start_seconds", "different"])


def _predict(model: Path, images: Path, table: Path, count: int, workers: int) -> dict[str, Any]:
    """Seconds to the first row, the rate of the last three quarters, and memory of the writing process."""
    program = Path(sys.executable).with_name("anomalib-uniad")
    command = [str(program), "predict", str(model), str(images), "--output", str(table.parent), "--heatmaps", "false"]
    start, seen, memory = time.perf_counter(), [], []
    with subprocess.Popen(
        [*command, "--workers", str(workers)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        watched, rows, place = psutil.Process(process.pid), -1, 0  # one line is the head
        while rows < count and process.poll() is None:
            time.sleep(0.1)
            if table.exists():
                with table.open("rb") as opened:
                    opened.seek(place)
                    new = opened.read()
                rows, place = rows + new.count(b"\n"), place + len(new)
                seen.append((rows, time.perf_counter()))
                memory.append(watched.memory_info().rss)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed.")
    first = next(when for done, when in seen if done > 0)
    (done, since), (last, until) = next(point for point in seen if point[0] >= count / 4), seen[-1]
    return {
        "per_second": (last - done) / (until - since),
        "start_seconds": first - start,
        "memory_tenth_mb": round(memory[len(memory) // 10] / 1e6),
        "memory_end_mb": round(memory[-1] / 1e6),
    }


def _write_alone(images: Path, folder: Path, workers: int) -> dict[str, Any]:
    """The same, with workers whose predictions cost nothing."""
    files = find_images([images])
    task = room.Task(Path.cwd(), Path(), "CPU", "f32", 1, (0, "", None, None), False, ("", ""))
    times = []
    with patch.object(room, "Worker", Free), Writer(folder, files, pictures=False) as writer:
        for output in room.outputs_of_workers(task, files, workers):
            writer.row(output.file, output.inspection)
            times.append(time.perf_counter())
    quarter = len(times) // 4
    return {"per_second": (len(times) - 1 - quarter) / (times[-1] - times[quarter])}


def _different(first: Path, second: Path) -> int:
    with first.open("rb") as one, second.open("rb") as two:
        return sum(a != b for a, b in zip_longest(one, two))


if __name__ == "__main__":
    auto_cli(ray_predictions)
