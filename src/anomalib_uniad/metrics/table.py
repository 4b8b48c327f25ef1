# SPDX-License-Identifier: Apache-2.0
"""Tables of metrics per category: in the terminal, as csv and as markdown."""

import io
import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anomalib_uniad.metrics.per_category import Results


def to_frame(results: Results) -> pd.DataFrame:
    """Turn results into a table.

    Args:
        results (Results): Metrics of each category.

    Returns:
        pd.DataFrame: One row per category and a last one for their mean. The columns are ``category``, one
        per metric (NaN where it is undefined) and ``note``, which has the reasons for that.
    """
    rows: list[dict[str, Any]] = []
    for category in results.categories:
        values = {name: results.values.get((name, category)) for name in results.metrics}
        notes: dict[str, list[str]] = {}
        for name in results.metrics:
            if (name, category) in results.reasons:
                notes.setdefault(results.reasons[name, category], []).append(name)
        rows.append({"category": category, **values, "note": _join(notes)})
    means = {name: results.mean(name) for name in results.metrics}
    partial: dict[str, list[str]] = {}
    for name in results.metrics:
        defined = len(results.of(name))
        if 0 < defined < len(results.categories):
            partial.setdefault(f"over {defined} of {len(results.categories)} categories", []).append(name)
    rows.append({"category": "mean", **means, "note": _join(partial)})
    frame = pd.DataFrame(rows)
    for name in results.metrics:
        frame[name] = [float("nan") if value is None else float(value) for value in frame[name]]
    return frame


def show(frame: pd.DataFrame, title: str) -> None:
    """Write a table to the terminal.

    Args:
        frame (pd.DataFrame): Table as of :func:`to_frame`.
        title (str): What is above it.
    """
    console = Console(highlight=False)
    console.print(_render(frame.drop(columns="note"), title))  # which would leave no room for the numbers
    for category, note in zip(frame["category"], frame["note"], strict=True):
        if note:
            console.print(Text(f"{category}: {note}"))


def to_markdown(frame: pd.DataFrame) -> str:
    """Render a table as markdown.

    Args:
        frame (pd.DataFrame): The table. Fractions get 4 decimals, and NaN an empty cell.

    Returns:
        str: Lines of markdown, without one at the end.

    Example:
        >>> print(to_markdown(pd.DataFrame({"category": ["bottle"], "image_AUROC": [0.98765]})))
        | category | image_AUROC |
        |----------|-------------|
        | bottle   |      0.9877 |
    """
    target = io.StringIO()
    Console(file=target, width=10_000, color_system=None).print(_render(frame, markdown=True))
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines() if line.strip())


def describe_run(
    trainer: Any,
    pl_module: Any,
    epochs: int | None,
    learned_from: str | None,
    scope: str = "global",
    pixel_resolution: str = "model",
    raw: bool = True,
) -> dict[str, Any]:
    """Collect what a row of results must tell to be understood on its own.

    Args:
        trainer (Any): Lightning trainer.
        pl_module (Any): The model.
        epochs (int | None): Epochs that the model was trained for, ``None`` if unknown.
        learned_from (str | None): On which images thresholds were learned, ``""`` if unknown; ``None`` if on none.
        scope (str): Whether decisions are by one threshold, ``"global"``, or by that of the ``"category"``.
        pixel_resolution (str): At which size pixels were compared. Defaults to ``"model"``.
        raw (bool): Whether the scores are those of the model itself, or as anomalib normalises them.
            Defaults to ``True``.

    Returns:
        dict[str, Any]: model, dataset, epochs, thresholds, decisions, pixel_resolution, scores, seed, device,
            versions and command; empty strings if unknown.
    """
    device = torch.device(getattr(pl_module, "device", "cpu"))
    seed = getattr(pl_module, "seed", None)
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return {
        "model": getattr(pl_module, "name", type(pl_module).__name__),
        "dataset": getattr(getattr(trainer, "datamodule", None), "name", ""),
        "epochs": "" if epochs is None else epochs,
        "thresholds": "none" if learned_from is None or not _has_thresholds(pl_module) else learned_from,
        "decisions": scope,
        "pixel_resolution": pixel_resolution,
        "scores": "raw" if raw else "normalised",
        "seed": os.environ.get("PL_GLOBAL_SEED", "") if seed is None else seed,
        "device": f"{device}{name}",
        "versions": versions(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _has_thresholds(pl_module: Any) -> bool:
    """Whether a model has a post-processor that learns thresholds or a normalisation."""
    post_processor = getattr(pl_module, "post_processor", None)
    flags = ("enable_thresholding", "enable_normalization")
    return post_processor is not None and any(getattr(post_processor, flag, True) for flag in flags)


def versions() -> str:
    """Versions of the packages that results depend on."""
    return "; ".join(f"{package} {_version(package)}" for package in ("anomalib", "torch", "anomalib-uniad"))


def _join(notes: dict[str, list[str]]) -> str:
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in notes.items())


def _render(frame: pd.DataFrame, title: str | None = None, markdown: bool = False) -> Table:
    # In the terminal, nine metrics have to fit into 80 columns.
    table = Table(title=title, box=box.MARKDOWN) if markdown else Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    columns = [name for name in frame.columns if name != "note" or frame["note"].astype(bool).any()]
    for name in columns:
        heading = name if markdown else name.replace("_", "_\n", 1)
        left = name in ("category", "note")
        table.add_column(Text(heading), justify="left" if left else "right", overflow="fold" if left else "ellipsis")
    for index, row in enumerate(frame[columns].itertuples(index=False)):
        cells = [_cell(value) for value in row]
        if markdown:
            cells = [cell.replace("|", "\\|") for cell in cells]
        elif index == len(frame) - 1:
            table.add_section()
        table.add_row(*map(Text, cells))  # not plain strings: names in square brackets would be markup
    return table


def _cell(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # the source tree, not installed
        return "unknown"
