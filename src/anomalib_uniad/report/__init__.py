# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side: ``anomalib-uniad report``."""

from .command import report

__all__ = ["report"]
