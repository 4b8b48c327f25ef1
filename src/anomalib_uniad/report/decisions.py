# SPDX-License-Identifier: Apache-2.0
"""Missed defects and false alarms in the predictions of a run."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from anomalib_uniad.category import UNKNOWN_PRODUCT, summary_label
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import original, shortened

# How labels and decisions are written.
NORMAL = {"0", "false", "normal", "good"}
DEFECTIVE = {"1", "true", "anomalous", "abnormal", "defective", "anomaly"}
SCORES = ["raw_score", "normalised_score"]
COUNTS = ["defective", "missed", "normal", "false_alarms", "open"]


def read_predictions(file: Path | None) -> pd.DataFrame:
    """Read ``predictions.csv`` of a run, if any: a row for each image.

    Columns are ``category``, ``path``, ``label`` and ``decision``, ``True`` for defective, ``False`` for normal and
    ``None`` if unknown, and ``raw_score`` and ``normalised_score``, NaN if there is none.
    """
    rows = []
    try:
        if file is not None:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, strict=True)
                lacking = {"category", "label", "decision"} - set(reader.fieldnames or [])
                if lacking:
                    raise InputError(f"{file} is damaged: it has no column {', '.join(sorted(lacking))}.")
                for row in reader:
                    label = is_defective(row["label"], "label", file, reader.line_num)
                    # What shows no known product is not called normal either.
                    unknown = row["decision"] == UNKNOWN_PRODUCT
                    decision = unknown or is_defective(row["decision"], "decision", file, reader.line_num)
                    scores = (_number(row.get(name), name, file, reader.line_num) for name in SCORES)
                    rows.append((original(row["category"]), row.get("path") or "", label, decision, *scores))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is damaged: {shortened(error)}.") from error
    table = pd.DataFrame(rows, columns=["category", "path", "label", "decision", *SCORES], dtype=object)
    return table.astype(dict.fromkeys(SCORES, float))


def _number(text: str | None, name: str, file: Path, line: int) -> float:
    try:
        return float(text or math.nan)
    except ValueError as error:
        raise InputError(f"{file} is damaged: {name} in line {line} is {str(text)[:40]!r}, not a number.") from error


def is_defective(text: str | None, name: str, file: Path, line: int) -> bool | None:
    """Read a label or decision of a table: ``None`` for an empty cell."""
    if text is None:
        raise InputError(f"{file} is damaged: line {line} has no {name}.")
    value = text.strip().lower()
    if not value:
        return None
    if value not in NORMAL | DEFECTIVE:
        raise InputError(f"{file} is damaged: {name} in line {line} is {text[:40]!r}, neither normal nor anomalous.")
    return value in DEFECTIVE


def count(predictions: pd.DataFrame) -> pd.DataFrame:
    """Count images per category (rows): defective and missed, normal and false alarms, and those without a decision."""
    is_open = predictions["label"].isna() | predictions["decision"].isna()
    defective = predictions["label"].eq(True) & ~is_open
    normal = predictions["label"].eq(False) & ~is_open
    alarm = predictions["decision"].eq(True)
    flags = [defective, defective & ~alarm, normal, normal & alarm, is_open]
    return pd.concat(flags, axis=1, keys=COUNTS).groupby(predictions["category"], sort=False).sum()


def find_failures(predictions: pd.DataFrame, count: int) -> pd.DataFrame:
    """The images of each category that lie farthest on the wrong side of the threshold.

    Args:
        predictions (pd.DataFrame): What :func:`read_predictions` reads.
        count (int): So many false alarms of each category at most, and so many missed defects.

    Returns:
        pd.DataFrame: Their rows, with a column ``failure``, which is ``false alarm`` or ``missed``; categories in their
        order, in each the false alarms first. What is called ``unknown`` though it is good is a false alarm.
    """
    score = predictions["normalised_score"].fillna(predictions["raw_score"])
    parts = []
    for name, label in (("false alarm", False), ("missed", True)):
        wrong = predictions["label"].eq(label) & predictions["decision"].eq(not label)
        found = predictions[wrong].assign(failure=name, score=score)
        parts.append(found.sort_values("score", ascending=label, kind="stable").groupby("category").head(count))
    found = pd.concat(parts)
    order = {name: place for place, name in enumerate(predictions["category"].unique())}
    return found.sort_values("category", key=lambda names: names.map(order), kind="stable").drop(columns="score")


def nearest_good(run: Path, images: Iterable[tuple[str, str]]) -> dict[str, Path]:
    """The good training image that looks most like each image, by its path.

    Args:
        run (Path): Folder of a run. If it is none of UniAD, or its images are not there any more, nothing is found.
        images (Iterable[tuple[str, str]]): Paths of test images, and their categories.
    """
    wanted = list(images)
    if not (wanted and (run / "model.yaml").is_file()):
        return {}
    from .nearest_good import find_nearest  # with torch, which not every user of a page has

    return find_nearest(run, wanted)


def decision_table(counts: Mapping[str, pd.DataFrame], categories: Sequence[str]) -> pd.DataFrame:
    """Lay the counts of runs side by side.

    Rows are categories and, if there are several, all of them; columns (run, ``missed``) and (run, ``false alarms``) of
    each run that has decisions; cells such as ``3 of 20``, or words where
    there is nothing to count.
    """
    columns = {}
    for name, of_run in counts.items():
        if of_run.empty:
            continue
        rows = [of_run.loc[category] if category in of_run.index else None for category in categories]
        rows += [of_run.sum()] if len(categories) > 1 else []
        columns[name, "missed"] = [_of(row, "missed", "defective") for row in rows]
        columns[name, "false alarms"] = [_of(row, "false_alarms", "normal") for row in rows]
    labels = [*categories, *([summary_label("all", categories)] if len(categories) > 1 else [])]
    return pd.DataFrame(columns, index=labels if columns else [])


def _of(row: "pd.Series[int] | None", part: str, whole: str) -> str:
    """Write ``3 of 20``, or why there is nothing to count."""
    if row is None:
        return "no images"
    if row[whole]:
        return f"{row[part]} of {row[whole]}"
    return "no decisions" if row["open"] else f"no {whole} images"


def decision_notes(counts: Mapping[str, pd.DataFrame]) -> list[str]:
    """Say how many images are not counted."""
    left = {name: int(of_run["open"].sum()) for name, of_run in counts.items()}
    return [
        f"{name}: {number} images without a label or a decision are left out."
        for name, number in left.items()
        if number
    ]
