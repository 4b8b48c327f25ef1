# SPDX-License-Identifier: Apache-2.0
"""What heatmaps cost a prediction, and what memory and open files do over many images.

python benchmarks/long_predictions.py MODEL IMAGES
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from jsonargparse import auto_cli

from anomalib_uniad.benchmark.machine import processor
from anomalib_uniad.inference.images import find_images
from harness import RESULTS, add_rows, at_least, in_turn, origin, ratios, show


def long_predictions(
    model: Path, images: Path, count: int = 50_000, few: int = 1_000, rounds: int = 5, output_dir: Path = RESULTS
) -> None:
    """Measure `anomalib-uniad predict`; writes ``long_predictions.csv``.

    Args:
        model: Exported file.
        images: Folder of images, which are linked again and again under other names.
        count: Images of the long prediction, with heatmaps.
        few: Images of the short ones, with and without heatmaps in turn.
        rounds: How often these are repeated.
        output_dir: Folder of the table.
    """
    at_least(1, count=count, few=few, rounds=rounds)
    sources = [image.path for image in find_images([images], leave_out=[])]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        short, long = (_link(sources, folder / what, number) for what, number in (("few", few), ("images", count)))
        ways = {
            "with": partial(_predict, model, short, folder / "with", heatmaps=True),
            "without": partial(_predict, model, short, folder / "without", heatmaps=False),
        }
        for taken in in_turn(ways, rounds, "in turn"):
            seconds = {way: [row["seconds"] for row in rows] for way, rows in taken.items()}
        row = _predict(model, long, folder / "long", heatmaps=True)
        rows = len((folder / "long" / "predictions.csv").read_text(encoding="utf-8").splitlines()) - 1
        pictures = sum(1 for _ in (folder / "long" / "heatmaps").rglob("*.jpg"))
    row |= {"model": model.name, "images": count, "rows": rows, "heatmaps": pictures, "few": few}
    row |= ratios("without", seconds["without"], seconds["with"])
    table = output_dir / "long_predictions.csv"
    about = origin(f"{processor()}, {os.cpu_count()} threads", packages=("openvino",))
    add_rows(table, [row | about], same=("model", "images", "device"))
    show(table, list(row))


def _link(sources: Sequence[Path], folder: Path, count: int) -> Path:
    """Fill a folder with so many images."""
    for number in range(count):
        file = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(sources[number % len(sources)].resolve())
    return folder


def _predict(model: Path, images: Path, output: Path, heatmaps: bool) -> dict[str, Any]:
    """Seconds of a prediction; its memory and open files after a tenth of the time, at half, and at the end."""
    program = Path(sys.executable).with_name("anomalib-uniad")
    command = [str(program), "predict", str(model), str(images), "--output", str(output)]
    start, samples = time.perf_counter(), []
    with subprocess.Popen(
        [*command, "--heatmaps", str(heatmaps).lower(), "--overwrite", "true"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                samples.append((watched.memory_info().rss, watched.num_fds()))
            except psutil.Error:  # it has just ended
                break
            time.sleep(0.5)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed.")
    places = {"tenth": len(samples) // 10, "half": len(samples) // 2, "end": max(0, len(samples) - 4)}
    memory = {f"memory_{when}_mb": round(samples[place][0] / 1e6) for when, place in places.items()}
    files = {f"files_{when}": samples[place][1] for when, place in places.items()}
    return {"seconds": time.perf_counter() - start, **memory, **files}


if __name__ == "__main__":
    auto_cli(long_predictions)
