# SPDX-License-Identifier: Apache-2.0
"""What the plugin adds to ``import torch``, in fresh processes.

python benchmarks/import_torch.py
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pandas as pd
from jsonargparse import auto_cli

# torch without its plugins, then this one as torch loads it: what it costs and nothing else.
CODE = """
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
print(1000 * (time.perf_counter() - before), 1000 * (middle - start), torch.__version__)
"""


def import_torch(repeats: int = 15, output_dir: Path = Path("results")) -> None:
    """Time torch and the plugin; writes ``import_torch.csv``.

    Args:
        repeats: Processes.
        output_dir: Folder of the csv file.
    """
    # With compiled files, as an installed package has them; the first process compiles what is not compiled yet.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", CODE]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
        for _ in range(repeats + 1)
    ]
    rows = [{"plugin_ms": float(plugin), "import_torch_ms": float(torch)} for plugin, torch, _ in outputs[1:]]
    versions = f"python {platform.python_version()}; torch {outputs[0][2]}"
    about = {"device": "cpu", "versions": versions, "command": "python benchmarks/import_torch.py"}
    frame = pd.DataFrame(rows).round(4).assign(**about)
    output_dir.mkdir(parents=True, exist_ok=True)
    frame.to_csv(output_dir / "import_torch.csv", index=False)
    print(frame[["plugin_ms", "import_torch_ms"]].median())


if __name__ == "__main__":
    auto_cli(import_torch)
