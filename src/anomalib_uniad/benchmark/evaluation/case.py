# SPDX-License-Identifier: Apache-2.0
"""One measurement, in a process of its own, so that its memory is its own.

python -m anomalib_uniad.benchmark.evaluation.case --method per_category --images 500
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from jsonargparse import auto_cli

from .command import MethodName

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_OUT_OF_MEMORY = ("can't allocate memory", "Insufficient memory", "bad_alloc")


def measure(
    method: MethodName = "per_category",
    images: int = 1725,
    image_size: int = 224,
    categories: int = 15,
    batch_size: int = 32,
    threads: int = 1,
    memory_limit: float = 12.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the seven metrics of generated maps. Making the maps is not counted.

    Args:
        method: What computes them.
        images: Number of images.
        image_size: Height and width of the maps, in pixels.
        categories: Number of categories.
        batch_size: Images per batch.
        threads: Threads of torch and OpenCV.
        memory_limit: GiB that may be allocated.
        seed: Seed of the maps.
    """
    import cv2
    import torch

    # Everything that takes memory is imported, and has run once, before memory is looked at.
    from anomalib_uniad.benchmark.training.rows import Memory

    from .maps import GeneratedMaps
    from .methods import method as make

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    small = GeneratedMaps(8, 32, 1, seed)
    warm_up = make(method, small)
    for batch in small.batches(8):
        warm_up.update(batch)
    warm_up.compute()
    maps = GeneratedMaps(images, image_size, categories, seed)
    measured = make(method, maps)
    _limit_memory(memory_limit)
    memory, clock = Memory(torch.device("cpu")), _Clock()
    try:
        for batch in maps.batches(batch_size, shuffled=method == "shuffled"):
            with clock:
                measured.update(batch)
            del batch
        with clock:
            values = measured.compute()
    except (MemoryError, RuntimeError, cv2.error) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _OUT_OF_MEMORY):
            raise
        return {"note": f"needs more than {memory_limit:g} GiB"}
    return {
        "seconds": clock.seconds,
        "processor_seconds": clock.processor_seconds,
        "peak_memory_bytes": memory.peak(),
        "values": values,
    }


def run(arguments: Mapping[str, Any], time_limit: float) -> dict[str, Any]:
    """Call :func:`measure` in a new process.

    Args:
        arguments (Mapping[str, Any]): Its arguments.
        time_limit (float): Seconds after which the process is ended.

    Returns:
        dict[str, Any]: What it has returned, or only a ``note`` that says why it has not come to its end.

    Raises:
        RuntimeError: If the process fails for another reason; with the end of what it wrote.
    """
    options = [f"--{name}={value}" for name, value in arguments.items()]
    command = [sys.executable, "-m", "anomalib_uniad.benchmark.evaluation.case", *options]
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(arguments.get("threads", 1)))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=time_limit)
    except subprocess.TimeoutExpired:
        return {"note": f"takes more than {time_limit:g} s"}
    if done.returncode < 0:
        return {"note": f"was killed by signal {-done.returncode}, perhaps for want of memory"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        end = "\n".join(done.stderr.splitlines()[-5:])
        msg = f"The measurement {' '.join(options)} failed (exit status {done.returncode}): {end}"
        raise RuntimeError(msg)
    return dict(json.loads(lines[-1]))


class _Clock:
    """Adds up time: on the wall, and of the processor, which other work on the machine does not change."""

    def __init__(self) -> None:
        self.seconds = self.processor_seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._start[0]
        self.processor_seconds += time.process_time() - self._start[1]


def _limit_memory(gibibytes: float) -> None:
    """Let allocations fail beyond a limit, where the system can do that."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows; or a lower limit is set already
        import resource

        # Private memory alone: the address space has room for libraries and files as well.
        resource.setrlimit(resource.RLIMIT_DATA, (int(gibibytes * 2**30),) * 2)


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        result = auto_cli(measure)
    sys.stdout.write(json.dumps(result) + "\n")
