# SPDX-License-Identifier: Apache-2.0
"""The command ``anomalib-uniad benchmark``."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from anomalib_uniad.checks import check_at_least
from anomalib_uniad.files import check_output

from .config import read_config
from .machine import cores
from .scheduler import Scheduler
from .speed import measure_all
from .trainings import prepare

_CORES_PER_JOB = 4  # on a CPU, fewer make trainings of usual sizes slower than running one after the other


def benchmark(
    file: Path, output: Path | None, jobs: int | None, wait: bool, overwrite: bool, say: Callable[[str], None]
) -> bool:
    """Run a benchmark as far as it is not done yet.

    Args:
        file (Path): Its config.
        output (Path | None): Folder of the results; ``None`` is that of the config, else ``runs/benchmark/<its name>``.
        jobs (int | None): Trainings at a time; ``None`` is one for each GPU or, without, for every 4 cores.
        wait (bool): Wait for trainings that other processes are at.
        overwrite (bool): Train again what has results of another config or other images.
        say (Callable[[str], None]): Shows a line.

    Returns:
        bool: Whether nothing has failed.

    Raises:
        ValueError: If something in the config cannot be right.
        OSError: If a file or data are not there, or there are results of another config or other images.
    """
    config = read_config(file)
    folder = (output or config.output or Path("runs", "benchmark", file.stem)).absolute()
    check_output(folder)
    if jobs is not None:
        check_at_least("jobs", jobs, 1)
    from . import results  # what takes seconds, after the first mistakes are found
    from .expand import expand

    trainings = expand(config, folder)
    for training in prepare(trainings, overwrite):
        say(f"Its config or its images have changed, trained again: {training.label}")
    command = _command(file, jobs)

    def collect() -> None:
        with FileLock(folder / ".results.lock"):
            results.write(trainings, folder, command)

    gpus = _gpus()
    chosen = jobs or len(gpus) or max(1, cores() // _CORES_PER_JOB)
    scheduler = Scheduler(trainings, chosen, gpus, wait, say, collect)
    scheduler.run()
    if all(training.finished or training.label in scheduler.failures for training in trainings):
        with FileLock(folder / ".speed.lock"):  # one process, when all others are done
            measure_all(trainings, config.timed_images, say)
    with FileLock(folder / ".results.lock"):
        files = results.write(trainings, folder, command)
    for path in files:
        say(f"Wrote {path}.")
    if scheduler.failures:
        say(f"{len(scheduler.failures)} of {len(trainings)} trainings failed; the same command tries them again:")
        for label, sentence in scheduler.failures.items():
            say(f"  {label}: {sentence}")
    return not scheduler.failures


def _command(file: Path, jobs: int | None) -> str:
    """The command as anybody can give it: without the folders above the working directory."""
    if file.is_absolute():
        file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else Path(file.name)
    return shlex.join(["anomalib-uniad", "benchmark", str(file), *(["--jobs", str(jobs)] if jobs else [])])


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` has them."""
    import torch

    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
