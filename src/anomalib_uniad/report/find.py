# SPDX-License-Identifier: Apache-2.0
"""Finds the files that evaluations left in the folder of a run."""

import re
from pathlib import Path

# A test with json is described more fully than one with csv alone.
PATTERNS = ("metrics*.json", "metrics*.csv")


def find_metrics(run: Path) -> Path:
    """Find the metrics of a run.

    Args:
        run (Path): Folder of a run, or the file itself.

    Returns:
        Path: The newest ``metrics*.json`` in the folder, or ``metrics*.csv`` if there is none; if there is neither,
            that of the sub-folder with the newest one.

    Raises:
        FileNotFoundError: If the path is not there, or nothing is in it.
        ValueError: If the path is a file of another kind.
    """
    run = run.expanduser()
    if run.is_file():
        if run.suffix not in {".json", ".csv"}:
            msg = f"{run} is not the metrics.json or metrics.csv of a run."
            raise ValueError(msg)
        return run
    if not run.is_dir():
        msg = f"{run} is not there: give the folder of a run, such as results/UniAD/MVTecAD/latest."
        raise FileNotFoundError(msg)
    if found := _newest_in(run):
        return found
    below = [found for folder in sorted(run.iterdir()) if folder.is_dir() and (found := _newest_in(folder))]
    if not below:
        msg = f"{run} is not the folder of a run: neither it nor a folder in it has metrics.json or metrics.csv."
        raise FileNotFoundError(msg)
    return max(below, key=_age)


def _newest_in(folder: Path) -> Path | None:
    for pattern in PATTERNS:
        if found := [path for path in folder.glob(pattern) if path.is_file()]:
            return max(found, key=_age)
    return None


def _age(path: Path) -> tuple[float, list[int]]:
    """Sort by time, and by the numbers in the path where copying has made times equal (v9 before v10)."""
    return path.stat().st_mtime, [int(number) for number in re.findall(r"\d+", f"{path.parent.name}/{path.stem}")]
