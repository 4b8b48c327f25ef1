# SPDX-License-Identifier: Apache-2.0
"""Measures what the plugin adds to ``import torch``; writes ``results/import_torch.csv``.

python -m anomalib_uniad.benchmark.import_torch
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pandas as pd
from jsonargparse import auto_cli

# torch without its plugins, then this one as torch loads it: what it costs and nothing else.
_BOTH = """
import os, time
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
start = time.perf_counter()
import torch
middle = time.perf_counter()
from importlib.metadata import entry_points
found = [e for e in entry_points(group="torch.backends") if e.name == "anomalib_uniad"]
assert found, "anomalib-uniad is not installed"
before = time.perf_counter()
for entry_point in found:
    entry_point.load()()
print(1000 * (time.perf_counter() - before), 1000 * (middle - start))
"""


def measure(repeats: int = 15, output: Path = Path("results/import_torch.csv")) -> None:
    """Time torch and the plugin in fresh processes.

    Args:
        repeats: Processes.
        output: The csv file.
    """
    _output(_BOTH)  # compiles what is not compiled yet
    times = [[float(number) for number in _output(_BOTH).split()] for _ in range(repeats)]
    rows = [{"plugin_ms": plugin, "import_torch_ms": torch} for plugin, torch in times]
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


def _output(code: str) -> str:
    # With compiled files, as an installed package has them.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


if __name__ == "__main__":
    auto_cli(measure)
