# SPDX-License-Identifier: Apache-2.0
"""A comparison as markdown, as csv and in the terminal."""

import csv
import io
import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .comparison import DECIMALS, Comparison, Row
from .decisions import Decisions

Found = Mapping[str, Mapping[str, Decisions]]
# What a run is described by, in this order; others follow.
ABOUT = ("model", "dataset", "seed", "epochs", "device", "thresholds", "pixel_resolution", "versions", "command")


def to_markdown(comparison: Comparison, decisions: Found) -> str:
    """Render a comparison as markdown.

    Args:
        comparison (Comparison): The comparison. Values get 4 decimals, the best are bold.
        decisions (Found): Run -> category -> its decisions.

    Returns:
        str: The text.
    """
    names = comparison.names
    lines = [f"# Report: {_escape(', '.join(names))}", ""]
    lines += [f"> **Warning.** {_escape(text)}\n" for text in comparison.warnings]
    lines += ["## Means", "", _markdown(["metric", *names], _cells(comparison.summary)), ""]
    lines += _notes([comparison.summary_note] if comparison.summary_note else [])
    for table in comparison.tables:
        lines += [f"## {_escape(table.metric)}", "", _markdown(["category", *names], _cells(table.rows)), ""]
        lines += _notes(table.notes)
    counted = decision_rows(comparison, decisions)
    if counted:
        head = ["category", *(f"{name}, {kind}" for name in decided(decisions) for kind in ("missed", "false alarms"))]
        rows = [[_escape(label), *(text for pair in pairs for text in pair)] for label, pairs in counted]
        lines += ["## Decisions", "", "Missed of the defective images, false alarms of the normal ones.", ""]
        lines += [_markdown(head, rows), "", *_notes(decision_notes(decisions))]
    lines += ["## Runs", ""]
    for run in comparison.runs:
        lines += [f"### {_escape(run.name)}", "", f"- file: {_escape(str(run.file))}"]
        lines += [f"- {_escape(name)}: {_escape(text)}" for name, text in about(run.about)]
        lines.append("")
    return "\n".join(lines)


def to_csv(comparison: Comparison) -> str:
    """Render a comparison as csv.

    Args:
        comparison (Comparison): The comparison.

    Returns:
        str: One row per metric and category, then its means. The columns are ``metric``, ``category``, one per run
            with full values (empty if undefined), ``best``, with the best runs, and ``note``.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(_plain, ["metric", "category", *comparison.names, "best", "note"]))
    for table in comparison.tables:
        for row in table.rows:
            best = "; ".join(name for name, is_best in zip(comparison.names, row.best, strict=True) if is_best)
            note = " ".join(table.notes) if row.kind == "mean" else ""
            values = ["" if value is None else repr(value) for value in row.values]
            writer.writerow([_plain(table.metric), _plain(row.label), *values, _plain(best), _plain(note)])
    return stream.getvalue()


def show(comparison: Comparison, console: Console) -> None:
    """Write means and warnings to the terminal.

    Args:
        comparison (Comparison): The comparison.
        console (Console): The terminal.
    """
    table = Table(title="Means over categories", box=box.HEAVY_HEAD, caption=comparison.summary_note or None)
    table.add_column("metric", overflow="fold")
    for name in comparison.names:
        table.add_column(Text(name), justify="right", overflow="fold")
    for row in comparison.summary:
        cells = [Text(row.label)]  # not plain strings: names in square brackets would be markup
        for text, best in zip(texts(row), row.best, strict=True):
            cells.append(Text(f"* {text}" if best else text, style="bold green" if best else ""))
        table.add_row(*cells)
    console.print(table)
    if len(comparison.runs) > 1:
        console.print("* best", markup=False)
    for text in comparison.warnings:
        console.print(f"Warning: {text}", style="yellow", markup=False, soft_wrap=True)


def texts(row: Row) -> list[str]:
    """Values of a row with 4 decimals, and a mark at means over fewer categories."""
    marks = [" †" if part else "" for part in row.partial]
    return ["" if v is None else f"{v:.{DECIMALS}f}{mark}" for v, mark in zip(row.values, marks, strict=True)]


def about(run: Mapping[str, str]) -> list[tuple[str, str]]:
    """What is known about a run, the important first."""
    names = [*(name for name in ABOUT if name in run), *(name for name in run if name not in ABOUT)]
    return [(name, run[name]) for name in names if run[name] != ""]


def decided(decisions: Found) -> list[str]:
    """Names of the runs that have decisions."""
    return [name for name, found in decisions.items() if found]


def decision_rows(comparison: Comparison, decisions: Found) -> list[tuple[str, list[tuple[str, str]]]]:
    """Count missed defects and false alarms.

    Args:
        comparison (Comparison): The comparison.
        decisions (Found): Run -> category -> its decisions.

    Returns:
        list[tuple[str, list[tuple[str, str]]]]: A category (last: all), and per run that has decisions the missed
            defects and the false alarms, as ``3 of 20``; empty if no run has decisions.
    """
    runs = decided(decisions)
    if not runs:
        return []
    rows = [(name, [_pair(decisions[run].get(name)) for run in runs]) for name in comparison.categories]
    totals = [_pair(sum(decisions[run].values(), Decisions())) for run in runs]
    return [*rows, ("all", totals)] if len(rows) > 1 else rows


def decision_notes(decisions: Found) -> list[str]:
    """Say which images are not counted."""
    left = {name: sum(counts.open for counts in found.values()) for name, found in decisions.items()}
    return [
        f"{name}: {number} images without a label or a decision are left out."
        for name, number in left.items()
        if number
    ]


def _pair(counts: Decisions | None) -> tuple[str, str]:
    if counts is None:
        return "", ""
    missed = f"{counts.missed} of {counts.defective}" if counts.defective else ""
    alarms = f"{counts.false_alarms} of {counts.normal}" if counts.normal else ""
    return missed, alarms


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [
        [_escape(row.label), *(f"**{t}**" if best else t for t, best in zip(texts(row), row.best, strict=True))]
        for row in rows
    ]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Table(box=box.MARKDOWN)
    for index, name in enumerate(head):
        table.add_column(Text(_escape(name)), justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    target = io.StringIO()
    Console(file=target, width=100_000, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines() if line.strip())


def _notes(notes: Sequence[str]) -> list[str]:
    return [*(f"- {_escape(note)}" for note in notes), ""] if notes else []


def _escape(text: str) -> str:
    """Keep names from being markdown or html. Underscores inside of words are none."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*\[\]~|#]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(text: str) -> str:
    """Keep spreadsheets from taking names for formulas."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
