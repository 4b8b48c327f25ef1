# SPDX-License-Identifier: Apache-2.0
"""``python -m anomalib_uniad.benchmark.inference``, the same as ``anomalib-uniad bench inference``."""

from jsonargparse import auto_cli

from . import inference

if __name__ == "__main__":
    auto_cli(inference)
