# SPDX-License-Identifier: Apache-2.0
"""Where and how something was measured, and the files that say so."""

import contextlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.metrics.run_files import versions


def save(
    path: Path, rows: Sequence[Mapping[str, Any]], case: Sequence[str], device: torch.device, seed: int
) -> pd.DataFrame:
    """Write what was measured into a csv file, in place of the same cases on the same device.

    Args:
        path (Path): The file; created if it does not exist.
        rows (Sequence[Mapping[str, Any]]): What was measured.
        case (Sequence[str]): Columns that name a case; rows of the device that agree in them are replaced.
        device (torch.device): Where it was measured.
        seed (int): Seed of images, features and training.

    Returns:
        pd.DataFrame: The rows that were added.
    """
    frame = pd.DataFrame(list(rows)).assign(
        device=describe_device(device),
        versions=versions(),
        seed=seed,
        command=shlex.join([*_program(), *sys.argv[1:]]),
    )
    add_rows(path, frame, same=("device", *case))
    return frame


def describe_device(device: torch.device) -> str:
    """Name of a device: that of the GPU, or of the processor with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _program() -> list[str]:
    name = Path(sys.argv[0]).name
    return ["python", "-m", "anomalib_uniad.benchmark.training"] if name == "__main__.py" else [name]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Memory:
    """Memory that this process takes from now on: of the GPU if it works there, else of the machine.

    Args:
        device (torch.device): Where it works.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.zeros(1, device=device)  # starts CUDA
            torch.cuda.reset_peak_memory_stats(device)
        with contextlib.suppress(OSError):  # Linux forgets the peak so far
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._start = _status("VmRSS") or _usage() or 0
        self._files = _status("RssFile")

    def peak(self) -> int:
        """Bytes at most."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return (_status("VmHWM") or _usage() or 0) - self._start

    def files(self) -> int | None:
        """Bytes of the machine's memory that are pages of files, which it takes back when it needs room.

        ``None`` if the system does not tell.
        """
        now = _status("RssFile")
        return None if now is None or self._files is None else max(now - self._files, 0)


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")]
    return found[0] if found else None


def _usage() -> int | None:
    """The peak so far, on other systems than Linux."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
