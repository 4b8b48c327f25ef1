# SPDX-License-Identifier: Apache-2.0
"""Metrics per category."""

from anomalib_uniad.metrics.category_metrics import AP, TPRAtFPR, standard_metrics
from anomalib_uniad.metrics.evaluator import PerCategoryEvaluator

__all__ = ["AP", "PerCategoryEvaluator", "TPRAtFPR", "standard_metrics"]
