# SPDX-License-Identifier: Apache-2.0
"""Finds and reads the files of a test: ``metrics.json`` or ``metrics.csv``, and ``predictions.csv``."""

import csv
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_uniad.checks import is_finite, show
from anomalib_uniad.errors import InputError, MissingFileError, UserError
from anomalib_uniad.files import ODD, original, shortened

from .decisions import read_predictions

# Columns of metrics.csv after the note that are about the row, not about the run.
COUNTS = ("training_images", "validation_images", "test_images", "defective", "missed", "false_alarms", "undecided")


@dataclass
class Run:
    """Results of a test; metrics and categories by their names."""

    file: Path  # its metrics.json or metrics.csv
    name: str = ""  # in the report
    about: dict[str, str] = field(default_factory=dict)  # model, dataset, epochs, thresholds, ..., command
    metrics: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    values: dict[tuple[str, str], float] = field(default_factory=dict)  # (metric, category) -> value, where defined
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)  # (metric, category) -> why it is undefined
    images: dict[str, int] = field(default_factory=dict)  # category -> number of images, if known
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # category -> what (COUNTS) -> number, if known
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)  # category -> level -> its own threshold
    predictions: pd.DataFrame = field(default_factory=lambda: read_predictions(None))  # labels and decisions of images

    def beside(self, name: str, suffix: str = "") -> Path | None:
        """Path of another file of the same test: with the number that its metrics have (metrics-1, curves-1)."""
        stem = self.file.stem
        if not stem.startswith("metrics"):
            return None
        path = self.file.with_name(f"{name}{stem.removeprefix('metrics')}{suffix}")
        return path if path.exists() else None


def read_runs(paths: Sequence[Path], names: Sequence[str] | None = None) -> list[Run]:
    """Read runs, in the order given, and name them: by their models, if no names are given."""
    if not paths:
        raise InputError("Give at least one folder of a run, such as results/UniAD/MVTecAD/latest.")
    if names is not None and len(names) != len(paths):
        raise InputError(f"names has {len(names)} names ({', '.join(names)}) for {len(paths)} runs: give one for each.")
    runs = [_read(find_metrics(path)) for path in paths]
    wanted = names if names is not None else [run.about.get("model") or run.file.parent.name for run in runs]
    for run, name in zip(runs, unique(wanted), strict=True):
        run.name, run.predictions = name, read_predictions(run.beside("predictions", ".csv"))
    return runs


def unique(names: Iterable[str]) -> list[str]:
    """Tell equal names apart by numbers: ``Padim``, ``Padim (2)``."""
    taken: list[str] = []
    for name in names:
        name = name or "run"
        one, number = name, 1
        while one in taken:
            number += 1
            one = f"{name} ({number})"
        taken.append(one)
    return taken


def find_metrics(run: Path) -> Path:
    """Find the newest ``metrics*.json`` of a folder, else ``metrics*.csv``; if it has neither, of its sub-folders."""
    run = run.expanduser()
    if run.is_file():
        if run.suffix not in {".json", ".csv"}:
            raise InputError(f"{run} is not the metrics.json or metrics.csv of a run.")
        return run
    if not run.is_dir():
        raise MissingFileError(f"{run} is not there: give the folder of a run, such as results/UniAD/MVTecAD/latest.")
    found = find_newest(run, ("metrics*.json", "metrics*.csv"))  # json has more about the run
    if found is None:
        msg = f"{run} is not the folder of a run: neither it nor a folder in it has metrics.json or metrics.csv."
        raise MissingFileError(msg)
    return found


def find_newest(run: Path, patterns: Sequence[str]) -> Path | None:
    """Find the newest file of a folder, else of its sub-folders, whose name has the first pattern that any has."""
    if found := _newest_in(run, patterns):
        return found
    below = [found for folder in sorted(run.iterdir()) if folder.is_dir() and (found := _newest_in(folder, patterns))]
    return max(below, key=_age, default=None)


def _newest_in(folder: Path, patterns: Sequence[str]) -> Path | None:
    for pattern in patterns:
        if found := [path for path in folder.glob(pattern) if path.is_file()]:
            return max(found, key=_age)
    return None


def _age(path: Path) -> tuple[float, list[int]]:
    """Sort by time, and by the numbers in the path where copying has made times equal (v9 before v10)."""
    return path.stat().st_mtime, [int(number) for number in re.findall(r"\d+", f"{path.parent.name}/{path.stem}")]


def _read(file: Path) -> Run:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            is_json = file.suffix == ".json"
            run = _from_json(file, json.load(stream, object_pairs_hook=_text)) if is_json else _from_csv(file, stream)
    except UserError:
        raise
    except (ValueError, OverflowError, RecursionError, csv.Error) as error:  # of json, text and numbers
        raise InputError(f"{file} is damaged: {shortened(error)}.") from error
    if not run.metrics or not run.categories:
        raise InputError(f"{file} has no {'categories' if run.metrics else 'metrics'}, so there is nothing to report.")
    return run


def _text(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names and values are text: half a character, as names of files may have, becomes its escape."""

    def whole(value: Any) -> Any:
        parts = [whole(part) for part in value] if isinstance(value, list) else value
        return value.encode("utf-8", ODD).decode() if isinstance(value, str) else parts

    return {whole(name): whole(value) for name, value in pairs}


def _from_json(file: Path, content: Any) -> Run:
    def mapping(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise InputError(f"{file} is not the metrics.json of a run: {where} is {_short(value)}, not a mapping.")
        return value

    metrics = mapping(content, "the file").get("metrics")
    if not isinstance(metrics, list) or not metrics or not all(isinstance(name, str) for name in metrics):
        raise InputError(f"{file} is not the metrics.json of a run: metrics is {_short(metrics)}, not a list of names.")
    run = Run(file, metrics=list(dict.fromkeys(metrics)))
    for key, value in mapping(content.get("run", {}), "run").items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        run.about[key] = "" if value is None else text
    for category, item in mapping(content.get("categories"), "categories").items():
        where = f"categories[{category!r}]"
        run.categories.append(category)
        for metric, value in mapping(mapping(item, where).get("values"), f"{where}.values").items():
            _add(run, metric, category, value, f"{where}.values[{metric!r}]")
        for metric, reason in mapping(item.get("reasons", {}), f"{where}.reasons").items():
            run.reasons[metric, category] = str(reason)
        if isinstance(item.get("images"), int):
            run.images[category] = item["images"]
        counts = mapping(item.get("counts") or {}, f"{where}.counts")
        run.counts[category] = {name: value for name in COUNTS if isinstance(value := counts.get(name), int)}
        thresholds = mapping(item.get("thresholds") or {}, f"{where}.thresholds")
        run.thresholds[category] = {level: value for level, value in thresholds.items() if _is_number(value)}
    return run


def _from_csv(file: Path, stream: Iterable[str]) -> Run:
    reader = csv.DictReader(stream, strict=True)
    names = [original(name) for name in reader.fieldnames or []]
    if names[:1] != ["category"] or "note" not in names:
        msg = f"{file} is not the metrics.csv of a run: its columns have to be category, metrics, note and more."
        raise InputError(msg)
    run = Run(file, metrics=names[1 : names.index("note")])
    rows = [{original(name): original(text) for name, text in row.items()} for row in reader]
    # The row of the means is the last one; a category may be called "mean", and the row then something else.
    if not rows or rows[-1].get("kind", rows[-1]["category"]) != "mean" or None in rows[-1].values():
        raise InputError(f"{file} is damaged: its last row has to be the mean.")
    about = [name for name in names[names.index("note") + 1 :] if name not in ("kind", "threshold_rule", *COUNTS)]
    run.about = {name: rows[-1][name] for name in about}
    for line, row in enumerate(rows[:-1], 2):
        category = row["category"]
        run.categories.append(category)
        run.counts[category] = {
            name: int(row[name]) for name in COUNTS if re.fullmatch(r"\d{1,18}", row.get(name) or "")
        }
        if "test_images" in run.counts[category]:
            run.images[category] = run.counts[category]["test_images"]
        for metric in run.metrics:
            try:
                value: Any = float(row[metric]) if row[metric] else None
            except ValueError:
                value = row[metric]  # refused with its line
            _add(run, metric, category, value, f"row {line}, {metric}")
        for part in filter(None, (row["note"] or "").split("; ")):  # pixel_AP, pixel_AUPRO: no masks; image_AP: ...
            of_metrics, _, reason = part.partition(": ")
            run.reasons |= {(metric, category): reason for metric in of_metrics.split(", ") if metric in run.metrics}
    return run


def _add(run: Run, metric: str, category: str, value: Any, where: str) -> None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return
    if not is_finite(value):
        raise InputError(f"{run.file} is damaged: {where} is {_short(value)}, not a number.")
    if metric not in run.metrics:
        names = shortened(", ".join(run.metrics))
        raise InputError(f"{run.file} is damaged: {where} is not one of its metrics ({names}).")
    run.values[metric, category] = float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return "missing" if value is None else show(value)
