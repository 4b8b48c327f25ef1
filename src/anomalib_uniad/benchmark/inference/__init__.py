# SPDX-License-Identifier: Apache-2.0
"""How fast exported models are: ``anomalib-uniad bench inference``."""

from .command import inference

__all__ = ["inference"]
