# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: values and means, which of them are best, and what makes them incomparable."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from anomalib_uniad.category import summary_label
from anomalib_uniad.errors import InputError
from anomalib_uniad.metric_names import in_words, percent_of_false_alarms

from .decisions import count, decision_notes, decision_table
from .runs import Run

DECIMALS = 4  # of values in tables; values that are equal there are equally good
PARTIAL = "† mean over fewer categories than there are, see the table of the metric."
UNLIKE = "Means over different categories are not compared, so none of them is marked as best."


class Cell(NamedTuple):
    """A value of a table, ``None`` if it is undefined; a partial mean is over fewer categories than there are."""

    value: float | None
    best: bool
    partial: bool
    reason: str = ""  # why it is undefined

    def text(self) -> str:
        """The value with 4 decimals, and a mark if it is a partial mean."""
        return "" if self.value is None else f"{self.value:.{DECIMALS}f}{' †' if self.partial else ''}"


@dataclass
class Table:
    """Values of a metric, a row per category or mean and a column per run."""

    metric: str
    values: pd.DataFrame  # labels of rows x names of runs; NaN where undefined
    kinds: list[str]  # of rows: category, mean (over the categories of each run) or common (over those all runs have)
    best: np.ndarray  # whether a value is the best of its row
    partial: np.ndarray  # whether a value is a mean over fewer categories than there are
    reasons: dict[tuple[str, str], str]  # (category, run) -> why the cell is empty
    notes: list[str]  # the same in sentences, and what else is to know
    mean_notes: list[str]  # what the means are over
    alike: bool  # whether the means of all runs are over the same categories

    @property
    def title(self) -> str:
        """The name of the metric, and what it is where the name does not say it."""
        return ", ".join(filter(None, (self.metric, in_words(self.metric))))

    def rows(self) -> Iterator[tuple[str, str, list[Cell]]]:
        """Label, kind and cells of each row."""
        values = self.values.astype(object).where(self.values.notna(), None).to_numpy().tolist()
        flags = self.best.tolist(), self.partial.tolist()
        for label, kind, *row in zip(self.values.index, self.kinds, values, *flags, strict=True):
            reasons = [self.reasons.get((label, run), "") for run in self.values.columns]
            yield label, kind, [Cell(*cell) for cell in zip(*row, reasons, strict=True)]


@dataclass
class Comparison:
    """Runs side by side."""

    runs: list[Run]
    categories: list[str]  # of any run
    tables: list[Table]  # of each metric
    warnings: list[str]  # why numbers cannot be compared
    decisions: pd.DataFrame  # of the runs that have some, see decision_table
    decision_notes: list[str]  # which images are not counted
    images: pd.DataFrame  # numbers of images, of the runs that tell: "training / validation / test"

    @property
    def names(self) -> list[str]:
        """Names of the runs."""
        return [run.name for run in self.runs]

    def means(self) -> Iterator[tuple[str, str, list[Cell]]]:
        """Rows with the means of all metrics, whose labels are the metrics; see :meth:`Table.rows`."""
        for table in self.tables:
            for label, kind, cells in table.rows():
                if kind != "category":
                    yield table.title if kind == "mean" else f"{table.metric}, {label}", kind, cells

    @property
    def means_note(self) -> str:
        """The meaning of the mark at partial means, and which means are not compared; empty if there are none."""
        partial = any(table.partial.any() for table in self.tables)
        notes = [PARTIAL] * partial + [UNLIKE] * any(not table.alike for table in self.tables)
        return " ".join(notes)


def compare(runs: Sequence[Run], metrics: Sequence[str] | None = None) -> Comparison:
    """Lay runs side by side: the metrics that are wanted (default: all) over the categories of any run."""
    known = list(dict.fromkeys(name for run in runs for name in run.metrics))
    wanted = known if metrics is None else list(dict.fromkeys(metrics))
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        msg = f"No run has the metric {', '.join(unknown)}" if unknown else "metrics is empty"
        raise InputError(f"{msg}: choose from {', '.join(known)}.")
    categories = list(dict.fromkeys(name for run in runs for name in run.categories))
    tables = [_table(runs, metric, categories) for metric in wanted]
    counts = {run.name: count(run.predictions) for run in runs}
    decisions = decision_table(counts, categories)
    warnings = _warnings(runs, wanted, categories, decided=not decisions.empty)
    return Comparison(
        list(runs), categories, tables, warnings, decisions, decision_notes(counts), _images(runs, categories)
    )


def _images(runs: Sequence[Run], categories: Sequence[str]) -> pd.DataFrame:
    """Write the numbers of images, a row per category and a column per run; ``?`` where a number is not known."""
    sets = ("training_images", "validation_images", "test_images")

    def cell(counts: Mapping[str, int]) -> str:
        defective = f" ({counts['defective']} defective)" if "defective" in counts else ""
        return " / ".join(str(counts.get(name, "?")) for name in sets) + defective if counts else "not known"

    telling = [run for run in runs if any(run.counts.values())]
    columns = {run.name: [cell(run.counts.get(name, {})) for name in categories] for run in telling}
    return pd.DataFrame(columns, index=list(categories))


def _table(runs: Sequence[Run], metric: str, categories: list[str]) -> Table:
    columns = {run.name: [run.values.get((metric, name)) for name in categories] for run in runs}
    values = pd.DataFrame(columns, index=categories, dtype=float)
    defined = values.notna()
    partial = defined.any() & ~defined.all()  # per run
    measured = values.loc[defined.any(axis=1), defined.any()]
    common = list(measured.dropna().index)
    alike = len(common) == len(measured)  # all means are over the same categories

    means = {summary_label("mean", categories): values.mean()}
    kinds = ["category"] * len(categories) + ["mean"]
    if not alike and common:
        means[summary_label(f"mean of {len(common)} in common", categories)] = (
            measured.loc[common].mean().reindex(values.columns)
        )
        kinds.append("common")
    values = pd.concat([values, pd.DataFrame(means).T])

    rounded = values.map(lambda value: float(f"{value:.{DECIMALS}f}"))  # as shown
    best = rounded.eq(rounded.max(axis=1), axis=0).to_numpy() & (values.count(axis=1) > 1).to_numpy()[:, None]
    is_mean = np.array(kinds) == "mean"
    if not alike:
        best[is_mean] = False
    reasons = _reasons(runs, metric, categories)
    over: dict[str, list[str]] = {}
    for run in runs:
        if partial[run.name]:
            left_out = [name for name in categories if (metric, name) not in run.values]
            count_of = f"{len(categories) - len(left_out)} of {len(categories)} categories"
            over.setdefault(f"mean over {count_of}, without {', '.join(left_out)}.", []).append(run.name)
    notes = [f"† {', '.join(names)}: {text}" for text, names in over.items()]
    if not alike:
        notes.append(
            "Means over different categories are not compared: none is marked as best"
            + (f". In common are {', '.join(common)}." if common else ", and there are no categories in common.")
        )
    empty = [*_sentences(reasons, runs, metric), *_few_normal_images(runs, metric, categories)]
    return Table(metric, values, kinds, best, np.outer(is_mean, partial), reasons, empty, notes, alike)


def _reasons(runs: Sequence[Run], metric: str, categories: Sequence[str]) -> dict[tuple[str, str], str]:
    """Say why a cell is empty, by category and run."""
    reasons = {}
    for run in runs:
        for name in categories:
            if metric not in run.metrics:
                reasons[name, run.name] = "not measured"
            elif name not in run.categories:
                reasons[name, run.name] = "not among its categories"
            elif (metric, name) not in run.values:
                reasons[name, run.name] = run.reasons.get((metric, name)) or "no value, for an unknown reason"
    return reasons


def _sentences(reasons: Mapping[tuple[str, str], str], runs: Sequence[Run], metric: str) -> list[str]:
    """Write one sentence for the same reason in the same categories."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if metric not in run.metrics:
            found.setdefault(("", "not measured"), []).append(run.name)
            continue
        of_run: dict[str, list[str]] = {}
        for (category, name), reason in reasons.items():
            if name == run.name:
                of_run.setdefault(reason, []).append(category)
        for reason, names in of_run.items():
            found.setdefault((", ".join(names), reason), []).append(run.name)
    return [
        f"{where} ({', '.join(names)}): {reason}." if where else f"{', '.join(names)}: {reason}."
        for (where, reason), names in found.items()
    ]


def _few_normal_images(runs: Sequence[Run], metric: str, categories: Sequence[str]) -> list[str]:
    """Say where a rate of false alarms means none at all, since not even one normal image is so small a part."""
    percent = percent_of_false_alarms(metric)
    if not percent:
        return []
    fewest: dict[str, int] = {}
    for run in runs:
        for name in categories:
            counts = run.counts.get(name, {})
            if (metric, name) in run.values and {"test_images", "defective"} <= counts.keys():
                normal = counts["test_images"] - counts["defective"]
                fewest[name] = min(normal, fewest.get(name, normal))
    few = [f"{name} ({normal})" for name, normal in fewest.items() if normal * percent < 100]
    needed = math.ceil(100 / percent)
    return [f"Fewer than {needed} normal test images, so found without any false alarm: {', '.join(few)}."] * bool(few)


def _warnings(runs: Sequence[Run], metrics: Sequence[str], categories: Sequence[str], decided: bool) -> list[str]:
    """Say what makes numbers of these runs incomparable, a sentence or two for each cause."""
    found = []
    if differ := _differ(runs, "dataset"):
        found.append(f"The runs are on different data sets ({differ}): their numbers are not comparable.")
    missing = {run.name: [name for name in categories if name not in run.categories] for run in runs}
    if lacking := "; ".join(f"{run} lacks {', '.join(names)}" for run, names in missing.items() if names):
        found.append(
            f"The runs have different categories: {lacking}. Their means are not comparable; compare single "
            "categories, or the means of those in common."
        )
    different = []
    for category in categories:
        counts = {run.name: run.images[category] for run in runs if category in run.images}
        if len(set(counts.values())) > 1:
            different.append(f"{category} ({', '.join(f'{name} {number}' for name, number in counts.items())})")
    if different:
        images = ", ".join(different)
        found.append(f"The runs were tested on different numbers of images: {images}. They are not comparable.")
    differ = _differ(runs, "pixel_resolution")
    if differ and any(name.startswith("pixel_") for name in metrics):
        found.append(f"Pixel metrics are at different resolutions ({differ}): they are not comparable.")
    if decided or any(name.endswith("F1Score") for name in metrics):
        if differ := _differ(runs, "thresholds"):
            text = f"Thresholds were learned on different images ({differ}): F1Score and decisions are not comparable."
            found.append(text)
        if differ := _differ(runs, "decisions"):
            found.append(f"Decisions are by different kinds of thresholds ({differ}): F1Score is not comparable.")
        seen = [run.name for run in runs if run.about.get("thresholds", "").startswith("test images")]
        if seen:
            text = "thresholds were learned on the test images, so F1Score and decisions look too good."
            found.append(f"{', '.join(seen)}: {text}")
    return found


def _differ(runs: Sequence[Run], key: str) -> str:
    """Name what is different, and in which runs; empty if it is the same in all runs in which it is known."""
    known: dict[str, list[str]] = {}
    for run in runs:
        if run.about.get(key):
            known.setdefault(run.about[key], []).append(run.name)
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in known.items()) if len(known) > 1 else ""
