# SPDX-License-Identifier: Apache-2.0
"""A comparison as one page of html, with everything inside."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .comparison import Comparison, Row
from .decisions import Decisions
from .pictures import CURVES_BYTES, HEATMAPS_BYTES, choose, find_curves, find_heatmaps, jpeg, png
from .tables import about, decided, decision_notes, decision_rows

COLOURS = 6  # of runs, in style.css


def to_html(comparison: Comparison, decisions: Mapping[str, Mapping[str, Decisions]], heatmaps: int = 2) -> str:
    """Render a comparison as one page of html.

    Args:
        comparison (Comparison): The comparison. Values are shown in percent with one decimal, in full on pointing.
        decisions (Mapping[str, Mapping[str, Decisions]]): Run -> category -> its decisions.
        heatmaps (int): Heatmaps per category. Defaults to ``2``.

    Returns:
        str: The page; it loads nothing, pictures are inside.
    """
    environment = Environment(
        loader=PackageLoader("anomalib_uniad.report", "."),
        autoescape=True,  # names may be anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = comparison.runs
    colours = {run.name: f"run{index % COLOURS}" for index, run in enumerate(runs)}
    return environment.get_template("template.html.j2").render(
        names=comparison.names,
        colours=colours,
        warnings=comparison.warnings,
        facts=_facts(comparison),
        summary=_chart(_means(comparison)),
        summary_note=comparison.summary_note,
        tables=[(table.metric, _chart(table.rows), table.notes) for table in comparison.tables],
        decided=decided(decisions),
        decisions=decision_rows(comparison, decisions),
        decision_notes=decision_notes(decisions),
        categories=_categories(comparison, decisions, heatmaps),
        about={run.name: [("file", str(run.file)), *about(run.about)] for run in runs},
    )


def _facts(comparison: Comparison) -> list[str]:
    """What the page is about, for its head."""
    datasets = dict.fromkeys(run.about["dataset"] for run in comparison.runs if run.about.get("dataset"))
    images = [sum(run.images.values()) for run in comparison.runs if len(run.images) == len(run.categories)]
    facts = [", ".join(datasets)] if datasets else []
    facts.append(_count(len(comparison.categories), "category", "categories"))
    if len(images) == len(comparison.runs) and len(set(images)) == 1:
        facts.append(_count(images[0], "test image", "test images"))
    return facts


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _means(comparison: Comparison) -> list[Row]:
    """The summary, with metrics as labels; means of common categories are below them."""
    return [
        replace(row, label=table.metric) if row.kind == "mean" else row
        for table in comparison.tables
        for row in table.means
    ]


def _chart(rows: list[Row]) -> dict[str, Any]:
    """Prepare a table: texts of cells, and where values are on a common axis."""
    values = [value for row in rows for value in row.values if value is not None]
    percent = all(0 <= value <= 1 for value in values)
    # From the next lower tenth to 1: where the values are. Metrics that are no fractions have no axis.
    start = min(int(min(values, default=0.0) * 10) / 10, 0.9) if percent else 0.0
    shown = [
        {
            "label": row.label,
            "kind": row.kind,
            "cells": [
                {
                    "text": "" if value is None else f"{100 * value:.1f}" if percent else f"{value:.4g}",
                    "full": "" if value is None else repr(value),
                    "best": best,
                    "partial": partial and value is not None,
                    "at": None if value is None or not percent else round(100 * (value - start) / (1 - start), 1),
                }
                for value, best, partial in zip(row.values, row.best, row.partial, strict=True)
            ],
        }
        for row in rows
    ]
    return {"rows": shown, "axis": f"{100 * start:.0f} to 100" if percent and values else "", "percent": percent}


def _categories(
    comparison: Comparison, decisions: Mapping[str, Mapping[str, Decisions]], heatmaps: int
) -> list[dict[str, Any]]:
    """Collect pictures and thresholds per category."""
    runs = comparison.runs
    curves = {(run.name, name): find_curves(run, name) for run in runs for name in comparison.categories}
    images = {(run.name, name): find_heatmaps(run, name) for run in runs for name in comparison.categories}
    chosen = {
        name: choose([found for run in runs if (found := images[run.name, name])], heatmaps, decisions.values(), name)
        for name in comparison.categories
    }
    curve_limit = CURVES_BYTES // max(1, sum(path is not None for path in curves.values()))
    image_limit = HEATMAPS_BYTES // max(1, len(runs) * sum(map(len, chosen.values())))
    result = []
    for name in comparison.categories:
        with_curves = [(run.name, png(path, curve_limit) if (path := curves[run.name, name]) else "") for run in runs]
        result.append(
            {
                "name": name,
                "curves": with_curves if any(uri for _, uri in with_curves) else [],
                "heatmaps": [
                    (
                        "/".join(key),
                        [
                            (run.name, jpeg(path, image_limit) if (path := images[run.name, name].get(key)) else "")
                            for run in runs
                        ],
                    )
                    for key in chosen[name]
                ],
                "thresholds": [
                    (run.name, [(level, f"{value:.4g}", repr(value)) for level, value in levels.items()])
                    for run in runs
                    if (levels := run.thresholds.get(name))
                ],
            }
        )
    return [item for item in result if item["curves"] or item["heatmaps"] or item["thresholds"]]
