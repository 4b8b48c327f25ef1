# SPDX-License-Identifier: Apache-2.0
"""Reads what a test has measured."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .find import find_metrics


@dataclass
class Run:
    """What a test has measured.

    Attributes:
        file (Path): Its metrics.json or metrics.csv.
        name (str): What the report calls it.
        about (dict[str, str]): model, dataset, epochs, thresholds, ..., command.
        metrics (list[str]): Names of the metrics.
        categories (list[str]): Names of the categories.
        values (dict[tuple[str, str], float]): (metric, category) -> value, where it is defined.
        reasons (dict[tuple[str, str], str]): (metric, category) -> why it is undefined, if that is known.
        images (dict[str, int]): Category -> number of images, if that is known.
        thresholds (dict[str, dict[str, float]]): Category -> its thresholds by level, if it has its own.
    """

    file: Path
    name: str = ""
    about: dict[str, str] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)

    def beside(self, name: str, suffix: str = "") -> Path | None:
        """Path of another file of the same test: with the number that its metrics have (metrics-1, curves-1)."""
        stem = self.file.stem
        if not stem.startswith("metrics"):
            return None
        path = self.file.with_name(f"{name}{stem.removeprefix('metrics')}{suffix}")
        return path if path.exists() else None


def read_runs(paths: Sequence[Path], names: Sequence[str] | None = None) -> list[Run]:
    """Read runs and name them.

    Args:
        paths (Sequence[Path]): Folders of runs or files, see :func:`find_metrics`.
        names (Sequence[str] | None): Names of the runs; ``None`` is their models. Equal ones get numbers.
            Defaults to ``None``.

    Returns:
        list[Run]: The runs, in the order given.

    Raises:
        FileNotFoundError: If a run is not there.
        ValueError: If there are no runs, a file is damaged, or the number of names is another.
    """
    if not paths:
        msg = "Give at least one folder of a run, such as results/UniAD/MVTecAD/latest."
        raise ValueError(msg)
    if names is not None and len(names) != len(paths):
        msg = f"names has {len(names)} names ({', '.join(names)}) for {len(paths)} runs: give one for each."
        raise ValueError(msg)
    runs = [_read(find_metrics(path)) for path in paths]
    wanted = names if names is not None else [run.about.get("model") or run.file.parent.name for run in runs]
    for run, name in zip(runs, unique(wanted), strict=True):
        run.name = name
    return runs


def unique(names: Iterable[str]) -> list[str]:
    """Tell equal names apart.

    Args:
        names (Iterable[str]): The names.

    Example:
        >>> unique(["Padim", "UniAD", "Padim"])
        ['Padim', 'UniAD', 'Padim (2)']
    """
    taken: list[str] = []
    for name in names:
        one = name = " ".join(name.split()) or "run"
        number = 1
        while one in taken:
            number += 1
            one = f"{name} ({number})"
        taken.append(one)
    return taken


def _read(file: Path) -> Run:
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return _from_json(file, json.load(stream)) if file.suffix == ".json" else _from_csv(file, stream)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, csv.Error) as error:
        msg = f"{file} is damaged: {error}."
        raise ValueError(msg) from error


def _from_json(file: Path, content: Any) -> Run:
    run = Run(file)
    top = _mapping(file, content, "the file")
    metrics = top.get("metrics")
    if not isinstance(metrics, list) or not metrics or not all(isinstance(name, str) for name in metrics):
        msg = f"{file} is not the metrics.json of a run: metrics is {_short(metrics)}, not a list of names."
        raise ValueError(msg)
    run.metrics = list(dict.fromkeys(metrics))
    run.about = {str(key): _text(value) for key, value in _mapping(file, top.get("run", {}), "run").items()}
    for category, item in _mapping(file, top.get("categories"), "categories").items():
        where = f"categories[{category!r}]"
        item = _mapping(file, item, where)
        run.categories.append(category)
        for metric, value in _mapping(file, item.get("values"), f"{where}.values").items():
            _add(run, metric, category, value, f"{where}.values[{metric!r}]")
        for metric, reason in _mapping(file, item.get("reasons", {}), f"{where}.reasons").items():
            run.reasons[metric, category] = str(reason)
        if isinstance(item.get("images"), int):
            run.images[category] = item["images"]
        thresholds = _mapping(file, item.get("thresholds") or {}, f"{where}.thresholds")
        run.thresholds[category] = {level: value for level, value in thresholds.items() if _is_number(value)}
    return _complete(run)


def _from_csv(file: Path, stream: Iterable[str]) -> Run:
    reader = csv.DictReader(stream, strict=True)
    names = list(reader.fieldnames or [])
    if names[:1] != ["category"] or "note" not in names:
        msg = f"{file} is not the metrics.csv of a run: its columns have to be category, metrics, note and more."
        raise ValueError(msg)
    run = Run(file, metrics=names[1 : names.index("note")])
    rows = list(reader)
    if not rows or rows[-1]["category"] != "mean" or None in rows[-1].values():
        msg = f"{file} is damaged: its last row has to be the mean."
        raise ValueError(msg)
    run.about = {name: rows[-1][name] for name in names[names.index("note") + 1 :]}
    for line, row in enumerate(rows[:-1], 2):
        category = row["category"]
        run.categories.append(category)
        for metric in run.metrics:
            try:
                value: Any = float(row[metric]) if row[metric] else None
            except (TypeError, ValueError):
                value = row[metric]  # not a number, which is an error with all others of its kind
            _add(run, metric, category, value, f"row {line}, {metric}")
        _add_reasons(run, category, row["note"] or "")
    return _complete(run)


def _add(run: Run, metric: str, category: str, value: Any, where: str) -> None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return
    if not _is_number(value) or not math.isfinite(value):
        msg = f"{run.file} is damaged: {where} is {_short(value)}, not a number."
        raise ValueError(msg)
    if metric not in run.metrics:
        msg = f"{run.file} is damaged: {where} is not one of its metrics ({', '.join(run.metrics)})."
        raise ValueError(msg)
    run.values[metric, category] = float(value)


def _add_reasons(run: Run, category: str, note: str) -> None:
    """Split a note such as ``pixel_AP, pixel_AUPRO: no masks; image_AUROC: only normal images``."""
    for part in filter(None, note.split("; ")):
        names, _, reason = part.partition(": ")
        for metric in set(names.split(", ")) & set(run.metrics):
            run.reasons[metric, category] = reason


def _complete(run: Run) -> Run:
    if not run.metrics or not run.categories:
        msg = f"{run.file} has no {'categories' if run.metrics else 'metrics'}, so there is nothing to report."
        raise ValueError(msg)
    return run


def _mapping(file: Path, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        msg = f"{file} is not the metrics.json of a run: {where} is {_short(value)}, not a mapping."
        raise ValueError(msg)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
