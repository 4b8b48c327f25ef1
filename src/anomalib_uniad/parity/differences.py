# SPDX-License-Identifier: Apache-2.0
"""Metrics of a model, and its differences to torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import ImageBatch

from anomalib_uniad.errors import InputError
from anomalib_uniad.metrics import standard_metrics
from anomalib_uniad.metrics.category_metrics import CategoryMetrics

from .models import ImageResult, Kind

METRICS = tuple(metric.name for metric in standard_metrics())


class Quality:
    """The metrics of a model, means over the categories, and the ranges of its maps and scores.

    Args:
        datamodule (Any): Where the images are from; tells their categories.
        expected (Mapping[str, int]): Number of images of each category.
    """

    def __init__(self, datamodule: Any, expected: Mapping[str, int]) -> None:
        self._metrics = CategoryMetrics(standard_metrics(), datamodule, expected=expected)
        self._scores: list[float] = []
        self._map_ends: list[float] = []

    def update(self, batch: ImageBatch, score: float, anomaly_map: np.ndarray) -> None:
        """Add an image: a batch with label and, if there is one, mask ``(1, H, W)``, its score and map ``(H, W)``."""
        self._scores.append(score)
        self._map_ends += [float(anomaly_map.min()), float(anomaly_map.max())]
        self._metrics.update(
            ImageBatch(
                image=torch.zeros(1, 1, 1, 1).expand(1, 3, *anomaly_map.shape),  # takes no memory
                image_path=batch.image_path,
                gt_label=batch.gt_label,
                gt_mask=batch.gt_mask,
                pred_score=torch.tensor([score]),
                anomaly_map=torch.from_numpy(anomaly_map)[None],
            )
        )

    @property
    def score_range(self) -> float:
        """Largest minus smallest score; 1 if all are equal."""
        return max(self._scores) - min(self._scores) or 1.0

    @property
    def map_range(self) -> float:
        """Largest minus smallest value of all maps; 1 if all are equal."""
        return max(self._map_ends) - min(self._map_ends) or 1.0

    def compute(self) -> dict[str, float]:
        """Values by name; NaN where a metric is undefined."""
        results = self._metrics.compute()
        means = {name: results.mean(name) for name in METRICS}
        return {name: float("nan") if mean is None else float(mean) for name, mean in means.items()}

    def changes(self, reference: "Quality") -> dict[str, float | None]:
        """Columns with each metric and its change, and the largest change of both AUROCs in a category."""
        before = reference.compute()
        columns: dict[str, float | None] = {}
        for name, value in self.compute().items():
            columns |= {name: value, f"{name}_change": value - before[name]}
        own, other = self._metrics.compute(), reference._metrics.compute()
        for name in ("image_AUROC", "pixel_AUROC"):
            values, expected = own.of(name), other.of(name)
            found = [float(value) - float(expected[name]) for name, value in values.items() if name in expected]
            columns[f"{name}_largest_change"] = max(found, key=abs, default=None)
        return columns


def difference(own: ImageResult, reference: ImageResult, kind: Kind) -> dict[str, float | None]:
    """Compare the results of two models for one image.

    Args:
        own (ImageResult): Of the model.
        reference (ImageResult): Of torch.
        kind (Kind): What to compare.

    Returns:
        dict[str, float | None]: Largest and mean difference of the maps, difference of the scores, and whether the
        decision is another one, ``None`` without decisions.

    Raises:
        ValueError: If the maps differ in size.
    """
    maps = own.maps[kind], reference.maps[kind]
    if maps[0].shape != maps[1].shape:
        sizes = [" x ".join(map(str, one.shape)) for one in maps]
        msg = f"Its maps are of {sizes[0]} pixels, those of the checkpoint of {sizes[1]}: it is of another model."
        raise InputError(msg)
    difference_of_maps = np.abs(maps[0].astype(np.float64) - maps[1])
    decided = own.anomalous is not None and reference.anomalous is not None
    return {
        "map_max": float(difference_of_maps.max()),
        "map_mean": float(difference_of_maps.mean()),
        "score": abs(own.scores[kind] - reference.scores[kind]),
        "flipped": own.anomalous != reference.anomalous if decided else None,
    }


def difference_columns(differences: Sequence[Mapping[str, float | None]], reference: Quality) -> dict[str, Any]:
    """Summarise the differences of all images as parts of the ranges in torch, and count decisions that flip."""
    frame = pd.DataFrame(differences)
    flipped = frame["flipped"].dropna()
    return {
        "map_difference_max": frame["map_max"].max() / reference.map_range,
        "map_difference_mean": frame["map_mean"].mean() / reference.map_range,  # all maps are of one size
        "score_difference_max": frame["score"].max() / reference.score_range,
        "score_difference_mean": frame["score"].mean() / reference.score_range,
        "flipped_decisions": int(flipped.sum()) if len(flipped) else None,
    }
