# SPDX-License-Identifier: Apache-2.0
"""Two processes, each with a category that the other has not; each writes the metrics as JSON.

Usage: ``python distributed_worker.py <folder>``; ``run_both`` does so.
"""

import json
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch
from anomalib.post_processing import PostProcessor

from anomalib_uniad.metrics import PerCategoryEvaluator
from anomalib_uniad.metrics.category_metrics import CategoryMetrics
from anomalib_uniad.metrics.thresholds import join_learning
from replay import make_batch

CATEGORIES = (("a", "b"), ("b", "c"))
TIMEOUT = 120  # seconds


def run_both(folder: Path) -> list[str]:
    """Run the two processes and return what they write; the error of one of them fails with its traceback."""
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(folder / f"{rank}.json").read_text() for rank in range(2)]


def learn(*ranks: int) -> float:
    """Learn the threshold of pixels in one process from the batches of some; only the first one has masks."""
    processor = PostProcessor()
    for rank in ranks:
        batch = make_batch(["a"] * 4, [0, 0, 1, 1], rank, masks=rank == 0)
        processor.on_validation_batch_end(None, None, batch)
    join_learning(processor)
    processor.on_validation_epoch_end(None, None)
    return float(processor._pixel_threshold)


def main(rank: int, folder: Path) -> None:
    """Evaluate a process's part."""
    signal.alarm(TIMEOUT)  # ends a process that waits for ever, also in C++
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT)
    )
    metrics = CategoryMetrics(list(PerCategoryEvaluator().test_metrics))
    for category in CATEGORIES[rank]:
        metrics.update(make_batch([category] * 4, [0, 0, 1, 1], rank))
    values = {name: float(value) for name, value in metrics.compute().logged().items()}
    values["pixel_threshold"] = learn(rank)
    (folder / f"{rank}.json").write_text(json.dumps(values))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked: what takes seconds to import is imported once.
    torch.multiprocessing.start_processes(main, (Path(sys.argv[1]),), nprocs=2, start_method="fork")
