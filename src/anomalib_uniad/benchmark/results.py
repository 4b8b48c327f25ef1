# SPDX-License-Identifier: Apache-2.0
"""The tables of a benchmark, collected from the folders of its trainings."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_uniad.category import summary_label
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import lies_in, original_table, plain_table, replacing
from anomalib_uniad.metrics.run_files import COUNTS
from anomalib_uniad.report.columns import COST, EPOCHS, KEYS, RESULTS

from .trainings import RESULT, SPEED, Training


def write(trainings: Sequence[Training], output: Path, command: str) -> list[Path]:
    """Write ``results.csv`` and ``epochs.csv`` of all trainings that are finished.

    Args:
        trainings (Sequence[Training]): Trainings of a benchmark, in the order of the rows.
        output (Path): Folder of the benchmark.
        command (str): What made them, for the rows.

    Returns:
        list[Path]: The files that were written.
    """
    finished = [training for training in trainings if training.finished]
    # By cell, in the order in which cells first appear: the trainings of a cell need not be neighbours.
    order = {cell: number for number, cell in enumerate(dict.fromkeys(training.cell for training in trainings))}
    sizes = pd.Series([order[training.cell] for training in trainings]).value_counts()
    finished.sort(key=lambda training: order[training.cell])
    parts = []
    for number, group in groupby(finished, lambda training: order[training.cell]):
        found = list(group)
        parts.append(_cell(found, complete=len(found) == sizes[number]))
    files = []
    table = pd.concat(parts, ignore_index=True).assign(command=command) if parts else pd.DataFrame()
    for name, frame in ((RESULTS, table), (EPOCHS, _epochs(finished, command))):
        if len(frame):
            files.append(output / name)
            with replacing(output / name) as (partial,):
                plain_table(frame).to_csv(partial, index=False)
    return files


def _cell(trainings: Sequence[Training], complete: bool) -> pd.DataFrame:
    """Rows of a cell: its categories and, if it is complete, their mean, which has the cost as well."""
    frames = [_read(training) for training in trainings]
    if trainings[0].mode == "unified":
        (frame,), (cost,) = frames, map(_cost, trainings)
        mean = frame["kind"] == "mean"
        for name, value in cost.items():
            frame[name] = pd.Series([value if is_mean else None for is_mean in mean], dtype=object)
    else:
        rows = [
            frame[frame["kind"] == "category"].assign(**_cost(t)) for frame, t in zip(frames, trainings, strict=True)
        ]
        frame = pd.concat(rows, ignore_index=True)
        if complete:
            frame = pd.concat([frame, _mean(frame)], ignore_index=True)
    frame.insert(0, "data", trainings[0].data)
    frame.insert(1, "method", trainings[0].method)
    frame.insert(2, "mode", trainings[0].mode)
    frame.insert(3, "seed", trainings[0].seed)
    # What metrics.csv has: category, metrics, note, kind, counts, then the facts.
    first = [*KEYS, *_metrics(frame), "note", *COUNTS, *COST]
    return frame[[*first, *(name for name in frame if name not in first)]]


def _read(training: Training) -> pd.DataFrame:
    """Table of the metrics of a training."""
    result = training.read(RESULT) or {}
    # Only empty cells are missing: a category may be called NA.
    file = training.folder / str(result["metrics"])
    if not lies_in(file, [training.folder]):
        raise InputError(f"{training.folder / RESULT} names metrics that are not in its folder: {result['metrics']!r}.")
    frame = original_table(pd.read_csv(file, dtype={"category": str}, keep_default_na=False, na_values=""))
    frame["note"] = frame["note"].astype(object).where(frame["note"].notna(), "")
    frame = frame.drop(columns=["seed", "command"], errors="ignore")
    frame["device"] = result["device"]
    if reason := result.get("export_error"):
        said = frame["note"] + f"; not exported: {reason}"
        frame.loc[frame["kind"] == "mean", "note"] = said.str.removeprefix("; ")
        if training.category:
            frame["note"] = said.str.removeprefix("; ")
    return frame


def _metrics(frame: pd.DataFrame) -> list[str]:
    names = list(frame.columns)
    return names[names.index("category") + 1 : names.index("note")]


def _cost(training: Training) -> dict[str, Any]:
    result, speed = training.read(RESULT) or {}, training.read(SPEED) or {}
    return {
        "models": 1,
        **{name: result.get(name) for name in ("train_seconds", "seconds", "peak_memory", "peak_gpu_memory")},
        "size_on_disk": result.get("size_on_disk"),
        **{name: speed.get(name) for name in ("latency_ms", "images_per_second")},
    }


def _mean(frame: pd.DataFrame) -> pd.DataFrame:
    """Row of the mean of separate models: mean of the metrics, sum or largest of the costs."""
    categories = list(frame["category"])
    metrics = _metrics(frame)
    row: dict[str, Any] = {name: _joined(frame[name]) for name in frame.columns}
    row |= {"category": summary_label("mean", categories), "kind": "mean", "note": ""}
    row |= {name: frame[name].astype(float).mean() for name in metrics}
    notes = [f"{m}: over {frame[m].notna().sum()} of {len(frame)} categories" for m in metrics if frame[m].isna().any()]
    row["note"] = "; ".join([*notes, *sorted({note for note in frame["note"] if "not exported" in note})])
    row |= {
        name: frame[name].sum(min_count=len(frame)) for name in ("models", "train_seconds", "seconds", "size_on_disk")
    }
    row |= {name: frame[name].sum(min_count=1) for name in COUNTS if name in frame}
    row |= {name: frame[name].max() for name in ("peak_memory", "peak_gpu_memory")}
    row |= {name: frame[name].astype(float).mean() for name in ("latency_ms", "images_per_second")}
    return pd.DataFrame([row])


def _joined(values: pd.Series) -> Any:
    """The value of all rows, or all values in one text."""
    found = list(dict.fromkeys(values.dropna()))
    return found[0] if len(found) == 1 else ", ".join(map(str, found)) if found else None


def _epochs(trainings: Sequence[Training], command: str) -> pd.DataFrame:
    def rows() -> Iterator[dict[str, Any]]:
        for training in trainings:
            for validation in (training.read(RESULT) or {}).get("validations", []):
                data, method, mode, seed = training.cell
                about = {"data": data, "method": method, "mode": mode, "seed": seed, "trained_on": training.category}
                row = _read(training).iloc[0]
                yield {**about, **validation, "device": row["device"], "versions": row["versions"], "command": command}

    return pd.DataFrame(list(rows()))
