# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of a whole prediction, from the start of its process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A small process in between: a process has the peak memory of the one that it was forked from.
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
error = process.stderr.read()
_, status, usage = os.wait4(process.pid, 0)
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
result = {"seconds": time.perf_counter() - start, "peak_memory_bytes": peak}
print(json.dumps({**result, "status": os.waitstatus_to_exitcode(status), "error": error.decode(errors="replace")}))
"""
_INFERENCER = """
import sys
from pathlib import Path
from anomalib.deploy import OpenVINOInferencer
inferencer = OpenVINOInferencer(sys.argv[1], device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
for path in sorted(Path(sys.argv[2]).rglob("*.png")):
    prediction = inferencer.predict(path)
    print(path, prediction.pred_score, prediction.pred_label)
"""
METHODS = ("predict", "predict, no heatmaps", "OpenVINOInferencer", "anomalib predict")


def command(method: str, model: Path, checkpoint: Path, config: Path, images: Path, output: Path) -> list[str]:
    """The command of a method.

    Args:
        method (str): One of :data:`METHODS`.
        model (Path): UniAD in OpenVINO.
        checkpoint (Path): The same as a Lightning checkpoint.
        config (Path): Its config.
        images (Path): Folder of images.
        output (Path): Folder for what it writes.

    Returns:
        list[str]: Program and arguments.
    """
    programs = Path(sys.executable).parent
    if method == "OpenVINOInferencer":
        return [sys.executable, "-c", _INFERENCER, str(model), str(images)]
    if method == "anomalib predict":
        return [
            str(programs / "anomalib"),
            "predict",
            *("--config", str(config), "--ckpt_path", str(checkpoint), "--data", str(images)),
            *("--default_root_dir", str(output)),
        ]
    heatmaps = [] if method == "predict" else ["--heatmaps", "false"]
    return [str(programs / "anomalib-uniad"), "predict", str(model), str(images), "--output", str(output), *heatmaps]


def run(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command and look at its process.

    Args:
        arguments (Sequence[str]): Program and arguments.
        folder (Path): Where it runs.

    Returns:
        dict[str, Any]: ``seconds`` from its start to its end and ``peak_memory_bytes`` of its process.

    Raises:
        RuntimeError: If it fails; with the end of what it wrote.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    launcher = [sys.executable, "-S", "-c", _LAUNCHER, *arguments]
    done = subprocess.run(launcher, capture_output=True, text=True, check=True, cwd=folder, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    if found.pop("status"):
        end = "\n".join(found["error"].splitlines()[-5:])
        msg = f"{' '.join(arguments)} failed: {end}"
        raise RuntimeError(msg)
    del found["error"]
    return dict(found)
