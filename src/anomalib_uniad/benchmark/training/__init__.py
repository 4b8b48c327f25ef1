# SPDX-License-Identifier: Apache-2.0
"""How fast UniAD trains: ``anomalib-uniad bench train``."""

from .command import train

__all__ = ["train"]
