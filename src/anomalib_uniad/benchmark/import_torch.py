# SPDX-License-Identifier: Apache-2.0
"""Measures what the plugin adds to ``import torch``; writes ``results/import_torch.csv``.

python -m anomalib_uniad.benchmark.import_torch
"""

import platform
import subprocess
import sys
from pathlib import Path

import pandas as pd
from jsonargparse import auto_cli

# As torch does it: importlib.metadata is loaded anyway, the entry point is looked up and called.
_PLUGIN = """
import time
from importlib.metadata import entry_points
found = [e for e in entry_points(group="torch.backends") if e.name == "anomalib_uniad"]
start = time.perf_counter()
for entry_point in found:
    entry_point.load()()
print(1000 * (time.perf_counter() - start))
assert found, "anomalib-uniad is not installed"
"""
_TORCH = """
import time
start = time.perf_counter()
import torch
print(1000 * (time.perf_counter() - start))
"""


def measure(repeats: int = 15, output: Path = Path("results/import_torch.csv")) -> None:
    """Time plugin and torch in turn, each in a fresh process.

    Args:
        repeats: Processes of each kind.
        output: The csv file.
    """
    rows = [{"plugin_ms": _milliseconds(_PLUGIN), "import_torch_ms": _milliseconds(_TORCH)} for _ in range(repeats)]
    versions = _output("import torch; print(torch.__version__)")
    frame = (
        pd.DataFrame(rows)
        .round(4)
        .assign(
            device="cpu",
            versions=f"python {platform.python_version()}; torch {versions}",
            command="python -m anomalib_uniad.benchmark.import_torch",
        )
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(output, index=False)


def _milliseconds(code: str) -> float:
    return float(_output(code))


def _output(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    auto_cli(measure)
