# SPDX-License-Identifier: Apache-2.0
"""Metrics per category."""

from anomalib_uniad.metrics.evaluator import PerCategoryEvaluator
from anomalib_uniad.metrics.exact import AP, seven_metrics

__all__ = ["AP", "PerCategoryEvaluator", "seven_metrics"]
