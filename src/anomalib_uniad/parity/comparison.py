# SPDX-License-Identifier: Apache-2.0
"""Differences between a model and the torch model, added up image by image."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch

from anomalib_uniad.metrics.exact import seven_metrics
from anomalib_uniad.metrics.per_category import CategoryMetrics

from .predictors import Kind, Prediction

METRICS = tuple(metric.name for metric in seven_metrics())


class Quality:
    """The seven metrics of a model, means over the categories.

    Args:
        datamodule (Any): Where the images are from; tells their categories.
        expected (Mapping[str, int]): Number of images of each category.
    """

    def __init__(self, datamodule: Any, expected: Mapping[str, int]) -> None:
        self._metrics = CategoryMetrics(seven_metrics(), datamodule, expected=expected)

    def update(self, batch: ImageBatch, score: float, anomaly_map: np.ndarray) -> None:
        """Add an image.

        Args:
            batch (ImageBatch): The image, with label and, if there is one, mask ``(1, H, W)`` of the map's size.
            score (float): Its score.
            anomaly_map (np.ndarray): Its map ``(H, W)``.
        """
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

    def compute(self) -> dict[str, float]:
        """Values by name; NaN where a metric is undefined."""
        results = self._metrics.compute()
        means = {name: results.mean(name) for name in METRICS}
        return {name: float("nan") if mean is None else float(mean) for name, mean in means.items()}

    def of_categories(self, name: str) -> dict[str, float]:
        """Values of a metric by category, where it is defined."""
        return {category: float(value) for category, value in self._metrics.compute().of(name).items()}


class Range:
    """Smallest and largest value so far."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def update(self, values: Any) -> None:
        """Add values."""
        self.low, self.high = min(self.low, float(np.min(values))), max(self.high, float(np.max(values)))

    @property
    def width(self) -> float:
        """Width; 1 if all values are equal."""
        return self.high - self.low or 1.0


class Differences:
    """Differences of maps, scores and decisions to those of torch, on the same images."""

    def __init__(self) -> None:
        self._largest, self._sum, self._values = 0.0, 0.0, 0
        self._scores: list[float] = []
        self._decisions: Counter[bool] = Counter()

    def update(self, own: Prediction, reference: Prediction, kind: Kind) -> None:
        """Add an image.

        Raises:
            ValueError: If the maps differ in size.
        """
        maps = own.maps[kind], reference.maps[kind]
        if maps[0].shape != maps[1].shape:
            sizes = [" x ".join(map(str, one.shape)) for one in maps]
            msg = f"Its maps are of {sizes[0]} pixels, those of the checkpoint of {sizes[1]}: it is of another model."
            raise ValueError(msg)
        difference = np.abs(maps[0].astype(np.float64) - maps[1])
        self._largest = max(self._largest, float(difference.max()))
        self._sum += float(difference.sum())
        self._values += difference.size
        self._scores.append(abs(own.scores[kind] - reference.scores[kind]))
        if own.anomalous is not None and reference.anomalous is not None:
            self._decisions[own.anomalous != reference.anomalous] += 1

    def columns(self, map_range: Range, score_range: Range) -> dict[str, float | None]:
        """Columns of the row.

        Args:
            map_range (Range): Of torch's maps.
            score_range (Range): Of torch's scores.
        """
        return {
            "map_difference_max": self._largest / map_range.width,
            "map_difference_mean": self._sum / self._values / map_range.width,
            "score_difference_max": max(self._scores) / score_range.width,
            "score_difference_mean": float(np.mean(self._scores)) / score_range.width,
            "flipped_decisions": self._decisions[True] if self._decisions else None,
        }


def changes(own: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Values of the metrics and what they are more than the reference's.

    Example:
        >>> changes({"image_AUROC": 0.75}, {"image_AUROC": 0.5})
        {'image_AUROC': 0.75, 'image_AUROC_change': 0.25}
    """
    columns: dict[str, float] = {}
    for name, value in own.items():
        columns |= {name: value, f"{name}_change": value - reference[name]}
    return columns


def category_changes(own: Quality, reference: Quality) -> dict[str, float | None]:
    """Of both AUROCs the change in the category in which it changes most; ``None`` if they are undefined."""
    columns: dict[str, float | None] = {}
    for name in ("image_AUROC", "pixel_AUROC"):
        values, before = own.of_categories(name), reference.of_categories(name)
        found = [value - before[category] for category, value in values.items() if category in before]
        columns[f"{name}_largest_change"] = max(found, key=abs, default=None)
    return columns


def number_of_images(categories: Sequence[str]) -> Mapping[str, int]:
    """Number of images of each category."""
    return Counter(categories)
