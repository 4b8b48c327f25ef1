# SPDX-License-Identifier: Apache-2.0
"""Folders of runs as evaluations leave them, for the tests of reports."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Values = Mapping[str, Mapping[str, float | None]]


def write_run(
    folder: Path,
    values: Values,
    *,
    reasons: Mapping[str, Mapping[str, str]] | None = None,
    number: str = "",
    images: int = 8,
    **about: Any,
) -> Path:
    """Write metrics.json and metrics.csv of a test.

    Args:
        folder: Folder of the run.
        values: Category -> metric -> value, ``None`` where it is undefined.
        reasons: Category -> metric -> why.
        number: What the names of the files have in addition, "-1" for a second test.
        images: Number of images of each category.
        about: What the run is, in addition to some defaults.

    Returns:
        ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = {"model": "UniAD", "dataset": "line", "epochs": 2, "thresholds": "validation images", "seed": 0}
    run |= {"pixel_resolution": "model 64 x 64", "device": "cpu", "versions": "anomalib 2.7.0", "command": "anomalib"}
    run |= about
    metrics = list(dict.fromkeys(metric for found in values.values() for metric in found))
    reasons = reasons or {}
    mean = {}
    for metric in metrics:
        defined = [v for found in values.values() if (v := found.get(metric)) is not None]
        mean[metric] = sum(defined) / len(defined) if defined else None
    categories = {
        name: {
            "images": images,
            "values": dict(found),
            "reasons": dict(reasons.get(name, {})),
            "thresholds": {"image": 1.25, "pixel": 3.5},
        }
        for name, found in values.items()
    }
    content = {"run": run, "metrics": metrics, "categories": categories, "mean": mean}
    (folder / f"metrics{number}.json").write_text(json.dumps(content))
    with (folder / f"metrics{number}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["category", *metrics, "note", *run])
        for name, found in [*values.items(), ("mean", mean)]:
            note = "; ".join(f"{metric}: {reason}" for metric, reason in reasons.get(name, {}).items())
            cells = ["" if found.get(metric) is None else found[metric] for metric in metrics]
            writer.writerow([name, *cells, note, *run.values()])
    return folder


def write_predictions(
    folder: Path, rows: Sequence[tuple[str, str, object, object]], number: str = "", header: str | None = None
) -> Path:
    """Write predictions.csv from rows of path, category, label and decision."""
    file = folder / f"predictions{number}.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        head = header or "path,category,label,raw_score,normalised_score,threshold,decision"
        writer.writerow(head.split(","))
        for path, category, label, decision in rows:
            writer.writerow([path, category, label, 1.5, 0.5, 1.25, decision])
    return file


def write_picture(path: Path, size: tuple[int, int] = (48, 24), seed: int = 0, noise: bool = True) -> Path:
    """Write an RGB picture of a width and a height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels if noise else np.full_like(pixels, 200)).save(path)
    return path
