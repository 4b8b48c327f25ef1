# SPDX-License-Identifier: Apache-2.0
"""Metrics per category."""

from anomalib_uniad.metrics.evaluator import PerCategoryEvaluator

__all__ = ["PerCategoryEvaluator"]
