# SPDX-License-Identifier: Apache-2.0
"""One measurement with generated features, in a process of its own, so that its memory is its own.

python -m anomalib_uniad.benchmark.training.case --images 500
"""

import contextlib
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli

Values = dict[str, Any]


def measure(
    images: int = 500,
    image_size: int = 224,
    batch_size: int = 8,
    precision: str = "32-true",
    compile_mode: str | None = None,
    cache: Literal["memory", "disk"] = "memory",
    warm_up: int = 2,
    steps: int = 10,
    profile_steps: int = 0,
    device: str = "cpu",
    work_dir: Path | None = None,
    seed: int = 0,
    model: dict[str, Any] | None = None,
) -> Values:
    """Train UniAD for some steps on generated features.

    Args:
        images: Images that the cache holds.
        image_size: Height and width of the images that the features would be of.
        batch_size: Images per step.
        precision: Lightning's name of the precision.
        compile_mode: Compile the step in this mode.
        cache: Features in memory or in files.
        warm_up: Steps that are not counted.
        steps: Steps that are.
        profile_steps: Steps of a profile that tells the share of attention; 0 for none.
        device: Where to train: "cpu" or "cuda".
        work_dir: Where the files are for the time of the measurement; default: the system's temporary folder.
        seed: Seed of features and training.
        model: Arguments of UniAD in place of the paper's.
    """
    # Everything that takes memory is imported before memory is looked at.
    from anomalib_uniad.model import UniAD

    from .breakdown import BareStep, break_down
    from .lightning_run import PAPER, GeneratedFeatures, device_of, feature_shape, train_steps
    from .operations import operations_of
    from .rows import Memory

    where = device_of(device)
    arguments = {**PAPER, "image_size": image_size, "compile_mode": compile_mode, "seed": seed, **(model or {})}
    # Features are there already: nothing is left to do with the images.
    uniad = UniAD(**arguments, pre_processor=False, visualizer=False)
    count = operations_of(uniad, batch_size)
    memory = Memory(where)
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        arrays, on_disk = _features(cache, Path(folder), feature_shape(uniad, images), seed)
        data = GeneratedFeatures(arrays, batch_size, where)
        start = time.perf_counter()
        for _ in data.train_dataloader():
            pass
        reading = time.perf_counter() - start
        times = train_steps(uniad, data, where, precision, warm_up, steps)
        seconds = times.mean if where.type == "cuda" else times.typical
        files = memory.files()
        values: Values = {
            "tokens": math.prod(uniad.model.grid_size),
            "seconds_per_step": seconds,
            "seconds_min": min(times.seconds),
            "seconds_max": max(times.seconds),
            "images_per_second": batch_size / seconds,
            "seconds_per_epoch": seconds * math.ceil(images / batch_size),
            "reading_seconds_per_epoch": reading,
            "seconds_to_first_step": times.before,
            "disk_bytes": on_disk,
            "peak_memory_bytes": memory.peak(),
            "of_it_files_bytes": files,
            "operations_per_step": count.total,
            "attention_of_operations": count.attention_share,
        }
        if profile_steps:
            step = BareStep(uniad, data, where, bf16=precision.startswith("bf16"))
            values["attention_of_time"] = break_down(step, 1, profile_steps).attention_share
    return values


def _features(cache: str, folder: Path, shape: tuple[int, int, int, int], seed: int) -> tuple[Any, int]:
    """Features as the cache keeps them, and the size of its files."""
    from anomalib_uniad.training.feature_build import MemoryWriter
    from anomalib_uniad.training.feature_files import CacheWriter
    from anomalib_uniad.training.feature_store import FeatureStore

    from .lightning_run import write_features

    if cache == "memory":
        memory = MemoryWriter()
        write_features(memory, shape, seed)
        return memory.arrays, 0

    key = f"{seed:032x}"

    def build(writer: CacheWriter) -> None:
        write_features(writer, shape, seed)
        writer.finish({"key": key, "dataset": "generated", "images": shape[0], "backbone": "none"})

    store = FeatureStore(folder)
    arrays, _ = store.obtain(key, build)
    return arrays, store.entries()[0].size


def run(arguments: Mapping[str, Any]) -> Values:
    """Call :func:`measure` in a new process.

    Args:
        arguments (Mapping[str, Any]): Its arguments.

    Raises:
        RuntimeError: If the process fails, for example for want of memory; with the end of what it wrote.
    """
    import json

    given = {name: value for name, value in arguments.items() if value is not None}
    options = [f"--{name}={json.dumps(v) if isinstance(v, dict) else v}" for name, v in given.items()]
    command = [sys.executable, "-m", "anomalib_uniad.benchmark.training.case", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        end = "\n".join(done.stderr.splitlines()[-5:])
        reason = "it was killed, perhaps for want of memory" if done.returncode < 0 else end
        msg = f"The measurement {' '.join(options)} failed (exit status {done.returncode}): {reason}"
        raise RuntimeError(msg)
    return dict(json.loads(lines[-1]))


if __name__ == "__main__":
    import json

    with contextlib.redirect_stdout(sys.stderr):
        result = auto_cli(measure)
    sys.stdout.write(json.dumps(result) + "\n")
