# SPDX-License-Identifier: Apache-2.0
"""One of two processes, each with a category that the other has not; prints the metrics as JSON.

Usage: ``python distributed_worker.py <rank> <file>``, where the processes find each other by the file.
``run_both`` starts the two.
"""

import json
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from anomalib_uniad.metrics import PerCategoryEvaluator
from anomalib_uniad.metrics.category_metrics import CategoryMetrics
from replay import make_batch

CATEGORIES = (("a", "b"), ("b", "c"))
TIMEOUT = 120  # seconds


def run_both(folder: Path) -> list[str]:
    """Run the two processes and return what they print; if one fails, kill the other and show the errors of both."""
    logs = [(folder / f"{rank}.out", folder / f"{rank}.err") for rank in range(2)]
    workers: list[subprocess.Popen] = []
    codes: list[int | None] = []
    try:
        for rank, (out, err) in enumerate(logs):
            command = [sys.executable, "-W", "ignore", __file__, str(rank), str(folder / "store")]
            with out.open("w") as stdout, err.open("w") as stderr:
                workers.append(subprocess.Popen(command, stdout=stdout, stderr=stderr))
        end = time.monotonic() + TIMEOUT
        while None in (codes := [worker.poll() for worker in workers]):
            if any(codes) or time.monotonic() > end:
                break
            time.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()  # does nothing to one that has ended
            worker.wait()
    errors = "\n".join(f"Process {rank} ({codes[rank]}): {err.read_text()}" for rank, (_, err) in enumerate(logs))
    assert codes == [0, 0], errors
    return [out.read_text() for out, _ in logs]


def main(rank: int, file: str) -> None:
    """Evaluate this process's part."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT)
    )
    metrics = CategoryMetrics(list(PerCategoryEvaluator().test_metrics))
    for category in CATEGORIES[rank]:
        metrics.update(make_batch([category] * 4, [0, 0, 1, 1], rank))
    sys.stdout.write(json.dumps({name: float(value) for name, value in metrics.compute().logged().items()}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
