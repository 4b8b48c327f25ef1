# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark: tables and pictures, as one page, as markdown, and each picture as a file."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_uniad.files import ODD, check_output, file_names, plain_table, replacing
from anomalib_uniad.pages import render

from .benchmark import ABOUT, Benchmark, over_seeds, read_benchmark, read_published
from .columns import MODES
from .text import escape, markdown_table
from .write import NAMES

# Column -> heading, and how its values are written.
_COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "models": ("models", "{:.0f}".format),
    "train_seconds": ("training", lambda value: f"{value:.0f} s" if value < 90 else f"{value / 60:.1f} min"),
    "peak_memory": ("memory", lambda value: f"{value / 1e9:.1f} GB"),
    "peak_gpu_memory": ("GPU memory", lambda value: f"{value / 1e9:.1f} GB"),
    "size_on_disk": ("on disk", lambda value: f"{value / 1e6:.1f} MB"),
    "latency_ms": ("one image", lambda value: f"{value:.1f} ms"),
    "images_per_second": ("images/s", "{:.1f}".format),
}
_LOWER_IS_BETTER = {"models", "train_seconds", "peak_memory", "peak_gpu_memory", "size_on_disk", "latency_ms"}
_PICTURES = {
    "cost": "Accuracy against cost. Up and to the left is better; lines show the range over seeds.",
    "modes": "One model for all categories against a model for each.",
    "seeds": "Spread over seeds: a point for each, a line at their mean.",
    "time": "Validation metrics during training, one model for all categories; a line for each seed.",
    "loss": "Loss and validation metrics over epochs. If they fall while the loss does, the network learns to copy.",
}


@dataclass
class Table:
    """A table of texts: a title, a head, rows, and which cells are the best of their column or row."""

    title: str
    head: list[str]
    rows: list[list[str]]
    best: list[list[bool]]


def write_benchmark_report(
    folder: Path,
    output: Path,
    metrics: Sequence[str] | None = None,
    overwrite: bool = False,
    published: Path | None = None,
) -> list[Path]:
    """Write report.md, report.csv, report.html and a picture of each kind.

    Args:
        folder (Path): Folder of a benchmark.
        output (Path): Folder of the report; made if it is not there.
        metrics (Sequence[str] | None): Which metrics, in this order; ``None`` is all. Defaults to ``None``.
        overwrite (bool): Replace reports that are there. Defaults to ``False``.
        published (Path | None): csv file of numbers that others have published, which are put beside those of the
            benchmark. Defaults to ``None``.

    Returns:
        list[Path]: The files.

    Raises:
        OSError: If files are there that would be overwritten, or ``published`` is not there.
        ValueError: If a table of the benchmark is damaged, a metric is unknown, or ``published`` has nothing of it.
    """
    benchmark = read_benchmark(folder, metrics)
    others = None if published is None else read_published(published, benchmark)
    texts = [output / name for name in NAMES]
    drawn = _draw(benchmark)
    pictures = [output / name for of_data in drawn.values() for name in of_data]
    check_output(output, [*texts, *pictures], overwrite)
    summaries = {data: _summary(benchmark, data) for data in benchmark.data}
    details = {data: [_by_category(benchmark, data, name) for name in benchmark.metrics] for data in benchmark.data}
    if others is not None:
        for _, rows in others.groupby(["data", "method", "mode"], sort=False):
            details[rows["data"].iloc[0]].insert(0, _beside(benchmark, rows))
    facts = _facts(benchmark)
    content = [
        _markdown(benchmark, summaries, details, drawn, facts),
        _csv(benchmark),
        _html(benchmark, summaries, details, drawn, facts),
    ]
    output.mkdir(parents=True, exist_ok=True)
    with replacing(*texts, *pictures, overwrite=overwrite) as partial:
        for path, text in zip(partial, content, strict=False):
            path.write_text(text, encoding="utf-8", errors=ODD, newline="")
        data = [picture for of_data in drawn.values() for _, picture in of_data.values()]
        for path, picture in zip(partial[len(texts) :], data, strict=True):
            path.write_bytes(picture)
    return [*texts, *pictures]


def _draw(benchmark: Benchmark) -> dict[str, dict[str, tuple[str, bytes]]]:
    """Pictures of each data: name of the file -> kind and PNG."""
    from .benchmark_plots import draw  # matplotlib takes a second

    names = file_names(benchmark.data)
    drawn: dict[str, dict[str, tuple[str, bytes]]] = {}
    for data in benchmark.data:
        drawn[data] = {}
        for kind, figure in draw(benchmark, data).items():
            stream = io.BytesIO()
            figure.savefig(stream, format="png")
            drawn[data][f"{names[data]}-{kind}.png"] = kind, stream.getvalue()
    return drawn


def _summary(benchmark: Benchmark, data: str) -> Table:
    """Means over categories and costs, a row per method and mode."""
    rows = benchmark.means(data)
    costs = [name for name in _COSTS if rows[name].notna().any()]
    found = over_seeds(rows, [*benchmark.metrics, *costs], ["method", "mode"])
    head = ["method", "mode", *map(_heading, benchmark.metrics), *(_COSTS[name][0] for name in costs)]
    lines: Any = found.iterrows()
    texts = [
        [method, mode, *(_percent(row[name]) for name in benchmark.metrics)]
        + ["" if pd.isna(row[name, "mean"]) else _COSTS[name][1](row[name, "mean"]) for name in costs]
        for (method, mode), row in lines
    ]
    best = [[False] * len(head) for _ in texts]
    for column, name in enumerate([*benchmark.metrics, *costs], 2):
        _mark(texts, best, column, lower=name in _LOWER_IS_BETTER, values=found[name, "mean"])
    seeds = ", ".join(map(str, sorted(rows["seed"].unique())))
    return Table(f"{data}: means over categories{f' and seeds {seeds}' if ',' in seeds else ''}", head, texts, best)


def _by_category(benchmark: Benchmark, data: str, metric: str) -> Table:
    """One metric, a row per category and a column per method and mode."""
    both = pd.concat([benchmark.categories(data), benchmark.means(data)])
    found = over_seeds(both, [metric], ["method", "mode", "category"])[metric]
    kinds = list(dict.fromkeys(zip(both["method"], both["mode"], strict=True)))
    names = list(dict.fromkeys(both["category"]))
    texts, best = [], []
    for name in names:
        keys = [(method, mode, name) for method, mode in kinds]
        cells: list[Any] = [found.loc[key] if key in found.index else None for key in keys]
        values = pd.Series([float("nan") if cell is None else cell["mean"] for cell in cells])
        texts.append([name, *("" if cell is None or pd.isna(cell["mean"]) else _percent_of(cell) for cell in cells)])
        shown = values.round(3)
        best.append([False, *(shown.eq(shown.max()) & (len(kinds) > 1))])
    several = len({mode for _, mode in kinds}) > 1
    head = ["category", *(f"{method}, {mode}" if several else method for method, mode in kinds)]
    return Table(_heading(metric), head, texts, best)


def _beside(benchmark: Benchmark, published: pd.DataFrame) -> Table:
    """What was measured of a method, what others have published of it, and the difference in points, per category."""
    data, method, mode = published[["data", "method", "mode"]].iloc[0]
    both = pd.concat([benchmark.categories(data), benchmark.means(data)])
    both = both.assign(category=both["category"].where(both["kind"] == "category", "mean"))
    both = both[(both["method"] == method) & (both["mode"] == mode)]
    names = [name for name in benchmark.metrics if name in published and published[name].notna().any()]
    measured = over_seeds(both, names, ["category"])
    rows = published.drop_duplicates("category").set_index("category")
    texts = []
    for category in [name for name in rows.index if name in measured.index]:
        texts.append([category])
        for name in names:
            own, other = measured.loc[category, (name, "mean")], rows.loc[category, name]
            difference = f"{100 * (own - other):+.1f}" if pd.notna(own) and pd.notna(other) else ""
            texts[-1] += [*("" if pd.isna(value) else f"{100 * value:.1f}" for value in (own, other)), difference]
    head = ["category", *(text for name in names for text in (_heading(name), "published", "difference"))]
    sources = "; ".join(published["source"].dropna().unique()) if "source" in published else ""
    title = f"{method}, {mode}, beside published numbers{f' ({sources})' if sources else ''}"
    return Table(title, head, texts, [[False] * len(head) for _ in texts])


def _mark(texts: list[list[str]], best: list[list[bool]], column: int, lower: bool, values: pd.Series) -> None:
    """Mark the best of a column, if there are several values; what looks equal is equally good."""
    numbers = values.astype(float).tolist()
    known = [number for number in numbers if not math.isnan(number)]
    if len(set(known)) < 2:
        return
    winner = numbers.index(min(known) if lower else max(known))
    text = texts[winner][column].partition(" (")[0]
    for row, marks in zip(texts, best, strict=True):
        marks[column] = row[column].partition(" (")[0] == text


def _percent(cell: Any) -> str:
    return "" if pd.isna(cell["mean"]) else _percent_of(cell)


def _percent_of(cell: Any) -> str:
    """A mean in percent, with the range over seeds if there is one."""
    mean, low, high = (f"{100 * cell[name]:.1f}" for name in ("mean", "min", "max"))
    return mean if low == high else f"{mean} ({low} to {high})"


def _heading(metric: str) -> str:
    if metric.startswith("image_TPR@FPR"):
        return f"found at {metric.removeprefix('image_TPR@FPR')} % false alarms"
    return metric.replace("_", " ")


def _facts(benchmark: Benchmark) -> list[tuple[str, str]]:
    """Where it was measured, and how."""
    table = benchmark.table
    known = [name for name in ABOUT if name in table]
    facts = [("folder", str(benchmark.folder))]
    facts += [(name, " | ".join(map(str, table[name].dropna().unique()))) for name in known]
    trained = table[table["kind"] == "mean"].groupby("method", sort=False)
    if "epochs" in table:
        epochs = {method: sorted(set(map(str, rows["epochs"].dropna()))) for method, rows in trained}
        facts.append(("epochs", "; ".join(f"{method} {', '.join(values)}" for method, values in epochs.items())))
    return facts


def _notes(benchmark: Benchmark) -> list[str]:
    rows = benchmark.table[benchmark.table["note"].notna() & (benchmark.table["kind"] == "mean")]
    notes = [f"{row.data}, {row.method}, {row.mode}: {row.note}" for row in rows.itertuples() if row.note]
    return list(dict.fromkeys(notes))


def _csv(benchmark: Benchmark) -> str:
    """Means over seeds of all numbers, in full."""
    rows = benchmark.table[benchmark.table["kind"] == "mean"]
    costs = [name for name in _COSTS if rows[name].notna().any()]
    found = over_seeds(rows, [*benchmark.metrics, *costs], ["data", "method", "mode"])
    columns: Any = found.columns
    found.columns = pd.Index([name if what == "mean" else f"{name}_{what}" for name, what in columns])
    text: str = plain_table(found.reset_index()).to_csv(index=False)
    return text


def _markdown(
    benchmark: Benchmark,
    summaries: dict[str, Table],
    details: dict[str, list[Table]],
    drawn: dict[str, dict[str, tuple[str, bytes]]],
    facts: Sequence[tuple[str, str]],
) -> str:
    parts = [
        f"# Benchmark: {escape(', '.join(benchmark.data))}",
        _HINT.format(", with the range over seeds in brackets"),
    ]
    for data in benchmark.data:
        parts += [f"## {escape(data)}", _bold(summaries[data])]
        for name, (kind, _) in drawn[data].items():
            parts += [_PICTURES[kind], f"![{kind}](<{name}>)"]
        for table in details[data]:
            parts += [f"### {escape(table.title)}", _bold(table)]
    parts += ["## Notes", "\n".join(f"- {escape(text)}" for text in _notes(benchmark))] if _notes(benchmark) else []
    parts += ["## How", "\n".join(f"- {name}: {escape(text)}" for name, text in facts)]
    return "\n\n".join(parts) + "\n"


_HINT = (
    "Metrics in percent, means over categories and seeds{}. Training is the time of all models, memory the most that a "
    "training had at once; one image and images/s are of the exported OpenVINO file. The best value is marked."
)


def _bold(table: Table) -> str:
    rows = [
        [f"**{cell}**" if is_best and cell else cell for cell, is_best in zip(row, marks, strict=True)]
        for row, marks in zip(table.rows, table.best, strict=True)
    ]
    return markdown_table(table.head, rows)


def _html(
    benchmark: Benchmark,
    summaries: dict[str, Table],
    details: dict[str, list[Table]],
    drawn: dict[str, dict[str, tuple[str, bytes]]],
    facts: Sequence[tuple[str, str]],
) -> str:
    pictures = {
        data: [
            (kind, _PICTURES[kind], f"data:image/png;base64,{base64.b64encode(picture).decode()}")
            for kind, picture in of_data.values()
        ]
        for data, of_data in drawn.items()
    }
    return render(
        "report",
        "benchmark.html.j2",
        data=benchmark.data,
        hint=_HINT.format("; point at a value to see the range over seeds"),
        summaries=summaries,
        details=details,
        pictures=pictures,
        notes=_notes(benchmark),
        facts=facts,
        modes=[mode for mode in MODES if mode in set(benchmark.table["mode"])],
    )
