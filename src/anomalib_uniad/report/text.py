# SPDX-License-Identifier: Apache-2.0
"""A comparison as markdown, as csv and in the terminal."""

import io
import re
from collections.abc import Iterable, Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anomalib_uniad.files import plain

from .comparison import Comparison
from .runs import Run

# Facts about a run that come first, in this order.
FACTS = ("model", "dataset", "seed", "epochs", "device", "thresholds", "pixel_resolution", "versions", "command")


def to_markdown(comparison: Comparison) -> str:
    """Render a comparison as markdown."""
    parts = [f"# Report: {escape(', '.join(comparison.names))}"]
    parts += [f"> **Warning.** {escape(text)}" for text in comparison.warnings]
    sections = [("Means", "metric", comparison.means(), [comparison.means_note] if comparison.means_note else [])]
    sections += [
        (table.title, "category", table.rows(), [*table.notes, *table.mean_notes]) for table in comparison.tables
    ]
    for title, first, rows, notes in sections:
        texts = [
            [label, *(f"**{cell.text()}**" if cell.best else cell.text() for cell in cells)] for label, _, cells in rows
        ]
        parts += [f"## {escape(title)}", markdown_table([first, *comparison.names], texts), _list(notes)]
    decisions = comparison.decisions
    if not decisions.empty:
        head = ["category", *map(", ".join, decisions.columns)]
        parts += ["## Decisions", "Missed of the defective images, false alarms of the normal ones."]
        parts += [markdown_table(head, decisions.reset_index().to_numpy().tolist()), _list(comparison.decision_notes)]
    images = comparison.images
    if not images.empty:
        parts += ["## Images", "Training / validation / test."]
        parts.append(markdown_table(["category", *images.columns], images.reset_index().to_numpy().tolist()))
    parts.append("## Runs")
    for run in comparison.runs:
        parts += [f"### {escape(run.name)}", _list(f"{name}: {text}" for name, text in facts(run))]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Render a comparison as csv: a row per metric and category, then its means, with full values.

    ``kind`` is ``category``, ``mean`` or ``common`` (the mean over the categories that all runs have); ``note`` says
    why cells are empty, and what means are over.
    """
    frames = []
    for table in comparison.tables:
        best = [[name for name, is_best in zip(comparison.names, row, strict=True) if is_best] for row in table.best]
        frame = table.values.rename(index=plain).reset_index(names="category")
        frame.insert(0, "metric", plain(table.metric))
        frame["best"] = [plain("; ".join(names)) for names in best]
        empty: dict[str, list[str]] = {category: [] for category in comparison.categories}
        for (category, run), reason in table.reasons.items():
            empty[category].append(f"{run}: {reason}")
        notes = [plain("; ".join(empty[category])) for category in comparison.categories]
        notes += [plain(" ".join(table.mean_notes)) if kind == "mean" else "" for kind in table.kinds[len(notes) :]]
        frame["note"], frame["kind"] = notes, table.kinds
        frames.append(frame)
    columns = ["metric", "category", *map(plain, comparison.names), "best", "note", "kind"]
    return pd.concat(frames).set_axis(columns, axis=1).to_csv(index=False, lineterminator="\n")


def show(comparison: Comparison) -> None:
    """Print means and warnings.

    Args:
        comparison (Comparison): The comparison.
    """
    console = Console(highlight=False)
    table = Table(title="Means over categories", box=box.HEAVY_HEAD, caption=comparison.means_note or None)
    table.add_column("metric", overflow="fold")
    for name in comparison.names:
        table.add_column(Text(name), justify="right", overflow="fold")  # as Text: square brackets are no markup
    for label, _, cells in comparison.means():
        marked = [Text(f"* {cell.text()}", "bold green") if cell.best else Text(cell.text()) for cell in cells]
        table.add_row(Text(label), *marked)
    console.print(table)
    if len(comparison.runs) > 1:
        console.print("* best", markup=False)
    for text in comparison.warnings:
        console.print(f"Warning: {text}", style="yellow", markup=False, soft_wrap=True)


def facts(run: Run) -> list[tuple[str, str]]:
    """What is known about a run, the important first."""
    names = [*(name for name in FACTS if name in run.about), *(name for name in run.about if name not in FACTS)]
    return [("file", str(run.file)), *((name, run.about[name]) for name in names if run.about[name] != "")]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of markdown; the cells of the first column are names, the others may have marks of markdown."""
    table = Table(box=box.MARKDOWN)
    for index, name in enumerate(head):
        table.add_column(Text(escape(name)), justify="right" if index else "left")
    for label, *cells in rows:
        table.add_row(Text(escape(label)), *map(Text, cells))
    target = io.StringIO()
    Console(file=target, width=100_000, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines() if line.strip())


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {escape(item)}" for item in items)


def escape(text: str) -> str:
    """Keep names from being markdown or html. Underscores inside of words are none."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*\[\]~|#]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
