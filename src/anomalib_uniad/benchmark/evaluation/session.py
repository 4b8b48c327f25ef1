# SPDX-License-Identifier: Apache-2.0
"""One run of the benchmark: measures, compares, writes and shows."""

import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.markdown import Markdown
from tqdm import tqdm

from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.benchmark.training.rows import describe_device
from anomalib_uniad.metrics.run_files import versions

from . import case, tables
from .command import MethodName
from .figure import draw
from .maps import GeneratedMaps

logger = logging.getLogger(__name__)

NAME = "evaluation_speed"
SAME = ("device", "method", "images", "image_size", "categories")
# What the values of a method are compared with: the same images in the same groups.
REFERENCES: Mapping[str, str] = {
    **dict.fromkeys(("functions", "shuffled", "sklearn"), "per_category"),
    "anomalib": "pooled",
}
# Largest differences of exact values, to scikit-learn: of AUPRO, and of the others.
TOLERANCES = {"AUPRO": 1e-4, "": 1e-6}


class Session:
    """Measures all methods on all sizes.

    Args:
        output_dir (Path): Folder of the results.
        batch_size (int): Images per batch.
        threads (int): Threads of each measurement.
        time_limit (float): Seconds of each measurement.
        memory_limit (float): GiB of each measurement.
        seed (int): Seed of the maps.
        run (Callable[..., dict[str, Any]]): Measures one. Defaults to a process of its own for each.
    """

    def __init__(
        self,
        output_dir: Path,
        batch_size: int,
        threads: int,
        time_limit: float,
        memory_limit: float,
        seed: int,
        run: Callable[..., dict[str, Any]] = case.run,
    ) -> None:
        self._path = output_dir / f"{NAME}.csv"
        self._common = {"batch_size": batch_size, "threads": threads, "memory_limit": memory_limit, "seed": seed}
        self._time_limit = time_limit
        self._measure = run

    def run(self, sizes: Sequence[tuple[int, int, int]], methods: Sequence[MethodName]) -> None:
        """Measure, and write each row as soon as it is known.

        Args:
            sizes (Sequence[tuple[int, int, int]]): Images, height and width, categories.
            methods (Sequence[MethodName]): The methods; the first one is what others are compared with.
        """
        with tqdm(total=len(sizes) * len(methods), desc="Metrics") as bar:
            for images, image_size, categories in sizes:
                done: dict[str, dict[str, Any]] = {}
                for method in methods:
                    bar.set_postfix_str(f"{method}, {images} images, {image_size} px")
                    size = {"images": images, "image_size": image_size, "categories": categories}
                    done[method] = self._measure({"method": method, **size, **self._common}, self._time_limit)
                    one_category = GeneratedMaps(images, image_size, categories).category_bytes
                    row = {"method": method, **size, **compared(method, methods[0], done)}
                    self._save({**row, "category_bytes": one_category, **self._common})
                    bar.update()
        frame = pd.read_csv(self._path)
        draw(frame, self._path.with_suffix(".png"))
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(Markdown(tables.speed(frame)))
        console.print(f"Written to {self._path} and {self._path.with_suffix('.png')}.", soft_wrap=True)

    def _save(self, row: Mapping[str, Any]) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(int(self._common["threads"]))
        device = describe_device(torch.device("cpu"))
        torch.set_num_threads(threads)
        others = "; ".join(f"{package} {version(package)}" for package in ("numpy", "scikit-learn"))
        frame = pd.DataFrame([row]).drop(columns="threads")
        frame = frame.assign(device=device, versions=f"{versions()}; {others}", command=_command())
        add_rows(self._path, frame, SAME)


def compared(method: str, first: str, done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compare a measurement with those before it.

    Args:
        method (str): The method.
        first (str): The method whose time is 1.
        done (Mapping[str, Mapping[str, Any]]): Method -> what was measured, on the same images.

    Returns:
        dict[str, Any]: Columns of the row. Those that are not known are empty, and ``note`` says why.
    """
    own = done[method]
    columns = {name: own.get(name) for name in ("seconds", "processor_seconds", "peak_memory_bytes")}
    base = done[first].get("processor_seconds")
    time = own.get("processor_seconds")
    columns["ratio"] = time / base if time and base else None
    reference = REFERENCES.get(method, "")
    values, others = own.get("values"), done.get(reference, {}).get("values")
    columns |= {"compared_with": None, "difference": None, "difference_AUPRO": None}
    if values and others:
        found = differences(values, others)
        columns |= {"compared_with": reference, "difference": found[""], "difference_AUPRO": found["AUPRO"]}
        if method == "sklearn" and any(found[kind] > limit for kind, limit in TOLERANCES.items()):
            logger.warning("Values differ from those of scikit-learn: %s", found)
    return {**columns, "note": own.get("note", "")}


def differences(values: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """Largest difference of AUPRO, and of the other metrics.

    Args:
        values (Mapping[str, float]): ``<metric>/<category>`` -> value.
        others (Mapping[str, float]): The same of another method.

    Returns:
        dict[str, float]: ``"AUPRO"`` and, of all others, ``""`` -> difference.

    Raises:
        ValueError: If the methods have different values.

    Example:
        >>> differences({"pixel_AUPRO/a": 0.5, "pixel_AP/a": 1.0}, {"pixel_AUPRO/a": 0.75, "pixel_AP/a": 1.0})
        {'AUPRO': 0.25, '': 0.0}
    """
    if set(values) != set(others):
        msg = f"Values are there for one of two methods only: {', '.join(sorted(set(values) ^ set(others)))}."
        raise ValueError(msg)
    largest = {"AUPRO": 0.0, "": 0.0}
    for name, value in values.items():
        kind = "AUPRO" if "AUPRO" in name else ""
        largest[kind] = max(largest[kind], abs(value - others[name]))
    return largest


def _command() -> str:
    name = Path(sys.argv[0]).name
    program = ["python", "-m", "anomalib_uniad.benchmark.evaluation"] if name == "__main__.py" else [name]
    return shlex.join([*program, *sys.argv[1:]])
