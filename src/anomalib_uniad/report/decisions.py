# SPDX-License-Identifier: Apache-2.0
"""Counts right and wrong decisions in the predictions of a run."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from .runs import Run

# How labels and decisions are written.
NORMAL = {"0", "false", "normal", "good"}
DEFECTIVE = {"1", "true", "anomalous", "abnormal", "defective", "anomaly"}


@dataclass
class Decisions:
    """Decisions about the images of a category.

    Attributes:
        defective (int): Defective images with a decision.
        missed (int): Those of them that were called normal.
        normal (int): Normal images with a decision.
        false_alarms (int): Those of them that were called anomalous.
        open (int): Images without a label or a decision.
        labels (dict[tuple[str, str], bool]): (name of its folder, name without suffix) of an image -> whether it is
            defective.
    """

    defective: int = 0
    missed: int = 0
    normal: int = 0
    false_alarms: int = 0
    open: int = 0
    labels: dict[tuple[str, str], bool] = field(default_factory=dict)

    def __add__(self, other: "Decisions") -> "Decisions":
        """Add the counts of two categories."""
        return Decisions(
            self.defective + other.defective,
            self.missed + other.missed,
            self.normal + other.normal,
            self.false_alarms + other.false_alarms,
            self.open + other.open,
        )


def read_decisions(run: Run) -> dict[str, Decisions]:
    """Count decisions per category.

    Args:
        run (Run): The run; its ``predictions.csv`` has columns ``category``, ``label`` and ``decision``.

    Returns:
        dict[str, Decisions]: Category -> counts; empty if the run has no such file.

    Raises:
        ValueError: If the file is damaged.
    """
    file = run.beside("predictions", ".csv")
    if file is None:
        return {}
    found: dict[str, Decisions] = {}
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            lacking = {"category", "label", "decision"} - set(reader.fieldnames or [])
            if lacking:
                msg = f"{file} is damaged: it has no column {', '.join(sorted(lacking))}."
                raise ValueError(msg)
            for row in reader:
                counts = found.setdefault(row["category"], Decisions())
                label = _is_defective(row["label"], "label", file, reader.line_num)
                decision = _is_defective(row["decision"], "decision", file, reader.line_num)
                _count(counts, label, decision)
                if label is not None:
                    path = Path(row.get("path") or "")
                    counts.labels[path.parent.name, path.stem] = label
    except (UnicodeDecodeError, csv.Error) as error:
        msg = f"{file} is damaged: {error}."
        raise ValueError(msg) from error
    return found


def _is_defective(text: str | None, name: str, file: Path, line: int) -> bool | None:
    if text is None:
        msg = f"{file} is damaged: line {line} has no {name}."
        raise ValueError(msg)
    value = text.strip().lower()
    if not value:
        return None
    if value not in NORMAL | DEFECTIVE:
        msg = f"{file} is damaged: {name} in line {line} is {text[:40]!r}, neither normal nor anomalous."
        raise ValueError(msg)
    return value in DEFECTIVE


def _count(counts: Decisions, label: bool | None, decision: bool | None) -> None:
    if label is None or decision is None:
        counts.open += 1
    elif label:
        counts.defective += 1
        counts.missed += not decision
    else:
        counts.normal += 1
        counts.false_alarms += decision
