# SPDX-License-Identifier: Apache-2.0
"""Whether exported files say what the torch model says, and how fast: ``anomalib-uniad parity``."""

from .command import parity

__all__ = ["parity"]
