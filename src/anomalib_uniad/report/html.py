# SPDX-License-Identifier: Apache-2.0
"""A comparison as one page of html that loads nothing: styles and pictures are inside."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anomalib_uniad.pages import render

from .comparison import Cell, Comparison
from .decisions import find_failures, nearest_good
from .pictures import (
    CURVES_BYTES,
    FAILURES_BYTES,
    HEATMAPS_BYTES,
    choose,
    data_uri,
    find_curves,
    find_heatmaps,
    picture_of,
)
from .text import facts

COLOURS = 6  # of runs, in style.css


def to_html(comparison: Comparison, heatmaps: int, failures: int, images: Path | None = None) -> str:
    """Render a comparison as a page, with some heatmaps, false alarms and missed defects per category.

    Images that have no heatmap are looked for where :func:`~.pictures.picture_of` says.

    Values are shown in percent with one decimal, in full on pointing.
    """
    rows = [(table.title, row) for table in comparison.tables for row in table.rows()]
    means = [(metric if kind == "mean" else label, kind, cells) for metric, (label, kind, cells) in rows]
    return render(
        "report",
        "template.html.j2",
        names=comparison.names,
        colours={run.name: f"run{index % COLOURS}" for index, run in enumerate(comparison.runs)},
        warnings=comparison.warnings,
        subtitle=_subtitle(comparison),
        means=_chart(row for row in means if row[1] != "category"),
        means_note=comparison.means_note,
        tables=[(table.title, _chart(table.rows()), [*table.notes, *table.mean_notes]) for table in comparison.tables],
        decided=list(comparison.decisions.columns.unique(level=0)),
        decisions=comparison.decisions.reset_index().to_numpy().tolist(),
        decision_notes=comparison.decision_notes,
        counted=list(comparison.images.columns),
        images=comparison.images.reset_index().to_numpy().tolist(),
        categories=_pictures(comparison, heatmaps),
        failures=_failures(comparison, failures, images),
        facts={run.name: facts(run) for run in comparison.runs},
    )


def _subtitle(comparison: Comparison) -> list[str]:
    """Data sets, number of categories and, if it is the same in all runs, of test images."""
    datasets = dict.fromkeys(run.about["dataset"] for run in comparison.runs if run.about.get("dataset"))
    number = len(comparison.categories)
    parts = [", ".join(datasets)] if datasets else []
    parts.append(f"{number:,} {'category' if number == 1 else 'categories'}")
    known = all(len(run.images) == len(run.categories) for run in comparison.runs)
    images = {sum(run.images.values()) for run in comparison.runs}
    if known and len(images) == 1:
        (number,) = images
        parts.append(f"{number:,} test {'image' if number == 1 else 'images'}")
    return parts


def _chart(rows: Iterable[tuple[str, str, list[Cell]]]) -> dict[str, Any]:
    """Prepare a table: texts of cells, and where values are on a common axis."""
    rows = list(rows)
    values = [cell.value for _, _, cells in rows for cell in cells if cell.value is not None]
    percent = all(0 <= value <= 1 for value in values)
    # From the next lower tenth to 1: where the values are. Metrics that are no fractions have no axis.
    start = min(int(min(values, default=0.0) * 10) / 10, 0.9) if percent else 0.0

    def prepared(cell: Cell) -> dict[str, Any]:
        if cell.value is None:
            return {"text": "\u2013", "full": cell.reason, "best": cell.best, "partial": False, "at": None}
        return {
            "text": f"{100 * cell.value:.1f}" if percent else f"{cell.value:.4g}",
            "full": repr(cell.value),
            "best": cell.best,
            "partial": cell.partial,
            "at": round(100 * (cell.value - start) / (1 - start), 1) if percent else None,
        }

    return {
        "rows": [{"label": label, "kind": kind, "cells": [*map(prepared, cells)]} for label, kind, cells in rows],
        "axis": f"{100 * start:.0f} to 100" if percent and values else "",
        "percent": percent,
    }


def _pictures(comparison: Comparison, heatmaps: int) -> list[dict[str, Any]]:
    """Curves, heatmaps and thresholds of each category that has any."""
    runs, categories = comparison.runs, comparison.categories
    curves = {(run.name, name): path for run in runs for name in categories if (path := find_curves(run, name))}
    images = {(run.name, name): find_heatmaps(run, name) for run in runs for name in categories}
    labels: dict[str, dict[tuple[str, str], bool]] = {name: {} for name in categories}
    for run in runs:
        known = run.predictions[["category", "path", "label"]].itertuples(index=False)
        for category, path, label in known:
            if label is not None and category in labels:
                labels[category][Path(path).parent.name, Path(path).stem] = label
    chosen = {
        name: choose([found for run in runs if (found := images[run.name, name])], heatmaps, labels[name])
        for name in categories
    }
    curve_limit = CURVES_BYTES // max(1, len(curves))
    image_limit = HEATMAPS_BYTES // max(1, len(runs) * sum(map(len, chosen.values())))
    result = []
    for name in categories:
        of_curves = {run.name: data_uri(curves.get((run.name, name)), "png", curve_limit) for run in runs}
        of_images = {
            "/".join(key): {run.name: data_uri(images[run.name, name].get(key), "jpeg", image_limit) for run in runs}
            for key in chosen[name]
        }
        thresholds = {
            run.name: [(level, f"{value:.4g}", repr(value)) for level, value in levels.items()]
            for run in runs
            if (levels := run.thresholds.get(name))
        }
        if any(of_curves.values()) or of_images or thresholds:
            shown = of_curves if any(of_curves.values()) else {}
            result.append({"name": name, "curves": shown, "heatmaps": of_images, "thresholds": thresholds})
    return result


def _failures(
    comparison: Comparison, count: int, images: Path | None
) -> list[tuple[str, dict[str, list[dict[str, str]]]]]:
    """What went wrong in each category: by run, the picture of each image and of the good image most like it."""
    of_runs = {run.name: find_failures(run.predictions, count) for run in comparison.runs}
    if all(found.empty for found in of_runs.values()):
        return []
    limit = FAILURES_BYTES // (2 * sum(map(len, of_runs.values())))
    shown: dict[str, dict[str, list[dict[str, str]]]] = {name: {} for name in comparison.categories}
    for run in comparison.runs:
        wrong, only = of_runs[run.name], len(run.categories) == 1
        nearest = nearest_good(run.file.parent, wrong[["path", "category"]].itertuples(index=False, name=None))
        for category, rows in wrong.groupby("category", sort=False):
            shown.setdefault(str(category), {})[run.name] = [
                {
                    "what": failure,
                    "name": "/".join(Path(path).parts[-2:]),
                    "picture": data_uri(picture_of(run.file.parent, path, str(category), only, images), "jpeg", limit),
                    "good": data_uri(nearest.get(path), "jpeg", limit),
                    "good_name": nearest[path].name if path in nearest else "",
                }
                for path, failure in zip(rows["path"], rows["failure"], strict=True)
            ]
    return [(category, by_run) for category, by_run in shown.items() if by_run]
