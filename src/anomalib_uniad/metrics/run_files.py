# SPDX-License-Identifier: Apache-2.0
"""Results of a run: the table in the terminal; metrics.csv, .md and .json, predictions.csv and curves."""

import io
import json
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anomalib_uniad.category import UNKNOWN_PRODUCT, paths_of, summary_label
from anomalib_uniad.errors import ExistingFileError, InputError
from anomalib_uniad.files import ODD, file_names, plain_table, replacing, version_of
from anomalib_uniad.metric_names import heading, in_words
from anomalib_uniad.metrics.batches import without_score
from anomalib_uniad.metrics.category_metrics import Results
from anomalib_uniad.metrics.functional import Floats
from anomalib_uniad.metrics.scores import gather_objects
from anomalib_uniad.metrics.thresholds import Thresholds

NO_SCORE = "the score is not a number"
_LABELS = ("normal", "anomalous")
COUNTS = ("training_images", "validation_images", "test_images", "defective", "missed", "false_alarms", "undecided")
_PREDICTIONS = [
    "path",
    "category",
    "label",
    "product",
    "raw_score",
    "normalised_score",
    "threshold",
    "decision",
    "error",
]
_NUMBERS = ("raw_score", "normalised_score", "threshold")


class Predictions:
    """Collects the rows of ``predictions.csv``, one per image of a test or prediction.

    The columns are ``path``, ``category``, ``label`` (``normal`` or ``anomalous``), ``product`` as recognised by a
    model that does so, ``raw_score`` as the model returns it, ``normalised_score`` from 0 to 1 with the threshold at
    0.5 (unless anomalib's sensitivity moves it), ``threshold`` in raw scores, ``decision`` and ``error``. A decision is
    ``normal``, ``anomalous`` or ``unknown``, of a product that the model does not know. Cells are empty where something
    is unknown; an image whose score is not a number has an error instead of a decision.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []

    def add(
        self,
        batch: Any,
        raw_scores: torch.Tensor | None,
        categories: Sequence[str],
        threshold: float,
        category_thresholds: Thresholds,
    ) -> None:
        """Add the first images of a batch, as many as there are categories.

        Args:
            batch (Any): Batch of B images after post-processing.
            raw_scores (torch.Tensor | None): Scores ``(B,)`` as the model returned them; ``None`` if unknown.
            categories (Sequence[str]): Category of each of the first images.
            threshold (float): The global threshold in raw scores; NaN if there is none.
            category_thresholds (Thresholds): Thresholds that are used in its place.
        """
        count = len(batch)
        products = getattr(batch, "product", None)
        columns = (
            paths_of(batch),
            _labels(batch.gt_label, count),
            [None] * count if products is None else products,
            _numbers(raw_scores, count),
            _numbers(batch.pred_score, count),
            _labels(batch.pred_label, count),
            [False] * count if (wrong := without_score(batch, raw_scores)) is None else wrong.tolist(),
        )
        for category, (path, label, product, raw, score, decision, bad) in zip(
            categories, zip(*columns, strict=True), strict=False
        ):
            used = category_thresholds.get(category if product is None else product, {}).get("image", threshold)
            if product is not None:
                decision = UNKNOWN_PRODUCT if not product else "" if math.isnan(used) else decision
            end = ("", NO_SCORE) if bad else (decision, "")
            self._rows.append((str(path or ""), category, label, product or "", raw, score, used, *end))

    def table(self) -> pd.DataFrame:
        """Return the rows of all processes, each of which must call this; by path if there are several processes."""
        parts = gather_objects(self._rows)
        self._rows = [row for rows in parts for row in rows]
        # Objects, since names need not be text, which columns of Arrow have to be.
        frame = pd.DataFrame(self._rows, columns=_PREDICTIONS, dtype=object).astype(dict.fromkeys(_NUMBERS, float))
        return frame if len(parts) == 1 else frame.sort_values("path", ignore_index=True)

    def scores(self, category: str) -> tuple[Floats, Floats]:
        """Return the raw scores of a category, as far as they are known here: normal images, then defective ones."""
        rows = [(row[2], row[4]) for row in self._rows if row[1] == category and not math.isnan(row[4])]
        normal, defective = (np.array([score for label, score in rows if label == kind]) for kind in _LABELS)
        return normal, defective


class RunFiles:
    """Files of one test, or of one prediction, all with the same number: ``metrics.csv``, ``metrics-1.csv`` and so on.

    What is there stays, also what another process has written meanwhile.

    Args:
        folder (Path): Folder of the run; created when something is written.
        stem (str): Name of the tables, ``metrics`` after a test. Defaults to ``"metrics"``.
    """

    def __init__(self, folder: Path, stem: str = "metrics") -> None:
        self._folder = folder
        self._stem = stem
        self._end = ""
        self._written = False
        self._take_number()

    def _take_number(self) -> None:
        """Take the first number that is free."""
        names = [(self._stem, ".csv"), (self._stem, ".md"), (self._stem, ".json"), ("predictions", ".csv")]
        number = 0
        while any(self._path(*name).exists() for name in [*names, ("curves", "")]):
            number += 1
            self._end = f"-{number}"

    def write_metrics(
        self,
        results: Results,
        run: Mapping[str, Any],
        thresholds: Thresholds,
        counts: pd.DataFrame,
        rules: Mapping[str, str] | None = None,
    ) -> None:
        """Write the table as csv, markdown and json.

        Args:
            results (Results): Metrics of each category.
            run (Mapping[str, Any]): What the run was; columns of the csv, so that each row tells its origin.
            thresholds (Thresholds): Thresholds of categories, in raw scores.
            counts (pd.DataFrame): Images and decisions, of :func:`count`.
            rules (Mapping[str, str] | None): How the threshold of a category was found, and by how many images.
                Defaults to ``None``, not known.
        """
        rules = rules or {}
        frame = to_frame(results)
        # A category may be called as the row of the means: `kind` tells them apart.
        kinds = [*["category"] * len(results.categories), "mean"]
        whole = pd.concat([frame.assign(kind=kinds), counts[list(COUNTS)]], axis=1)
        named = zip(whole["category"], whole["kind"], strict=True)
        whole["threshold_rule"] = [rules.get(name, "") if kind == "category" else "" for name, kind in named]
        table_of_run = plain_table(whole.assign(**run)).to_csv(index=False)
        lines = [
            to_markdown(frame.assign(note=short_notes(frame))),
            "",
            "Images and decisions:",
            "",
            to_markdown(without_unknown(counts)),
            "",
        ]
        lines += [*(f"- {name}: {value}" for name, value in run.items() if value != ""), ""]
        if thresholds:
            rows = [{"category": category, **levels} for category, levels in thresholds.items()]
            table = pd.DataFrame(rows, dtype=object).astype(dict.fromkeys({*chain(*thresholds.values())}, float))
            if rules:
                table["image by"] = [rules.get(name, "") for name in thresholds]
            lines += ["Thresholds of the categories, in raw scores:", "", to_markdown(table), ""]
        document = {
            "run": dict(run),
            "metrics": results.metrics,
            "categories": {
                category: {
                    "images": results.images.get(category, 0),
                    "counts": {name: None if pd.isna(row[name]) else int(row[name]) for name in COUNTS},
                    "values": {name: results.values.get((name, category)) for name in results.metrics},
                    "reasons": {m: reason for (m, name), reason in results.reasons.items() if name == category},
                    "threshold_rule": rules.get(category, ""),
                    "thresholds": {k: v if math.isfinite(v) else None for k, v in thresholds.get(category, {}).items()},
                }
                for category, (_, row) in zip(results.categories, counts.iterrows(), strict=False)
            },
            "mean": {name: results.mean(name) for name in results.metrics},
        }
        text = json.dumps(document, indent=1, ensure_ascii=False)
        self._write({".csv": table_of_run, ".md": "\n".join(lines), ".json": text + "\n"}, self._stem)

    def write_predictions(self, predictions: pd.DataFrame) -> Path:
        """Write the table of :class:`Predictions`, and return the path of the csv."""
        self._write({".csv": plain_table(predictions).to_csv(index=False)}, "predictions")
        return self._path("predictions", ".csv")

    def write_curves(self, pictures: Mapping[str, bytes]) -> None:
        """Write pictures of curves (category -> PNG)."""
        folder = self._path("curves", "")
        folder.mkdir(parents=True, exist_ok=True)
        names = file_names(list(pictures))
        with replacing(*(folder / f"{name}.png" for name in names.values()), overwrite=False) as parts:
            for category, part in zip(names, parts, strict=True):
                part.write_bytes(pictures[category])

    def _write(self, texts: Mapping[str, str], stem: str) -> None:
        """Write files of a name (suffix -> text); the first ones get another number if they are there by now."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(*(self._path(stem, suffix) for suffix in texts), overwrite=False) as parts:
                for part, text in zip(parts, texts.values(), strict=True):
                    part.write_text(text, encoding="utf-8", errors=ODD, newline="")
        except ExistingFileError:
            if self._written:
                raise
            self._take_number()
            self._write(texts, stem)
        self._written = True

    def _path(self, stem: str, suffix: str) -> Path:
        return self._folder / f"{stem}{self._end}{suffix}"


def check_scores(predictions: pd.DataFrame) -> None:
    """Refuse a table of :class:`Predictions` with scores that are not numbers; to be called when it is written.

    Raises:
        ValueError: If there are such scores; the message names an image.
    """
    wrong = predictions.path[predictions.error == NO_SCORE]
    if len(wrong):
        raise InputError(
            f"{len(wrong)} of {len(predictions)} images have a score that is not a number, for example "
            f"{wrong.iloc[0]}: nothing is decided about them, and their rows in predictions.csv have an error. The "
            "model is damaged: take another checkpoint."
        )


def to_frame(results: Results) -> pd.DataFrame:
    """Turn results into a table: a row per category and one for the mean; undefined values are NaN, with a note."""
    rows: list[dict[str, Any]] = []
    for category in results.categories:
        values = {name: results.values.get((name, category)) for name in results.metrics}
        reasons = {name: results.reasons.get((name, category), "") for name in results.metrics}
        rows.append({"category": category, **values, "note": _note(reasons)})
    of, defined = len(results.categories), {name: len(results.of(name)) for name in results.metrics}
    reasons = {name: "" if n == of else f"over {n} of {of} categories" for name, n in defined.items()}
    means = {name: results.mean(name) for name in results.metrics}
    rows.append({"category": summary_label("mean", results.categories), **means, "note": _note(reasons)})
    return pd.DataFrame(rows, dtype=object).astype(dict.fromkeys(results.metrics, float))


def count(
    categories: Sequence[str], images: Mapping[str, Mapping[str, int]], predictions: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Count images and decisions of each category.

    Args:
        categories (Sequence[str]): Names of the categories.
        images (Mapping[str, Mapping[str, int]]): Number of images, of
            :func:`~anomalib_uniad.metrics.batches.count_images`.
        predictions (pd.DataFrame | None): Table of :class:`Predictions`. Defaults to ``None``.

    Returns:
        pd.DataFrame: A row per category and one for all; columns ``category``, ``training_images``,
            ``validation_images``, ``test_images``, and of the test images with a label ``defective``, ``missed`` of
            them, ``false_alarms`` and, without a decision, ``undecided``. What is not known is ``<NA>``.
    """
    rows: list[dict[str, Any]] = [{"category": category, **images.get(category, {})} for category in categories]
    if predictions is not None and len(predictions):
        found = Counter(zip(predictions.category, predictions.label, predictions.decision, strict=True))
        for row in rows:
            normal, defective = (
                {word: found[row["category"], label, word] for word in ("", UNKNOWN_PRODUCT, *_LABELS)}
                for label in _LABELS
            )
            if total := sum(normal.values()) + sum(defective.values()):
                undecided = normal[""] + defective[""]
                row["defective"], row["undecided"] = sum(defective.values()), undecided
                if undecided < total:
                    row["missed"] = defective["normal"]
                    row["false_alarms"] = normal["anomalous"] + normal[UNKNOWN_PRODUCT]
    frame = pd.DataFrame(rows, columns=["category", *COUNTS], dtype=object).astype(dict.fromkeys(COUNTS, "Int64"))
    sums = frame[list(COUNTS)].sum(min_count=1)
    frame.loc[len(frame)] = [summary_label("all", categories), *sums]
    return frame


def for_people(values: Sequence[float | None]) -> list[str]:
    """Write values of metrics in percent, unless some are no fractions; what is undefined is empty."""
    numbers = [math.nan if value is None else value for value in values]
    percent = _are_fractions(numbers)
    texts = (f"{100 * number:.1f}" if percent else f"{number:.4f}" for number in numbers)
    return ["" if math.isnan(number) else text for number, text in zip(numbers, texts, strict=True)]


def _are_fractions(values: Sequence[float]) -> bool:
    return all(0 <= value <= 1 for value in values if not math.isnan(value))


def without_unknown(counts: pd.DataFrame) -> pd.DataFrame:
    """Leave out columns of :func:`count` that no category has, and images without a decision if there are none."""
    empty = [name for name in COUNTS if counts[name].isna().all() or (name == "undecided" and counts[name].sum() == 0)]
    return counts.drop(columns=empty)


def show(frame: pd.DataFrame, title: str, counts: pd.DataFrame) -> None:
    """Write the tables of :func:`to_frame` and :func:`count` to the terminal, with notes on empty cells."""
    console = Console(highlight=False)
    names = [name for name in frame.columns if name not in ("category", "note")]
    numbers = frame[names].to_numpy().ravel().tolist()
    title = f"{title}, in percent" if _are_fractions(numbers) else title
    cells = iter(for_people(numbers))
    values = frame[["category", *names]].astype(object)
    values[names] = [[next(cells) for _ in names] for _ in frame.index]
    # In percent, the eleven columns of a test fit into 80 characters.
    _show_table(console, values, ["category", *("\n".join(heading(name)) for name in names)], title)
    if any(map(in_words, names)):
        console.print("found: share of the defective images that are found at this rate of false alarms")
    categories: dict[str, list[str]] = {}
    for category, note in zip(frame["category"], short_notes(frame), strict=True):
        categories.setdefault(note, []).append(_cell(category))
    for note in filter(None, categories):
        console.print(Text(f"{', '.join(categories[note])}: {note}"))
    known = without_unknown(counts)
    if len(known.columns) > 1:
        _show_table(console, known, [name.replace("_", "\n") for name in known.columns])


def short_notes(frame: pd.DataFrame) -> list[str]:
    """Notes of :func:`to_frame` for people: ``pixel metrics: no masks`` in place of the names of all of them."""
    metrics = [name for name in frame.columns if name not in ("category", "note")]
    levels = {level: [name for name in metrics if name.startswith(f"{level}_")] for level in ("image", "pixel")}
    groups = {"all metrics": metrics, **{f"{level} metrics": names for level, names in levels.items()}}
    notes = list(frame["note"])
    for words, names in groups.items():
        if len(names) > 1:
            notes = [note.replace(", ".join(names), words) for note in notes]
    return notes


def _show_table(console: Console, frame: pd.DataFrame, headings: Sequence[str], title: str | None = None) -> None:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    _fill(table, frame, headings)
    for row in table.rows[-2:-1]:
        row.end_section = True
    console.print(table)


def to_markdown(frame: pd.DataFrame) -> str:
    """Render a table as markdown.

    Args:
        frame (pd.DataFrame): The table. Fractions get 4 decimals, NaN is an empty cell; a column ``note`` without
            notes is left out.

    Returns:
        str: Lines of markdown, without one at the end.

    Examples:
        >>> print(to_markdown(pd.DataFrame({"category": ["bottle"], "image_AUROC": [0.98765]})))
        | category | image_AUROC |
        |----------|-------------|
        | bottle   |      0.9877 |
    """
    if "note" in frame and not frame["note"].astype(bool).any():
        frame = frame.drop(columns="note")
    table = Table(box=box.MARKDOWN)
    _fill(table, frame, list(frame.columns))
    target = io.StringIO()
    Console(file=target, width=10_000, color_system=None).print(table)
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
    """Describe a run in columns, so that each row of its results can be understood alone; ``""`` is unknown.

    Args:
        trainer (Any): Lightning trainer.
        pl_module (Any): The model.
        epochs (int | None): Epochs that the model was trained for, ``None`` if unknown.
        learned_from (str | None): On which images thresholds were learned, ``""`` if unknown; ``None`` if on none.
        scope (str): Thresholds of decisions, ``"global"``, ``"category"`` or ``"product"``, as the model recognises it.
            Defaults to ``"global"``.
        pixel_resolution (str): Size at which pixels were compared. Defaults to ``"model"``.
        raw (bool): Whether scores are as the model returns them, not normalised. Defaults to ``True``.
    """
    device = torch.device(getattr(pl_module, "device", "cpu"))
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    seed = getattr(pl_module, "seed", None)
    post_processor = getattr(pl_module, "post_processor", None)
    flags = ("enable_thresholding", "enable_normalization")
    learns = post_processor is not None and any(getattr(post_processor, flag, True) for flag in flags)
    return {
        "model": getattr(pl_module, "name", type(pl_module).__name__),
        "dataset": _as_text(getattr(getattr(trainer, "datamodule", None), "name", "")),
        "epochs": "" if epochs is None else epochs,
        "thresholds": learned_from if learns and learned_from is not None else "none",
        "decisions": scope,
        "pixel_resolution": pixel_resolution,
        "scores": "raw" if raw else "normalised",
        "seed": os.environ.get("PL_GLOBAL_SEED", "") if seed is None else seed,
        "device": f"{device}{gpu}",
        "versions": versions(),
        "command": command_line(),
    }


def command_line() -> str:
    """The command of this process."""
    return _as_text(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def _as_text(name: str) -> str:
    return name.encode(errors=ODD).decode()


def versions() -> str:
    """Versions of the packages that results depend on."""
    packages = ("anomalib", "torch", "anomalib-uniad")
    return "; ".join(f"{package} {version_of(package) or 'unknown'}" for package in packages)


def _note(reasons: Mapping[str, str]) -> str:
    """Join the reasons of metrics, each reason once: ``a, b: no defective test images; c: no masks``."""
    metrics: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        if reason:
            metrics.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in metrics.items())


def _fill(table: Table, frame: pd.DataFrame, headings: Sequence[str]) -> None:
    for name, head in zip(frame.columns, headings, strict=True):
        left = name in ("category", "note")
        table.add_column(Text(head), justify="left" if left else "right", overflow="fold" if left else "ellipsis")
    for row in frame.itertuples(index=False):
        cells = [_cell(value) for value in row]
        if table.box is box.MARKDOWN:
            cells = [cell.replace("|", "\\|") for cell in cells]
        table.add_row(*map(Text, cells))  # not plain strings: names in square brackets would be markup


def _cell(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4f}" if isinstance(value, float) else " ".join(str(value).split())  # on one line


def _labels(values: torch.Tensor | None, count: int) -> list[str]:
    """Words for labels; empty ones without labels, or with scores in their place, as anomalib has it sometimes."""
    if values is None or values.numel() != count or not bool(((values == 0) | (values == 1)).all()):
        return [""] * count
    return [_LABELS[int(value)] for value in values.reshape(-1).tolist()]


def _numbers(values: torch.Tensor | None, count: int) -> list[float]:
    if values is None or values.numel() != count:
        return [float("nan")] * count
    numbers: list[float] = values.detach().reshape(-1).tolist()
    return numbers
