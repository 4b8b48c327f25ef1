# SPDX-License-Identifier: Apache-2.0
"""Ways to compute the seven metrics, all with the same names of the values."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from anomalib.data import ImageBatch

from anomalib_uniad.category import categories_of
from anomalib_uniad.metrics import functional, seven_metrics
from anomalib_uniad.metrics.category_metrics import CategoryMetrics
from anomalib_uniad.metrics.scores import LEVELS, Level, ScorePool

from .command import MethodName
from .maps import GeneratedMaps

Values = dict[str, float]
POOLED = "all"


class Method(Protocol):
    """A way to compute the seven metrics."""

    def update(self, batch: ImageBatch) -> None:
        """Take a batch."""

    def compute(self) -> Values:
        """Return ``<metric>/<category>`` -> value."""


def method(name: MethodName, maps: GeneratedMaps) -> Method:
    """Make a method, which imports what it needs.

    Args:
        name (MethodName): Its name.
        maps (GeneratedMaps): What it will get, with all batches.

    Returns:
        Method: The method.

    Raises:
        ModuleNotFoundError: If scikit-learn is wanted but not installed.
    """
    expected = Counter(maps.category_of(index) for index in range(maps.images))
    if name in ("per_category", "shuffled"):
        return _Ours(SimpleNamespace(categories=maps.names), expected if name == "per_category" else None)
    if name == "pooled":
        return _Ours(SimpleNamespace(categories=[POOLED]), None)
    if name == "functions":
        return _Functions(expected)
    return _Sklearn(expected) if name == "sklearn" else _Anomalib()


class _Ours:
    """This package's metrics, as the evaluator calls them."""

    def __init__(self, datamodule: Any, expected: Counter[str] | None) -> None:
        self._metrics = CategoryMetrics(seven_metrics(), datamodule, expected=expected)
        self.update = self._metrics.update

    def compute(self) -> Values:
        values = self._metrics.compute().values
        return {f"{metric}/{category}": float(value) for (metric, category), value in values.items()}


class _ByCategory:
    """Gets images category by category, and computes the values of each with its last image."""

    def __init__(self, expected: Counter[str]) -> None:
        self._left = Counter(expected)
        self._values: Values = {}

    def update(self, batch: ImageBatch) -> None:
        names = categories_of(batch.image_path or [])
        for name in dict.fromkeys(names):
            rows = slice(names.index(name), names.index(name) + names.count(name))
            self.add(batch, rows)
            self._left[name] -= rows.stop - rows.start
            if not self._left[name]:
                for level in LEVELS:
                    values = self.finish(level)
                    self._values |= {f"{level}_{metric}/{name}": float(value) for metric, value in values.items()}

    def compute(self) -> Values:
        return self._values

    def add(self, batch: ImageBatch, rows: slice) -> None:
        raise NotImplementedError

    def finish(self, level: Level) -> Values:
        raise NotImplementedError


class _Functions(_ByCategory):
    """The functions below this package's metrics, without Lightning, torchmetrics and anomalib."""

    def __init__(self, expected: Counter[str]) -> None:
        super().__init__(expected)
        self._pools: dict[Level, ScorePool] = {}

    def add(self, batch: ImageBatch, rows: slice) -> None:
        self._pools = self._pools or {level: ScorePool() for level in LEVELS}
        scores, labels, maps, masks = (getattr(batch, name)[rows] for fields in LEVELS.values() for name in fields)
        self._pools["image"].add(scores, labels)
        self._pools["pixel"].add_maps(maps, masks)

    def finish(self, level: Level) -> Values:
        ranking = self._pools.pop(level).rank()
        values = {
            "AUROC": functional.auroc(ranking),
            "AP": functional.average_precision(ranking),
            "F1Max": functional.f1_max(ranking),
        }
        return values if level == "image" else {**values, "AUPRO": functional.aupro(ranking)}


class _Sklearn(_ByCategory):
    """scikit-learn's functions, on the maps of one category at a time."""

    def __init__(self, expected: Counter[str]) -> None:
        super().__init__(expected)
        try:
            import sklearn.metrics
        except ModuleNotFoundError as error:  # pragma: no cover
            msg = "The method sklearn needs scikit-learn: pip install scikit-learn"
            raise ModuleNotFoundError(msg) from error
        import scipy.ndimage

        self._sklearn, self._ndimage = sklearn.metrics, scipy.ndimage
        self._parts: dict[Level, list[tuple[np.ndarray, np.ndarray]]] = {level: [] for level in LEVELS}

    def add(self, batch: ImageBatch, rows: slice) -> None:
        for level, fields in LEVELS.items():
            scores, targets = (getattr(batch, name)[rows].numpy() for name in fields)
            self._parts[level].append((scores, targets))

    def finish(self, level: Level) -> Values:
        scores, targets = (np.concatenate(parts) for parts in zip(*self._parts[level], strict=True))
        self._parts[level].clear()
        score, target = scores.ravel(), targets.ravel()
        precision, recall, _ = self._sklearn.precision_recall_curve(target, score)
        total = precision + recall
        f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
        values = {
            "AUROC": self._sklearn.roc_auc_score(target, score),
            "AP": self._sklearn.average_precision_score(target, score),
            "F1Max": f1.max(),
        }
        return values if level == "image" else {**values, "AUPRO": self._aupro(score, targets)}

    def _aupro(self, score: np.ndarray, masks: np.ndarray, limit: float = 0.3) -> float:
        """Area under the ROC curve in which each region weighs 1: its true positive rate is the mean overlap."""
        # A structure that connects pixels across corners, but not images.
        structure = np.zeros((3, 3, 3), bool)
        structure[1] = True
        labels, _ = self._ndimage.label(masks, structure)
        labels = labels.ravel()
        sizes = np.bincount(labels).astype(float)
        sizes[0] = 1  # each normal pixel
        weights = (1 / sizes)[labels]
        false, overlap, _ = self._sklearn.roc_curve(labels > 0, score, sample_weight=weights, drop_intermediate=False)
        end = np.searchsorted(false, limit, side="right")
        at_limit = np.interp(limit, false, overlap)
        false, overlap = np.append(false[:end], limit), np.append(overlap[:end], at_limit)
        return float(self._sklearn.auc(false, overlap) / limit)


class _Anomalib:
    """anomalib's classes in its evaluator, which pools all categories."""

    def __init__(self) -> None:
        from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max

        metrics: list[Any] = [cls(fields=LEVELS["image"], prefix="image_") for cls in (AUROC, AUPR, F1Max)]
        metrics += [cls(fields=LEVELS["pixel"], prefix="pixel_") for cls in (AUROC, AUPR, F1Max, AUPRO)]
        self._evaluator: Any = Evaluator(test_metrics=metrics)
        self._evaluator.metrics_to_cpu(self._evaluator.test_metrics)

    def update(self, batch: ImageBatch) -> None:
        self._evaluator.on_test_batch_end(None, None, None, batch, 0)

    def compute(self) -> Values:
        values = {metric.name: metric.compute().item() for metric in self._evaluator.test_metrics}
        # Its AUPR is what others call AP, the sum over steps.
        names = {f"{level}_AUPR": f"{level}_AP" for level in LEVELS}
        return {f"{names.get(name, name)}/{POOLED}": value for name, value in values.items()}
