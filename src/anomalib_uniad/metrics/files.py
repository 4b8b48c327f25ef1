# SPDX-License-Identifier: Apache-2.0
"""Files that a test leaves in the folder of its run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from anomalib_uniad.files import file_names
from anomalib_uniad.metrics.results import Results
from anomalib_uniad.metrics.table import to_frame, to_markdown
from anomalib_uniad.metrics.thresholds import Thresholds

_ODD: Literal["backslashreplace"] = "backslashreplace"  # names of files need not be text


class RunFiles:
    """Files of one test, or of one prediction, all with the same number: ``metrics.csv``, ``metrics-1.csv`` and so on.

    Args:
        folder (Path): Folder of the run; created when something is written.
        stem (str): Name of the tables, ``metrics`` after a test. Defaults to ``"metrics"``.
    """

    def __init__(self, folder: Path, stem: str = "metrics") -> None:
        self.folder = folder
        self.stem = stem
        number = 0
        while any((folder / name).exists() for name in self._names(number)):
            number += 1
        self._number = number

    def write_metrics(self, results: Results, run: Mapping[str, Any], thresholds: Thresholds) -> Path:
        """Write the table as csv, markdown and json.

        Args:
            results (Results): Metrics of each category.
            run (Mapping[str, Any]): What the run was; columns of the csv, so that each row tells its origin.
            thresholds (Thresholds): Thresholds of categories, in raw scores.

        Returns:
            Path: The csv.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        frame = to_frame(results)
        csv = self._path(self.stem, ".csv")
        frame.assign(**run).to_csv(csv, index=False, mode="x", errors=_ODD)
        about = [f"- {name}: {value}" for name, value in run.items() if value != ""]
        lines = [to_markdown(frame), "", *about, ""]
        if thresholds:
            lines += ["Thresholds of the categories, in raw scores:", "", _threshold_table(thresholds), ""]
        csv.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8", errors=_ODD)
        text = json.dumps(_document(results, run, thresholds), indent=1, ensure_ascii=False)
        csv.with_suffix(".json").write_text(text + "\n", encoding="utf-8", errors=_ODD)
        return csv

    def write_predictions(self, predictions: pd.DataFrame) -> Path:
        """Write a row per image.

        Args:
            predictions (pd.DataFrame): Table as of :class:`anomalib_uniad.metrics.predictions.Predictions`.

        Returns:
            Path: The csv.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        csv = self._path("predictions", ".csv")
        predictions.to_csv(csv, index=False, mode="x", errors=_ODD)
        return csv

    def write_curves(self, pictures: Mapping[str, bytes]) -> None:
        """Write the pictures of the categories.

        Args:
            pictures (Mapping[str, bytes]): Category -> picture as PNG.
        """
        folder = self._path("curves", "")
        folder.mkdir(parents=True, exist_ok=True)
        for category, name in file_names(list(pictures)).items():
            (folder / f"{name}.png").write_bytes(pictures[category])

    def _path(self, stem: str, suffix: str) -> Path:
        return self.folder / (f"{stem}-{self._number}{suffix}" if self._number else f"{stem}{suffix}")

    def _names(self, number: int) -> list[str]:
        end = f"-{number}" if number else ""
        stems = [f"{self.stem}{end}{suffix}" for suffix in (".csv", ".md", ".json")]
        return [*stems, f"predictions{end}.csv", f"curves{end}"]


def _document(results: Results, run: Mapping[str, Any], thresholds: Thresholds) -> dict[str, Any]:
    categories = {}
    for category in results.categories:
        values = {name: results.values.get((name, category)) for name in results.metrics}
        categories[category] = {
            "images": results.images.get(category, 0),
            "values": {name: None if value is None else float(value) for name, value in values.items()},
            "reasons": {m: reason for (m, name), reason in results.reasons.items() if name == category},
            "thresholds": {k: v if math.isfinite(v) else None for k, v in thresholds.get(category, {}).items()},
        }
    means = {name: results.mean(name) for name in results.metrics}
    return {
        "run": dict(run),
        "metrics": results.metrics,
        "categories": categories,
        "mean": {name: None if value is None else float(value) for name, value in means.items()},
    }


def _threshold_table(thresholds: Thresholds) -> str:
    rows = [{"category": category, **levels} for category, levels in thresholds.items()]
    return to_markdown(pd.DataFrame(rows))
