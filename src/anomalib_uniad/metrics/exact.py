# SPDX-License-Identifier: Apache-2.0
"""Which metrics are computed from a ranking, and the seven that are reported."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from anomalib.metrics import AUPR, AUPRO, AUROC, AnomalibMetric, F1Max

from anomalib_uniad.metrics import functional
from anomalib_uniad.metrics.functional import Ranking

Level = Literal["image", "pixel"]

LEVELS: dict[Level, tuple[str, str]] = {"image": ("pred_score", "gt_label"), "pixel": ("anomaly_map", "gt_mask")}


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

    Example:
        >>> AP(fields=["pred_score", "gt_label"], prefix="image_").name
        'image_AP'
    """

    def __init__(
        self, fields: Sequence[str] | None = None, prefix: str = "", strict: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(fields=fields, prefix=prefix, strict=strict, **{"normalization": None, **kwargs})


def seven_metrics() -> list[AnomalibMetric]:
    """Return the metrics that the field reports.

    Returns:
        list[AnomalibMetric]: image AUROC, AP, F1max; pixel AUROC, AP, F1max, AUPRO; undefined, not an error, where
            a model returns no scores or maps.

    Example:
        >>> [metric.name for metric in seven_metrics()][3:]
        ['pixel_AUROC', 'pixel_AP', 'pixel_F1Max', 'pixel_AUPRO']
    """
    image = [cls(fields=LEVELS["image"], prefix="image_", strict=False) for cls in (AUROC, AP, F1Max)]
    return [*image, *(cls(fields=LEVELS["pixel"], prefix="pixel_", strict=False) for cls in (AUROC, AP, F1Max, AUPRO))]


def level_of(metric: Any) -> Level | None:
    """Return the level of scores that a metric compares with labels or masks; ``None`` if it does something else."""
    levels = [level for level, fields in LEVELS.items() if tuple(metric.fields) == fields]
    return levels[0] if levels else None


def from_ranking(metric: Any) -> Callable[[Ranking], float] | None:
    """Return the function that computes a metric from a ranking.

    Args:
        metric (Any): A metric.

    Returns:
        Callable[[Ranking], float] | None: ``None`` for other metrics than AUROC, AP (or AUPR), F1max and AUPRO of
        scores, and for those that have thresholds to choose from instead of exact values.
    """
    if level_of(metric) is None or getattr(metric, "thresholds", None) is not None:
        return None
    if getattr(metric, "ignore_index", None) is not None:
        return None
    if type(metric) is AUPRO:
        limit = metric.fpr_limit.item()  # type: ignore[operator]
        return lambda ranking: functional.aupro(ranking, limit)
    average = functional.average_precision
    exact = {AUROC: functional.auroc, AP: average, AUPR: average, F1Max: functional.f1_max}
    return exact.get(type(metric))
