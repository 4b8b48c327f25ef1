# SPDX-License-Identifier: Apache-2.0
"""Metrics per category: AUROC, AP, F1max, TPR@FPR and AUPRO from an exact ranking of the scores, others by anomalib."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPR, AUPRO, AUROC, AnomalibMetric, F1Max
from torchmetrics.classification import BinaryROC

from anomalib_uniad.category import categories_of, known_categories, paths_of
from anomalib_uniad.errors import InputError
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.metrics import functional
from anomalib_uniad.metrics.batches import select
from anomalib_uniad.metrics.functional import Ranking
from anomalib_uniad.metrics.original_size import PixelResolution, judged
from anomalib_uniad.metrics.scores import LEVELS, Level, ScorePool, gather_objects, world_size

# Why a metric is undefined if one of its fields is not in the batches.
_NO_TARGETS = {"gt_label": "no labels", "gt_mask": "no masks"}
_LACKING = {**_NO_TARGETS, "pred_label": "no decisions", "pred_mask": "no decisions"}


class AP(AUPR):
    """Average precision: anomalib's ``AUPR`` under the name that the field has for it.

    Scores stay as they are: torchmetrics would put each batch that leaves the range from 0 to 1 through a sigmoid, and
    no other.

    Args:
        fields (Sequence[str] | None): Fields of the batch with scores and targets. Defaults to ``None``, which is not
            allowed.
        prefix (str): Put before the name. Defaults to ``""``.
        strict (bool): Whether a batch without these fields is an error. Defaults to ``True``.
        **kwargs (Any): Further arguments of ``AUPR``.

    Raises:
        ValueError: If there are no fields.

    Examples:
        >>> AP(fields=["pred_score", "gt_label"], prefix="image_").name
        'image_AP'
    """

    def __init__(
        self, fields: Sequence[str] | None = None, prefix: str = "", strict: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(fields=fields, prefix=prefix, strict=strict, **{"normalization": None, **kwargs})


class TPRAtFPR(AnomalibMetric, BinaryROC):  # type: ignore[misc]  # `update` takes a batch
    """Highest true positive rate of all thresholds with a false positive rate of at most a limit.

    Of images, it is the share of the defective ones that are found at this rate of false alarms.

    Args:
        fields (Sequence[str] | None): Fields of the batch with scores and targets. Defaults to ``None``, which is not
            allowed.
        prefix (str): Put before the name. Defaults to ``""``.
        strict (bool): Whether a batch without these fields is an error. Defaults to ``True``.
        fpr_limit (float): Highest false positive rate. Defaults to ``0.05``.
        **kwargs (Any): Further arguments of torchmetrics' ``BinaryROC``.

    Raises:
        ValueError: If there are no fields, or the limit is not between 0 and 1.

    Examples:
        >>> TPRAtFPR(fields=["pred_score", "gt_label"], prefix="image_", fpr_limit=0.02).name
        'image_TPR@FPR2'
    """

    def __init__(
        self,
        fields: Sequence[str] | None = None,
        prefix: str = "",
        strict: bool = True,
        fpr_limit: float = 0.05,
        **kwargs: Any,
    ) -> None:
        if not 0 <= fpr_limit <= 1:
            raise InputError(f"fpr_limit must be between 0 and 1, got {fpr_limit}.")
        super().__init__(fields=fields, prefix=prefix, strict=strict, **{"normalization": None, **kwargs})
        self.fpr_limit = fpr_limit
        self.name = f"{prefix}TPR@FPR{100 * fpr_limit:g}"

    def compute(self) -> Any:
        """Compute the rate; ``None`` without any update if this is no error."""
        curve = super().compute()
        if curve is None:
            return None
        false, true, _ = curve
        return true[false <= self.fpr_limit].max()


def standard_metrics() -> list[AnomalibMetric]:
    """Return the metrics that are reported: those of the field, and the share of defective images that are found.

    Returns:
        list[AnomalibMetric]: image AUROC, AP, F1max, TPR@FPR2, TPR@FPR5; pixel AUROC, AP, F1max, AUPRO; undefined, not
            an error, where a model returns no scores or maps.

    Examples:
        >>> [metric.name for metric in standard_metrics()][2:6]
        ['image_F1Max', 'image_TPR@FPR2', 'image_TPR@FPR5', 'pixel_AUROC']
    """
    image: dict[str, Any] = {"fields": LEVELS["image"], "prefix": "image_", "strict": False}
    pixel: dict[str, Any] = {"fields": LEVELS["pixel"], "prefix": "pixel_", "strict": False}
    return [
        *(cls(**image) for cls in (AUROC, AP, F1Max)),
        *(TPRAtFPR(**image, fpr_limit=limit) for limit in (0.02, 0.05)),
        *(cls(**pixel) for cls in (AUROC, AP, F1Max, AUPRO)),
    ]


@dataclass
class Results:
    """Metrics of each category.

    Attributes:
        metrics (list[str]): Names of the metrics.
        categories (list[str]): Names of the categories.
        values (dict[tuple[str, str], float]): (metric, category) -> value, only where the metric is defined.
        reasons (dict[tuple[str, str], str]): (metric, category) -> why the metric is undefined there.
        images (dict[str, int]): Number of images of each category.
    """

    metrics: list[str]
    categories: list[str]
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def of(self, metric: str) -> dict[str, float]:
        """Return the values of a metric by category, without the categories in which it is undefined."""
        return {name: self.values[metric, name] for name in self.categories if (metric, name) in self.values}

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric over the categories in which it is defined; ``None`` if there are none."""
        values = list(self.of(metric).values())
        return float(np.mean(values)) if values else None

    def logged(self) -> dict[str, torch.Tensor]:
        """Return what is logged: the means, and with several categories ``<metric>/<category>`` as well."""
        named: dict[str, float] = {}
        for metric in self.metrics:
            mean = self.mean(metric)
            if mean is not None:
                named[metric] = mean
            if len(self.categories) > 1:
                named.update({f"{metric}/{name}": value for name, value in self.of(metric).items()})
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in named.items()}


@dataclass
class _Seen:
    """What the batches of a category had; plain data, so that processes can exchange it."""

    images: int = 0
    updated: set[str] = field(default_factory=set)  # metrics of which all fields were there
    missing: dict[str, str] = field(default_factory=dict)  # metric -> field that was not there
    targets: dict[str, set[bool]] = field(default_factory=dict)  # field -> values that occurred
    levels: set[Level] = field(default_factory=set)  # with scores
    nan: set[Level] = field(default_factory=set)  # with scores that are not numbers

    def add(self, other: "_Seen") -> None:
        """Add what another process has seen."""
        self.images += other.images
        self.updated |= other.updated
        self.missing |= other.missing
        self.levels |= other.levels
        self.nan |= other.nan
        for target, values in other.targets.items():
            self.targets.setdefault(target, set()).update(values)


class CategoryMetrics:
    """Metrics of which there is a value per category.

    AUROC, AP, F1max, TPR@FPR and AUPRO of a category are computed together from one exact ranking of its scores; of
    other metrics there is a copy per category.

    Args:
        metrics (Iterable[AnomalibMetric]): The metrics; they are copied and stay as they are.
        datamodule (Any): Where the images are from; tells their categories. Defaults to ``None``.
        levels (Iterable[Level]): Levels to rank even if no metric needs it. Defaults to ``()``.
        pixel_resolution (PixelResolution): Size at which maps are compared with masks. Defaults to ``"model"``.
        mask_paths (Mapping[str, str] | None): Masks by paths of images, for the original size. Defaults to ``None``.
        expected (Mapping[str, int] | None): Number of images of each category, if all will come and each once: with
            the last image of a category its values are computed, and its scores dropped. Defaults to ``None``.
        finished (Callable | None): Called with each category, the results so far and the category's rankings by level.
            Defaults to ``None``.
        device (torch.device | None): Device over which processes exchange tensors. Defaults to ``None``, the CPU.
        what (str): What the images are for, ``"test"`` or ``"validation"``; in the reasons of what is undefined.
            Defaults to ``"test"``.
        geometry (Geometry | None): How images became the model's input. Defaults to ``None``, stretched.
    """

    def __init__(
        self,
        metrics: Iterable[AnomalibMetric],
        datamodule: Any = None,
        levels: Iterable[Level] = (),
        pixel_resolution: PixelResolution = "model",
        mask_paths: Mapping[str, str] | None = None,
        expected: Mapping[str, int] | None = None,
        finished: Callable[[str, Results, Mapping[Level, Ranking]], None] | None = None,
        device: torch.device | None = None,
        what: str = "test",
        geometry: Geometry | None = None,
    ) -> None:
        self._what = what
        self._metrics: dict[str, Any] = {metric.name: metric for metric in metrics}
        self._exact = {name: found for name, m in self._metrics.items() if (found := _exact_function(m)) is not None}
        self._needed = {level for level, _ in self._exact.values()}
        self._levels: list[Level] = [level for level in LEVELS if level in self._needed | set(levels)]
        self._datamodule = datamodule
        self._known = known_categories(datamodule)
        if datamodule is not None and not self._known:  # anomalib's Folder and others that have no categories
            self._known = [getattr(datamodule, "name", "all")]
        self._resolution: PixelResolution = pixel_resolution
        self._geometry = geometry
        self._mask_paths = mask_paths
        self._expected = expected if expected is not None and world_size() == 1 else {}
        self._finished = finished
        self._device = device
        self._pools: dict[tuple[Level, str], ScorePool] = {}
        self._copies: dict[tuple[str, str], Any] = {}
        self._seen: dict[str, _Seen] = {}
        self._results = Results(list(self._metrics), [])

    def categories(self, batch: ImageBatch) -> list[str]:
        """Return the category of each image of a batch."""
        if len(self._known) == 1:
            return self._known * len(batch)
        return categories_of(paths_of(batch), self._datamodule)

    def update(self, batch: ImageBatch) -> None:
        """Update the metrics of each category with its part of a batch.

        Args:
            batch (ImageBatch): Batch of B images after post-processing.

        Raises:
            ValueError: If the model does not return a field that a strict metric needs. Missing labels, masks and
                decisions are no error: the metric is undefined there, with a reason.
        """
        names = self.categories(batch)
        for name in dict.fromkeys(names):
            rows = [row for row, other in enumerate(names) if other == name]
            self._update(name, batch if len(rows) == len(names) else select(batch, rows))
            if self._seen[name].images == self._expected.get(name):
                self._finish(name, self._seen[name])

    def compute(self) -> Results:
        """Compute the metrics of each category, over all processes.

        Returns:
            Results: Values where the metrics are defined, and reasons where they are not.
        """
        seen: dict[str, _Seen] = {}
        for process in gather_objects(self._seen):
            for category, part in process.items():
                seen.setdefault(category, _Seen()).add(part)
        # All processes go through the same categories in the same order, as each of them waits for the others.
        categories = [*self._known, *sorted(set(seen) - set(self._known))]
        for category in categories:
            if category not in self._results.images:
                self._finish(category, seen.get(category, _Seen()))
        self._results.categories = categories
        return self._results

    def _update(self, category: str, batch: ImageBatch) -> None:
        seen = self._seen.setdefault(category, _Seen())
        seen.images += len(batch)
        metrics: dict[Level, list[str]] = {"image": [], "pixel": []}
        for name, metric in self._metrics.items():
            lacking = [key for key in metric.fields if getattr(batch, key, None) is None]
            if metric.strict and (needed := [key for key in lacking if key not in _LACKING]):
                msg = f"{name} needs {needed[0]}, but the batch does not have a value for field with name {needed[0]}."
                raise InputError(msg)
            if lacking:
                seen.missing.setdefault(name, lacking[-1])
            else:
                seen.updated.add(name)
                metrics["pixel" if metric.fields[-1] == "gt_mask" else "image"].append(name)
        self._update_level("image", category, batch, metrics["image"])
        parts: Iterable[ImageBatch] = [batch]
        if getattr(batch, "anomaly_map", None) is not None:
            parts = judged(batch, self._resolution, self._geometry, self._mask_paths)
        for pixels in parts:
            self._update_level("pixel", category, pixels, metrics["pixel"])

    def _update_level(self, level: Level, category: str, batch: Any, metrics: list[str]) -> None:
        seen = self._seen[category]
        scores, targets = (getattr(batch, name, None) for name in LEVELS[level])
        if targets is not None:
            values = seen.targets.setdefault(LEVELS[level][1], set())
            if True not in values and bool(targets.any()):
                values.add(True)
            if False not in values and not bool(targets.all()):
                values.add(False)
        if level in self._levels and scores is not None and targets is not None:
            pool = self._pools.setdefault((level, category), ScorePool())
            if level == "image":
                pool.add(scores, targets)
                seen.levels.add(level)
            elif level in self._needed or scores.shape[-2:] == targets.shape[-2:]:
                # Maps of another size than the masks are an error only if a metric needs them.
                pool.add_maps(scores, targets)
                seen.levels.add(level)
            if pool.has_nan:
                seen.nan.add(level)
        for name in metrics:
            if name not in self._exact:
                self._copy(name, category).update(batch)

    def _finish(self, category: str, seen: _Seen) -> None:
        """Compute the values of a category, and drop its scores."""
        rankings: dict[Level, Ranking] = {}
        for level in self._levels:
            if level in seen.levels - seen.nan:
                pool = self._pools.pop((level, category), None) or ScorePool()
                rankings[level] = pool.rank(self._device)
                pool.clear()
        self._results.images[category] = seen.images
        for name in self._metrics:
            reason = self._why_undefined(name, seen)
            value = float("nan")
            if not reason and name in self._exact:
                level, function = self._exact[name]
                value = function(rankings[level])
            elif not reason:
                computed = self._compute_copy(name, category)
                if isinstance(computed, torch.Tensor) and computed.numel() == 1:
                    value = float(computed)
            if value == value:
                self._results.values[name, category] = value
            else:
                self._results.reasons[name, category] = reason or "not a number"
        if self._finished is not None:
            self._finished(category, self._results, rankings)

    def _why_undefined(self, name: str, seen: _Seen) -> str:
        """Say why a metric is undefined; empty if it is defined."""
        images = f"{self._what} images"
        if not seen.images:
            return f"no {images}"
        labels, target = seen.targets.get("gt_label"), self._metrics[name].fields[-1]
        pixels = seen.targets.get("gt_mask") if target == "gt_mask" else None
        if labels == {False} and target in _NO_TARGETS and (pixels is None or len(pixels) < 2):
            return f"no defective {images}"
        if name not in seen.updated:
            lacking = seen.missing.get(name, "")
            return _LACKING.get(lacking, f"no {lacking} from the model")
        if target == "gt_label" and labels == {True}:
            return f"only defective {images}"
        if pixels is not None and len(pixels) == 1:
            return "only defective pixels" if True in pixels else "no defective pixels"
        if name in self._exact and self._exact[name][0] in seen.nan:
            return "scores that are not numbers"
        return ""

    def _copy(self, name: str, category: str) -> Any:
        if (name, category) not in self._copies:
            metric = self._metrics[name].clone().to(self._device or "cpu")
            metric.reset()
            # torchmetrics puts each batch that has a score outside [0, 1] through a sigmoid, and no other. That
            # would change the order of scores of different batches, and large scores would become equal.
            if getattr(metric, "normalization", None) == "sigmoid" and getattr(metric, "thresholds", 0) is None:
                metric.normalization = None
            self._copies[name, category] = metric
        return self._copies[name, category]

    def _compute_copy(self, name: str, category: str) -> Any:
        metric = self._copy(name, category)
        if not metric.update_called:
            # Other processes had this category. They join their lists of predictions with those of this one,
            # which must be of the same type even if there are none, and the metric must not stay out of it.
            siblings = [copy for (other, _), copy in self._copies.items() if other == name]
            for sibling in siblings:
                for state, value in sibling.metric_state.items():
                    if isinstance(value, list) and value:
                        setattr(metric, state, [value[0][:0]])
            metric._update_count = 1
        return metric.compute()


def _exact_function(metric: Any) -> tuple[Level, Callable[[Ranking], float]] | None:
    """Return the level of a metric and its function of a ranking; ``None`` if it is not computed from a ranking."""
    levels = [level for level, fields in LEVELS.items() if tuple(metric.fields) == fields]
    binned = getattr(metric, "thresholds", None) is not None
    if not levels or binned or getattr(metric, "ignore_index", None) is not None:
        return None
    if type(metric) is AUPRO:
        limit = metric.fpr_limit.item()  # type: ignore[operator]
        return levels[0], lambda ranking: functional.aupro(ranking, limit)
    if type(metric) is TPRAtFPR:
        return levels[0], lambda ranking: functional.tpr_at_fpr(ranking, metric.fpr_limit)
    average = functional.average_precision
    functions = {AUROC: functional.auroc, AP: average, AUPR: average, F1Max: functional.f1_max}
    return (levels[0], functions[type(metric)]) if type(metric) in functions else None
