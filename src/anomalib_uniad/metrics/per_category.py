# SPDX-License-Identifier: Apache-2.0
"""Metrics of which there is one copy per category."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AnomalibMetric

from anomalib_uniad.data.category import categories_of, known_categories

# What a batch lacks if one of its fields is missing; other fields are predictions.
_MISSING = {"gt_label": "no labels", "gt_mask": "no masks"}
# What is there if all values of a target are 0, and if all are 1.
_ONE_KIND = {
    "gt_label": ("only normal images", "only defective images"),
    "gt_mask": ("no defective pixels", "only defective pixels"),
}


@dataclass
class Results:
    """Metrics of each category.

    Attributes:
        metrics (list[str]): Names of the metrics.
        categories (list[str]): Names of the categories.
        values (dict[tuple[str, str], torch.Tensor]): (metric, category) -> value, a scalar; only where the
            metric is defined.
        reasons (dict[tuple[str, str], str]): (metric, category) -> why the metric is undefined there.
    """

    metrics: list[str]
    categories: list[str]
    values: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, metric: str) -> dict[str, torch.Tensor]:
        """Return the values of a metric by category, without the categories in which it is undefined."""
        return {name: self.values[metric, name] for name in self.categories if (metric, name) in self.values}

    def mean(self, metric: str) -> torch.Tensor | None:
        """Return the mean of a metric over the categories in which it is defined; ``None`` if there are none."""
        values = list(self.of(metric).values())
        if len(values) < 2:
            return values[0] if values else None
        return torch.stack([value.float() for value in values]).mean()

    def logged(self) -> dict[str, torch.Tensor]:
        """Return what is logged: the means, and with several categories ``<metric>/<category>`` as well."""
        named: dict[str, torch.Tensor] = {}
        for metric in self.metrics:
            mean = self.mean(metric)
            if mean is not None:
                named[metric] = mean
            if len(self.categories) > 1:
                named.update({f"{metric}/{name}": value for name, value in self.of(metric).items()})
        return named


@dataclass
class _Seen:
    """What a category has shown so far; plain data, so that processes can exchange it."""

    images: int = 0
    updated: set[str] = field(default_factory=set)  # names of metrics
    missing: dict[str, str] = field(default_factory=dict)  # metric -> field
    kinds: dict[str, set[bool]] = field(default_factory=dict)  # target -> values that occurred

    def add(self, other: "_Seen") -> None:
        self.images += other.images
        self.updated |= other.updated
        self.missing |= other.missing
        for target, kinds in other.kinds.items():
            self.kinds.setdefault(target, set()).update(kinds)


class CategoryMetrics:
    """Metrics of which there is one copy per category.

    Args:
        metrics (Iterable[AnomalibMetric]): The metrics; they are copied and stay as they are.
        datamodule (Any): Where the images are from; tells their categories. Defaults to ``None``.
    """

    def __init__(self, metrics: Iterable[AnomalibMetric], datamodule: Any = None) -> None:
        self._metrics: dict[str, Any] = {metric.name: metric for metric in metrics}
        self._datamodule = datamodule
        self._known = known_categories(datamodule)
        if datamodule is not None and not self._known:  # anomalib's Folder and others that have no categories
            self._known = [getattr(datamodule, "name", "all")]
        self._copies: dict[tuple[str, str], Any] = {}
        self._seen: dict[str, _Seen] = {}

    def update(self, batch: ImageBatch) -> None:
        """Update the metrics of each category with its part of a batch.

        Args:
            batch (ImageBatch): Batch of B images after post-processing.

        Raises:
            ValueError: If the batch lacks a field of a strict metric.
        """
        if len(self._known) == 1:
            names = self._known * len(batch)
        else:
            names = categories_of(batch.image_path or [None] * len(batch), self._datamodule)
        for name in dict.fromkeys(names):
            rows = [row for row, other in enumerate(names) if other == name]
            self._update(name, batch if len(rows) == len(names) else _part(batch, rows))

    def compute(self) -> Results:
        """Compute the metrics of each category, over all processes.

        Returns:
            Results: Values where the metrics are defined, and reasons where they are not.
        """
        seen = _gather(self._seen)
        # All processes go through the same copies in the same order, as each of them waits for the others.
        categories = [*self._known, *sorted(set(seen) - set(self._known))]
        results = Results(list(self._metrics), categories)
        for category in categories:
            for name, metric in self._metrics.items():
                reason = _undefined(metric, seen.get(category, _Seen()))
                value = None if reason else self._compute(name, category)
                if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.isnan():
                    results.values[name, category] = value.detach().reshape(())
                else:
                    results.reasons[name, category] = reason or "not a number"
        return results

    def _update(self, category: str, batch: ImageBatch) -> None:
        seen = self._seen.setdefault(category, _Seen())
        seen.images += len(batch)
        for name, metric in self._metrics.items():
            self._copy(name, category).update(batch)  # raises if a field is missing and the metric is strict
            lacking = [key for key in metric.fields if getattr(batch, key, None) is None]
            if lacking:
                seen.missing.setdefault(name, lacking[-1])
            else:
                seen.updated.add(name)
        for target in {metric.fields[-1] for metric in self._metrics.values()} & set(_ONE_KIND):
            values = getattr(batch, target, None)
            if values is not None:
                kinds = seen.kinds.setdefault(target, set())
                kinds.update(kind for kind in {True, False} - kinds if bool((values.bool() == kind).any()))

    def _copy(self, name: str, category: str) -> Any:
        if (name, category) not in self._copies:
            metric = self._metrics[name].clone()
            metric.reset()
            # torchmetrics puts each batch that has a score outside [0, 1] through a sigmoid, and no other. That
            # would change the order of scores of different batches, and large scores would become equal.
            if getattr(metric, "normalization", None) == "sigmoid" and getattr(metric, "thresholds", 0) is None:
                metric.normalization = None
            self._copies[name, category] = metric
        return self._copies[name, category]

    def _compute(self, name: str, category: str) -> Any:
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


def _undefined(metric: Any, seen: _Seen) -> str:
    """Say why a metric is undefined for what has been seen of a category; empty if it is defined."""
    if not seen.images:
        return "no images"
    if metric.name not in seen.updated:
        lacking = seen.missing.get(metric.name, "")
        return _MISSING.get(lacking, f"no {lacking} from the model")
    target = metric.fields[-1]
    kinds = seen.kinds.get(target, set())
    if target in _ONE_KIND and len(kinds) == 1:
        return _ONE_KIND[target][next(iter(kinds))]
    return ""


def _part(batch: ImageBatch, rows: Sequence[int]) -> ImageBatch:
    """Return some images of a batch as a batch of the same class."""
    count = len(batch)
    part: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
            part[item.name] = value[list(rows)]
        elif isinstance(value, list) and len(value) == count:
            part[item.name] = [value[row] for row in rows]
    return batch.update(in_place=False, **part)


def _gather(seen: dict[str, _Seen]) -> dict[str, _Seen]:
    """Join what all processes have seen."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_world_size() == 1:
        return seen
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, seen)
    joined: dict[str, _Seen] = {}
    for other in everywhere:
        for category, part in other.items():
            joined.setdefault(category, _Seen()).add(part)
    return joined
