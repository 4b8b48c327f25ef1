# SPDX-License-Identifier: Apache-2.0
"""``python -m anomalib_uniad.benchmark.training``, the same as ``anomalib-uniad bench train``."""

from jsonargparse import auto_cli

from . import train

if __name__ == "__main__":
    auto_cli(train)
