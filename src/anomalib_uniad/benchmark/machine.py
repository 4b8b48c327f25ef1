# SPDX-License-Identifier: Apache-2.0
"""What a machine has and what a process takes of it."""

import os
import platform
import sys
from pathlib import Path


def processor() -> str:
    """Name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use: what a scheduler gives it, or ``OMP_NUM_THREADS`` where that is less."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(int(given), allowed) if given.isdecimal() and int(given) else allowed


def peak_memory() -> int | None:
    """Most bytes of memory that this process has had at once; ``None`` if the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; what getrusage tells there includes the process that started this one
        lines = status.read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
