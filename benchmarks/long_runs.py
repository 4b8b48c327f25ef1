# SPDX-License-Identifier: Apache-2.0
"""Memory and open files of long works, after a tenth and at the end.

python benchmarks/long_runs.py                          # about ten minutes on two idle cores
python benchmarks/long_runs.py --parts '[watch,serve]' --hours 1

A training of many epochs with features in memory and validations, and a day of `predict --watch` and of `serve` at an
image a minute, with the minutes left out. The model is as small as can be: what leaks is not the weights. That of many
images in one prediction is in long_predictions.py.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from jsonargparse import auto_cli
from lightning.pytorch import Callback

from anomalib_uniad.benchmark.machine import processor
from harness import RESULTS, add_rows, apart, at_least, origin, show, write_images

BATCH = 8  # images that arrive at a time
Row = dict[str, Any]


def long_runs(parts: list[str] | None = None, epochs: int = 200, hours: int = 24, output_dir: Path = RESULTS) -> None:
    """Measure long works; writes ``long_runs.csv``.

    Args:
        parts: Which of training, watch and serve; default: all.
        epochs: Of the training.
        hours: Of an image a minute.
        output_dir: Folder of the table.
    """
    at_least(10, epochs=epochs)
    at_least(1, hours=hours)
    images = 60 * hours
    measures: dict[str, Callable[[Path], Row]] = {
        "training": lambda folder: apart(train, {"folder": folder, "epochs": epochs}),
        "watch": partial(watch, images=images),
        "serve": partial(serve, requests=images),
    }
    if unknown := sorted(set(parts or ()) - set(measures)):
        raise ValueError(f"There is no part {', '.join(unknown)}; there are {', '.join(measures)}.")
    table = output_dir / "long_runs.csv"
    about = origin(f"{processor()}, {os.cpu_count()} cores", packages=("openvino", "litserve"))
    for name in parts or measures:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            row = measures[name](Path(folder))
        row |= {"seconds": round(time.perf_counter() - start), **about, "date": date.today().isoformat()}
        add_rows(table, [{"part": name, **row}], same=("part", "units", "count", "device"))
    values = ["memory_tenth_mb", "memory_end_mb", "files_tenth", "files_end"]
    show(table, ("part", "count", "units", *values))


class Sampled(Callback):
    """Memory and open files of this process after each epoch."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, int]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look."""
        self.samples.append(of_process(psutil.Process()))


def train(folder: Path, epochs: int) -> Row:
    """Train a tiny model on features in memory, with a validation every ten epochs and checkpoints all the time."""
    import torch
    from anomalib.engine import Engine

    from anomalib_uniad import MultiCategory, UniAD
    from kills import ALWAYS, TINY

    torch.set_num_threads(1)
    write_images(folder / "images", 24, 64)
    sampled = Sampled()
    settings: Row = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": False}
    engine = Engine(
        default_root_dir=folder / "results",
        callbacks=[sampled],
        max_epochs=epochs,
        check_val_every_n_epoch=10,
        **settings,
    )
    images = MultiCategory(root=folder / "images", num_workers=0, train_batch_size=4, seed=0)
    engine.fit(UniAD(**TINY, feature_cache="memory", resume_interval=ALWAYS), datamodule=images)
    tenth, end = sampled.samples[epochs // 10 - 1], sampled.samples[-1]
    return {"count": epochs, "units": "epochs", **in_columns(tenth, end)}


def watch(folder: Path, images: int) -> Row:
    """Watch a folder in which so many images arrive."""
    model, files = make_model(folder), write_images(folder / "images", 16, 64)
    (folder / "in").mkdir()
    code = "from anomalib_uniad.cli import main; main()"
    arguments = ["predict", str(model), str(folder / "in"), "--output", str(folder / "out"), "--watch", "true"]
    table, samples = folder / "out" / "predictions.csv", []
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL) as process:
        try:
            for number in range(0, images, BATCH):
                for one in range(number, min(images, number + BATCH)):
                    part = folder / "in" / f".{one:06d}.png"
                    shutil.copyfile(files[one % len(files)], part)
                    part.rename(folder / "in" / f"{one:06d}.png")
                while not (table.is_file() and table.read_bytes().count(b"\n") > one + 1):  # with a line of names
                    if process.poll() is not None:
                        raise RuntimeError("The watching has ended.")
                    time.sleep(0.02)
                samples.append((one, of_process(psutil.Process(process.pid))))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
    tenth = next(sample for number, sample in samples if number + 1 >= images / 10)
    return {"count": images, "units": "images", **in_columns(tenth, samples[-1][1])}


def serve(folder: Path, requests: int) -> Row:
    """Send so many images to a server."""
    from serve_load import send, serving

    model = make_model(folder)
    files = [path.read_bytes() for path in write_images(folder / "images", 16, 64)]
    sent = [files[number % len(files)] for number in range(requests)]
    samples = []
    with serving(model, workers=1, max_batch_size=8) as (port, process):
        for part in (sent[: requests // 10], sent[requests // 10 :]):
            _, statuses = send(port, part, clients=2)
            if set(statuses) != {200}:
                raise RuntimeError(f"The server has answered {sorted(set(statuses))}.")
            found = [of_process(one) for one in (process, *process.children(recursive=True))]
            samples.append((sum(memory for memory, _ in found), sum(files for _, files in found)))
    return {"count": requests, "units": "requests", **in_columns(*samples)}


def make_model(folder: Path) -> Path:
    """Export a tiny model, in a process of its own."""
    apart(_export, {"folder": folder / "export"})
    return folder / "export" / "weights" / "openvino" / "model.xml"


def _export(folder: Path) -> None:
    from kills import Place, export_older

    folder.mkdir()
    export_older(Place(folder, folder))


def of_process(process: psutil.Process) -> tuple[int, int]:
    """Resident memory in bytes, and number of open files."""
    return process.memory_info().rss, process.num_fds()


def in_columns(tenth: tuple[int, int], end: tuple[int, int]) -> Row:
    """Columns of two samples."""
    return {
        "memory_tenth_mb": round(tenth[0] / 1e6),
        "memory_end_mb": round(end[0] / 1e6),
        "files_tenth": tenth[1],
        "files_end": end[1],
    }


if __name__ == "__main__":
    auto_cli(long_runs)
