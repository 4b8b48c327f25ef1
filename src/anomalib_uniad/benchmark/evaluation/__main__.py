# SPDX-License-Identifier: Apache-2.0
"""``python -m anomalib_uniad.benchmark.evaluation``, the same as ``anomalib-uniad bench metrics``."""

from jsonargparse import auto_cli

from . import metrics

if __name__ == "__main__":
    auto_cli(metrics)
