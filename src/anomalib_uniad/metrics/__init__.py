# SPDX-License-Identifier: Apache-2.0
"""Metrics per category."""

from anomalib_uniad.metrics.category_metrics import AP, seven_metrics
from anomalib_uniad.metrics.evaluator import PerCategoryEvaluator

__all__ = ["AP", "PerCategoryEvaluator", "seven_metrics"]
