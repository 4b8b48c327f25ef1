# SPDX-License-Identifier: Apache-2.0
"""Metrics of which there is one copy per category."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AnomalibMetric

from anomalib_uniad.category import categories_of, known_categories, paths_of
from anomalib_uniad.metrics.distributed import part, world_size
from anomalib_uniad.metrics.exact import LEVELS, Level, from_ranking, level_of
from anomalib_uniad.metrics.functional import Ranking
from anomalib_uniad.metrics.resolution import PixelResolution, at_original_size
from anomalib_uniad.metrics.results import Results, Seen, joined_over_processes, undefined
from anomalib_uniad.metrics.scores import ScorePool

Finished = Callable[[str, Results, Mapping[Level, Ranking]], None]


class CategoryMetrics:
    """Metrics of which there is a value per category.

    AUROC, AP, F1max and AUPRO of a category are computed together from one exact ranking of its scores; of other
    metrics there is a copy per category.

    Args:
        metrics (Iterable[AnomalibMetric]): The metrics; they are copied and stay as they are.
        datamodule (Any): Where the images are from; tells their categories. Defaults to ``None``.
        levels (Iterable[Level]): Levels to rank even if no metric needs it. Defaults to ``()``.
        pixel_resolution (PixelResolution): Size at which maps are compared with masks. Defaults to ``"model"``.
        mask_paths (Mapping[str, str] | None): Masks by paths of images, for the original size. Defaults to ``None``.
        expected (Mapping[str, int] | None): Number of images of each category, if all will come and each once: with
            the last image of a category its values are computed, and its scores dropped. Defaults to ``None``.
        finished (Finished | None): Called with each category, the results so far and the category's rankings.
            Defaults to ``None``.
        device (torch.device | None): Device over which processes exchange tensors. Defaults to ``None``, the CPU.
    """

    def __init__(
        self,
        metrics: Iterable[AnomalibMetric],
        datamodule: Any = None,
        levels: Iterable[Level] = (),
        pixel_resolution: PixelResolution = "model",
        mask_paths: Mapping[str, str] | None = None,
        expected: Mapping[str, int] | None = None,
        finished: Finished | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._metrics: dict[str, Any] = {metric.name: metric for metric in metrics}
        self._ranked = {name: rule for name, m in self._metrics.items() if (rule := from_ranking(m)) is not None}
        self._needed = {level_of(self._metrics[name]) for name in self._ranked}
        self._levels: list[Level] = [level for level in LEVELS if level in self._needed | set(levels)]
        self._datamodule = datamodule
        self._known = known_categories(datamodule)
        if datamodule is not None and not self._known:  # anomalib's Folder and others that have no categories
            self._known = [getattr(datamodule, "name", "all")]
        self._original = pixel_resolution == "original"
        self._mask_paths = mask_paths
        self._expected = expected if expected is not None and world_size() == 1 else {}
        self._finished = finished
        self._device = device
        self._pools: dict[tuple[Level, str], ScorePool] = {}
        self._copies: dict[tuple[str, str], Any] = {}
        self._seen: dict[str, Seen] = {}
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
            ValueError: If the batch lacks a field of a strict metric.
        """
        names = self.categories(batch)
        for name in dict.fromkeys(names):
            rows = [row for row, other in enumerate(names) if other == name]
            self._update(name, batch if len(rows) == len(names) else part(batch, rows))
            if self._seen[name].images == self._expected.get(name):
                self._finish(name, self._seen[name])

    def compute(self) -> Results:
        """Compute the metrics of each category, over all processes.

        Returns:
            Results: Values where the metrics are defined, and reasons where they are not.
        """
        seen = joined_over_processes(self._seen)
        # All processes go through the same categories in the same order, as each of them waits for the others.
        categories = [*self._known, *sorted(set(seen) - set(self._known))]
        for category in categories:
            if category not in self._results.images:
                self._finish(category, seen.get(category, Seen()))
        self._results.categories = categories
        return self._results

    def _update(self, category: str, batch: ImageBatch) -> None:
        seen = self._seen.setdefault(category, Seen())
        seen.images += len(batch)
        for name, metric in self._metrics.items():
            lacking = [key for key in metric.fields if getattr(batch, key, None) is None]
            if lacking and metric.strict:
                msg = (
                    f"{name} needs {lacking[0]}, but the batch does not have a value for field with name {lacking[0]}."
                )
                raise ValueError(msg)
            if lacking:
                seen.missing.setdefault(name, lacking[-1])
            else:
                seen.updated.add(name)
        pixel = [name for name, metric in self._metrics.items() if metric.fields[-1] == "gt_mask"]
        self._update_metrics(category, batch, seen, [name for name in self._metrics if name not in pixel], "image")
        resize = self._original and getattr(batch, "anomaly_map", None) is not None
        for resized in at_original_size(batch, self._mask_paths) if resize else [batch]:
            self._update_metrics(category, resized, seen, pixel, "pixel")

    def _update_metrics(self, category: str, batch: Any, seen: Seen, names: list[str], level: Level) -> None:
        scores, targets = (getattr(batch, name, None) for name in LEVELS[level])
        if targets is not None:
            kinds = seen.kinds.setdefault(LEVELS[level][1], set())
            if True not in kinds and bool(targets.any()):
                kinds.add(True)
            if False not in kinds and not bool(targets.all()):
                kinds.add(False)
        if level in self._levels and scores is not None and targets is not None:
            # Wanted for thresholds only, maps of another size than the masks are no reason to fail.
            wanted = level in self._needed or scores.shape[-2:] == targets.shape[-2:] or level == "image"
            pool = self._pools.setdefault((level, category), ScorePool())
            if wanted:
                (pool.add if level == "image" else pool.add_maps)(scores, targets)
                seen.levels.add(level)
            if pool.has_nan:
                seen.nan.add(level)
        for name in names:
            if name in seen.updated and name not in self._ranked:
                self._copy(name, category).update(batch)

    def _finish(self, category: str, seen: Seen) -> None:
        rankings: dict[Level, Ranking] = {}
        for level in self._levels:
            if level in seen.levels - seen.nan:
                pool = self._pools.pop((level, category), None) or ScorePool()
                rankings[level] = pool.rank(self._device)
                pool.clear()
        self._results.images[category] = seen.images
        for name, metric in self._metrics.items():
            reason = undefined(metric, seen)
            if not reason and name in self._ranked and level_of(metric) in seen.nan:
                reason = "scores that are not numbers"
            value = None if reason else self._value(name, category, rankings)
            if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.isnan():
                self._results.values[name, category] = value.detach().reshape(())
            else:
                self._results.reasons[name, category] = reason or "not a number"
        if self._finished is not None:
            self._finished(category, self._results, rankings)

    def _value(self, name: str, category: str, rankings: Mapping[Level, Ranking]) -> Any:
        if name in self._ranked:
            level = level_of(self._metrics[name])
            return torch.tensor(self._ranked[name](rankings[level]), dtype=torch.float64) if level else None
        return self._compute(name, category)

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
