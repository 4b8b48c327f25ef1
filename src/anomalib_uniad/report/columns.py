# SPDX-License-Identifier: Apache-2.0
"""Files of a benchmark and their columns, for those who write and those who read them. Imports nothing."""

MODES = ("unified", "separate")
# Columns of results.csv: what a row is of, and what its models cost.
KEYS = ("data", "method", "mode", "seed", "category", "kind")
COST = (
    "models",
    "train_seconds",
    "seconds",
    "peak_memory",
    "peak_gpu_memory",
    "size_on_disk",
    "latency_ms",
    "images_per_second",
)
RESULTS, EPOCHS = "results.csv", "epochs.csv"
