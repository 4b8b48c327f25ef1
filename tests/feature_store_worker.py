# SPDX-License-Identifier: Apache-2.0
"""Builds a feature cache in a process of its own. Imports no torch, so it starts at once.

Usage: ``python feature_store_worker.py <directory> <key>``: says "begun" with half of the rows written, and waits for a
line of its input, or its end, before the rest. Prints what :meth:`FeatureStore.obtain` says.
"""

import sys

import numpy as np

from anomalib_uniad.training.feature_store import CacheWriter, FeatureStore

ROWS = 6


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(directory: str, key: str) -> None:
    """Build or open the cache."""

    def build(writer: CacheWriter) -> None:
        features = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 1, 2, 2)
        writer.start("features", features.shape, "float32")
        writer.append("features", features[: ROWS // 2])
        say("begun")
        sys.stdin.readline()
        writer.append("features", features[ROWS // 2 :])
        writer.start("labels", (ROWS,), "int8")
        writer.append("labels", np.zeros(ROWS))
        writer.finish({"key": key, "dataset": "numbers", "images": ROWS})

    arrays, how = FeatureStore(directory).obtain(key, build, say)
    say(f"{how}: {arrays['features'].sum():.0f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
