# SPDX-License-Identifier: Apache-2.0
"""Metrics per category."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_uniad.metrics.category_metrics import AP, TPRAtFPR, standard_metrics
    from anomalib_uniad.metrics.evaluator import PerCategoryEvaluator

__all__ = ["AP", "PerCategoryEvaluator", "TPRAtFPR", "standard_metrics"]

_HOME = {
    "AP": "category_metrics",
    "PerCategoryEvaluator": "evaluator",
    "TPRAtFPR": "category_metrics",
    "standard_metrics": "category_metrics",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: limits of scores do not."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
