# SPDX-License-Identifier: Apache-2.0
"""Folders of benchmarks as their trainings leave them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_uniad.benchmark.trainings import RESULT, SPEED, Training, write_json
from anomalib_uniad.metrics.run_files import COUNTS

Values = Mapping[str, Sequence[float | None]]  # category -> image and pixel AUROC


def write_training(output: Path, cell: tuple[str, str, str, int], values: Values, **result: Any) -> Training:
    """Write metrics.csv, result.json and speed.json of a training.

    Args:
        output: Folder of the benchmark.
        cell: Data, method, mode, seed.
        values: Image and pixel AUROC of each category.
        result: What differs from the defaults.
    """
    data, method, mode, seed = cell
    category = next(iter(values)) if mode == "separate" else ""
    folder = output / data / method / mode / f"seed{seed}" / category
    folder.mkdir(parents=True)
    rows: dict[str, Any] = {"category": [*values, "mean"]}
    for index, name in enumerate(("image_AUROC", "pixel_AUROC")):
        column = [row[index] for row in values.values()]
        rows[name] = [*column, pd.Series(column, dtype=float).mean()]
    frame = pd.DataFrame(rows).assign(note="", kind=["category"] * len(values) + ["mean"])
    frame = frame.assign(**dict.fromkeys(COUNTS, 4), epochs=3, seed=seed, device="cpu", versions="v", command="worker")
    frame.to_csv(folder / "metrics.csv", index=False)
    costs = {"train_seconds": 10.0, "seconds": 20.0, "peak_memory": 1000, "peak_gpu_memory": None, "size_on_disk": 500}
    about = {"metrics": "metrics.csv", "device": "processor", "exported": "model.xml", "export_error": ""}
    write_json(folder / RESULT, {**costs, **about, "validations": [], **result})
    write_json(folder / SPEED, {"latency_ms": 5.0, "images_per_second": 200.0})
    return Training(method, data, mode, seed, category, folder, {})
