# SPDX-License-Identifier: Apache-2.0
"""One of two processes, each with a category that the other has not; prints the metrics as JSON.

Usage: ``python distributed_worker.py <rank> <file>``, where the processes find each other by the file.
"""

import json
import sys

import torch
from anomalib.data import ImageBatch
from anomalib.models.components import AnomalibModule

from anomalib_uniad.metrics.per_category import CategoryMetrics

CATEGORIES = (("a", "b"), ("b", "c"))


def make_batch(rank: int, category: str) -> ImageBatch:
    """Make random predictions for 4 images of 8x8 pixels."""
    generator = torch.Generator().manual_seed(rank)
    mask = torch.zeros(4, 8, 8, dtype=torch.bool)
    mask[2:, 2:5, 2:5] = True
    score, maps = torch.rand(4, generator=generator), torch.rand(4, 8, 8, generator=generator)
    return ImageBatch(
        image=torch.zeros(4, 3, 8, 8),
        image_path=[f"/d/{category}/test/x/{number}.png" for number in range(4)],
        gt_label=torch.tensor([0, 0, 1, 1]),
        gt_mask=mask,
        pred_score=score,
        pred_label=score > 0.5,
        anomaly_map=maps,
        pred_mask=maps > 0.5,
    )


def main(rank: int, file: str) -> None:
    """Evaluate this process's part."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    metrics = CategoryMetrics(list(AnomalibModule.configure_evaluator().test_metrics))
    for category in CATEGORIES[rank]:
        metrics.update(make_batch(rank, category))
    sys.stdout.write(json.dumps({name: float(value) for name, value in metrics.compute().logged().items()}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
