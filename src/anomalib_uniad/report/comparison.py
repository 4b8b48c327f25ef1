# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: which values belong into which cell, and what must be said about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .caveats import warnings_of
from .runs import Run

DECIMALS = 4  # of values in tables; values that are equal there are equally good


@dataclass
class Row:
    """A row of a table.

    Attributes:
        label (str): A category, what the mean is over, or a metric.
        values (list[float | None]): One per run; ``None`` where it is undefined.
        kind (str): ``"category"``, ``"mean"`` (over the categories of each run) or ``"common"`` (the mean over those
            categories that all runs have).
        partial (list[bool]): Whether a mean is over fewer categories than there are.
        best (list[bool]): Which values are the best.
    """

    label: str
    values: list[float | None]
    kind: str = "category"
    partial: list[bool] = field(default_factory=list)
    best: list[bool] = field(default_factory=list)


@dataclass
class MetricTable:
    """A metric, categories as rows and runs as columns.

    Attributes:
        metric (str): Name of the metric.
        rows (list[Row]): Categories, then means.
        notes (list[str]): Why cells are empty, and what the means are over.
    """

    metric: str
    rows: list[Row]
    notes: list[str]

    @property
    def means(self) -> list[Row]:
        """Rows with means."""
        return [row for row in self.rows if row.kind != "category"]


@dataclass
class Comparison:
    """Runs side by side.

    Attributes:
        runs (list[Run]): The runs.
        categories (list[str]): Categories of any of them.
        tables (list[MetricTable]): A table per metric.
        warnings (list[str]): Why numbers cannot be compared, if so.
    """

    runs: list[Run]
    categories: list[str]
    tables: list[MetricTable]
    warnings: list[str]

    @property
    def names(self) -> list[str]:
        """Names of the runs."""
        return [run.name for run in self.runs]

    @property
    def summary(self) -> list[Row]:
        """Means of all metrics; each label is the metric and, for means of common categories, which they are."""
        return [
            Row(
                table.metric if row.kind == "mean" else f"{table.metric}, {row.label}",
                row.values,
                row.kind,
                row.partial,
                row.best,
            )
            for table in self.tables
            for row in table.means
        ]

    @property
    def summary_note(self) -> str:
        """What the mark of a mean over fewer categories means; empty if there is none."""
        return PARTIAL if any(any(row.partial) for row in self.summary) else ""


PARTIAL = (
    "† mean over fewer categories than there are, see the table of the metric. Means over different categories are not "
    "compared, so none of them is marked as best."
)


def compare(runs: Sequence[Run], metrics: Sequence[str] | None = None, decided: bool = False) -> Comparison:
    """Lay runs side by side.

    Args:
        runs (Sequence[Run]): The runs.
        metrics (Sequence[str] | None): Which metrics; ``None`` is all. Defaults to ``None``.
        decided (bool): Whether decisions are reported as well. Defaults to ``False``.

    Returns:
        Comparison: Tables of all metrics over the categories of any run.

    Raises:
        ValueError: If no run has a metric.
    """
    known = list(dict.fromkeys(name for run in runs for name in run.metrics))
    wanted = known if metrics is None else list(dict.fromkeys(metrics))
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        msg = f"No run has the metric {', '.join(unknown)}" if unknown else "metrics is empty"
        msg = f"{msg}: choose from {', '.join(known)}."
        raise ValueError(msg)
    categories = list(dict.fromkeys(name for run in runs for name in run.categories))
    tables = [_table(runs, metric, categories) for metric in wanted]
    return Comparison(list(runs), categories, tables, warnings_of(runs, wanted, categories, decided))


def _table(runs: Sequence[Run], metric: str, categories: Sequence[str]) -> MetricTable:
    rows = [Row(name, [run.values.get((metric, name)) for run in runs]) for name in categories]
    over = [[name for name in categories if (metric, name) in run.values] for run in runs]
    partial = [0 < len(names) < len(categories) for names in over]
    alike = len({tuple(names) for names in over if names}) < 2
    rows.append(
        Row("mean", [_mean(run, metric, names) for run, names in zip(runs, over, strict=True)], "mean", partial)
    )
    common = [name for name in categories if all(name in names for names in over if names)]
    if not alike and common:
        label = f"mean of {len(common)} in common"
        values = [_mean(run, metric, common if names else []) for run, names in zip(runs, over, strict=True)]
        rows.append(Row(label, values, "common"))
    for row in rows:
        row.best = _best(row.values) if row.kind != "mean" or alike else [False] * len(runs)
        row.partial = row.partial or [False] * len(runs)
    notes = _empty(runs, metric, categories)
    for run, names, part in zip(runs, over, partial, strict=True):
        if part:
            left_out = ", ".join(name for name in categories if name not in names)
            notes.append(f"† {run.name}: mean over {len(names)} of {len(categories)} categories, without {left_out}.")
    if not alike:
        notes.append(
            "Means over different categories are not compared: none is marked as best"
            + (f". In common are {', '.join(common)}." if common else ", and there are no categories in common.")
        )
    return MetricTable(metric, rows, notes)


def _mean(run: Run, metric: str, categories: Sequence[str]) -> float | None:
    values = [run.values[metric, name] for name in categories]
    return sum(values) / len(values) if values else None


def _best(values: Sequence[float | None]) -> list[bool]:
    """Mark the largest values; none where there is nothing to compare."""
    rounded = [None if value is None else round(value, DECIMALS) for value in values]
    defined = [value for value in rounded if value is not None]
    if len(defined) < 2:
        return [False] * len(values)
    return [value == max(defined) for value in rounded]


def _empty(runs: Sequence[Run], metric: str, categories: Sequence[str]) -> list[str]:
    """Say why cells are empty, one sentence for the same reason in the same categories."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if metric not in run.metrics:
            found.setdefault(("", "not measured"), []).append(run.name)
            continue
        reasons: dict[str, list[str]] = {}
        for name in categories:
            if (metric, name) in run.values:
                continue
            known = run.reasons.get((metric, name)) or "no value, for an unknown reason"
            reasons.setdefault(known if name in run.categories else "not among its categories", []).append(name)
        for reason, names in reasons.items():
            found.setdefault((", ".join(names), reason), []).append(run.name)
    return [
        f"{where} ({', '.join(names)}): {reason}." if where else f"{', '.join(names)}: {reason}."
        for (where, reason), names in found.items()
    ]
