# SPDX-License-Identifier: Apache-2.0
"""One of two processes, each with a category that the other has not; prints the metrics as JSON.

Usage: ``python distributed_worker.py <rank> <file>``, where the processes find each other by the file.
"""

import json
import sys

import torch
from anomalib.models.components import AnomalibModule

from anomalib_uniad.metrics.per_category import CategoryMetrics
from replay import make_batch

CATEGORIES = (("a", "b"), ("b", "c"))


def main(rank: int, file: str) -> None:
    """Evaluate this process's part."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    metrics = CategoryMetrics(list(AnomalibModule.configure_evaluator().test_metrics))
    for category in CATEGORIES[rank]:
        metrics.update(make_batch([category] * 4, [0, 0, 1, 1], rank))
    sys.stdout.write(json.dumps({name: float(value) for name, value in metrics.compute().logged().items()}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
