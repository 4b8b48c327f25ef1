# SPDX-License-Identifier: Apache-2.0
"""How fast the metrics are, and how much memory they take: ``anomalib-uniad bench metrics``."""

from .command import metrics

__all__ = ["metrics"]
