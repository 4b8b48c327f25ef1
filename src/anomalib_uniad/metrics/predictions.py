# SPDX-License-Identifier: Apache-2.0
"""A row per image: its score, the threshold and the decision."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from anomalib_uniad.category import paths_of
from anomalib_uniad.metrics.distributed import gather_objects
from anomalib_uniad.metrics.functional import Floats
from anomalib_uniad.metrics.thresholds import Thresholds

COLUMNS = ["path", "category", "label", "raw_score", "normalised_score", "threshold", "decision"]
_KINDS = ("normal", "anomalous")


class Predictions:
    """Collects a row for each image of a test or prediction.

    The columns are ``path``, ``category``, ``label`` (``normal`` or ``anomalous``), ``raw_score`` as the model returns
    it, ``normalised_score`` from 0 to 1 with the threshold at 0.5 (unless anomalib's sensitivity moves it),
    ``threshold`` in raw scores and ``decision``. Cells are empty where something is unknown.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []

    def add(
        self, batch: Any, raw: Tensor | None, categories: Sequence[str], threshold: float, of_categories: Thresholds
    ) -> None:
        """Add the images of a batch.

        Args:
            batch (Any): Batch of B images after post-processing.
            raw (Tensor | None): Scores ``(B,)`` as the model returned them; ``None`` if they are unknown.
            categories (Sequence[str]): Category of each image.
            threshold (float): The global threshold in raw scores; NaN if there is none.
            of_categories (Thresholds): Thresholds that are used in its place.
        """
        count = len(categories)
        paths = paths_of(batch)
        labels = _kinds(batch.gt_label, count)
        decisions = _kinds(batch.pred_label, count)
        raws, scores = _numbers(raw, count), _numbers(batch.pred_score, count)
        for row, category in enumerate(categories):
            used = of_categories.get(category, {}).get("image", threshold)
            self._rows.append(
                (str(paths[row] or ""), category, labels[row], raws[row], scores[row], used, decisions[row])
            )

    def table(self) -> pd.DataFrame:
        """Return the rows of all processes; with several, each of them must call this.

        Returns:
            pd.DataFrame: The table, in the order of the images if there is one process, else by path.
        """
        parts = gather_objects(self._rows)
        self._rows = [row for rows in parts for row in rows]
        frame = pd.DataFrame(self._rows, columns=COLUMNS)
        return frame if len(parts) == 1 else frame.sort_values("path", ignore_index=True)

    def scores(self, category: str) -> tuple[Floats, Floats]:
        """Return the raw scores of a category, as far as they are known here: normal images, then defective ones."""
        rows = [(row[2], row[3]) for row in self._rows if row[1] == category and not math.isnan(row[3])]
        normal, defective = (np.array([score for label, score in rows if label == kind]) for kind in _KINDS)
        return normal, defective


def _kinds(values: Any, count: int) -> list[str]:
    """Words for labels; empty ones without labels, or with scores in their place, as anomalib has it sometimes."""
    if values is None or values.numel() != count or not bool(((values == 0) | (values == 1)).all()):
        return [""] * count
    return [_KINDS[int(value)] for value in values.reshape(-1).tolist()]


def _numbers(values: Any, count: int) -> list[float]:
    if values is None or values.numel() != count:
        return [float("nan")] * count
    numbers: list[float] = values.detach().reshape(-1).tolist()
    return numbers
