# SPDX-License-Identifier: Apache-2.0
"""Reads the folder of a benchmark, and puts its methods side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_uniad.checks import show
from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import file_names, original_table, shortened

from .columns import COST, EPOCHS, KEYS, MODES, RESULTS

ABOUT = ("device", "versions", "command")


@dataclass
class Benchmark:
    """Results of a benchmark.

    Attributes:
        folder (Path): Its folder.
        table (pd.DataFrame): Its results.csv.
        metrics (list[str]): Names of the metrics that are shown.
        epochs (pd.DataFrame): Its epochs.csv, empty if there is none.
    """

    folder: Path
    table: pd.DataFrame
    metrics: list[str]
    epochs: pd.DataFrame

    @property
    def data(self) -> list[str]:
        """Names of the data."""
        return list(self.table["data"].unique())

    def means(self, data: str) -> pd.DataFrame:
        """Rows of the means over categories, one per method, mode and seed."""
        return self.table[(self.table["data"] == data) & (self.table["kind"] == "mean")]

    def categories(self, data: str) -> pd.DataFrame:
        """Rows of the categories."""
        return self.table[(self.table["data"] == data) & (self.table["kind"] == "category")]


def is_benchmark(folder: Path) -> bool:
    """Whether a folder is that of a benchmark."""
    file = folder / RESULTS
    if not file.is_file():
        return False
    with file.open(encoding="utf-8") as stream:
        return stream.readline().startswith(",".join(KEYS))


def folders(output: Path, methods: Iterable[str], data: Iterable[str]) -> dict[tuple[str, str], Path]:
    """Folder for each data and method; names may be anything."""
    of_methods, of_data = file_names(list(methods)), file_names(list(data))
    return {(d, m): output / of_data[d] / of_methods[m] for d in of_data for m in of_methods}


def trainings_of_uniad(folder: Path) -> list[Path]:
    """Folders of the trainings of UniAD in a benchmark, one of each method: one model for all categories.

    Args:
        folder (Path): Folder of the benchmark. Of several data and seeds in its table, the first are taken.

    Raises:
        ValueError: If it has none.
    """
    table = read_benchmark(folder).table
    table = table[(table["model"] == "UniAD") & (table["mode"] == "unified")]
    if table.empty:
        raise InputError(f"{folder} has no training of UniAD for all categories together (unified).")
    first = table.iloc[0]
    of = table[(table["data"] == first["data"]) & (table["seed"] == first["seed"])]
    places = folders(folder, of["method"].unique(), [first["data"]])
    runs = [place / "unified" / f"seed{first['seed']}" / "run" for place in places.values()]
    return [found for run in runs for found in sorted(run.glob("UniAD/*/latest"))]


def read_benchmark(folder: Path, metrics: Sequence[str] | None = None) -> Benchmark:
    """Read the tables of a benchmark.

    Args:
        folder (Path): Its folder.
        metrics (Sequence[str] | None): Which metrics, in this order; ``None`` is all. Defaults to ``None``.

    Returns:
        Benchmark: The tables.

    Raises:
        ValueError: If a table is damaged, or has none of the metrics.
    """
    texts = dict.fromkeys(("data", "method", "category"), str)
    # Only empty cells are missing: a category may be called NA.
    how: dict[str, Any] = {"dtype": texts, "keep_default_na": False, "na_values": ""}
    try:
        table = original_table(pd.read_csv(folder / RESULTS, **how))
        epochs = pd.read_csv(folder / EPOCHS, **how) if (folder / EPOCHS).is_file() else pd.DataFrame()
        epochs = original_table(epochs)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"A table of {folder} is damaged: {shortened(error)}.") from error
    names = list(table.columns)
    if lacking := [name for name in (*KEYS, "note", *COST) if name not in names]:
        raise InputError(f"{folder / RESULTS} is damaged: it has no column {', '.join(lacking)}.")
    if table["seed"].dtype.kind != "i" or not table["mode"].isin(MODES).all():  # they are names of folders
        raise InputError(f"{folder / RESULTS} is damaged: seeds are whole numbers, and modes {' and '.join(MODES)}.")
    known = names[names.index("kind") + 1 : names.index("note")]
    for name in (*known, *COST):
        wrong = table[name].notna() & pd.to_numeric(table[name], errors="coerce").isna()
        if wrong.any():
            value = show(table[name][wrong].iloc[0])
            raise InputError(f"{folder / RESULTS} is damaged: {shortened(name)} has {value}, which is not a number.")
    wanted = known if metrics is None else list(dict.fromkeys(metrics))
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"The benchmark has no metric {', '.join(unknown)}: choose from {', '.join(known)}.")
    return Benchmark(folder, table, wanted, epochs)


def over_seeds(rows: pd.DataFrame, columns: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """Mean, lowest and highest value over seeds.

    Args:
        rows (pd.DataFrame): Rows of results.csv.
        columns (Sequence[str]): Numbers.
        by (Sequence[str]): What the rows of the result are of; in the order in which they first appear.

    Returns:
        pd.DataFrame: Columns ``(name, "mean" | "min" | "max")``.
    """
    numbers = rows[[*by, *columns]].copy()
    numbers[list(columns)] = numbers[list(columns)].astype(float)
    return numbers.groupby(list(by), sort=False).agg(["mean", "min", "max"])


def read_published(file: Path, benchmark: Benchmark) -> pd.DataFrame:
    """Read numbers that others have published, to put them beside those of a benchmark.

    Args:
        file (Path): csv file with columns ``data``, ``method``, ``mode``, ``category`` (``mean`` for the mean) and
            metrics, named as in results.csv.
        benchmark (Benchmark): The benchmark.

    Returns:
        pd.DataFrame: Rows of what the benchmark has, too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it lacks a column, or has nothing that the benchmark has.
    """
    if not file.is_file():
        raise MissingFileError(f"There is no file {file} with published numbers.")
    keys = ["data", "method", "mode"]
    texts = dict.fromkeys((*keys, "category", "source"), str)
    try:
        published = original_table(pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=""))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a table: {shortened(error)}.") from error
    if lacking := [name for name in (*keys, "category") if name not in published]:
        raise InputError(f"{file} lacks the column {', '.join(lacking)}.")
    metrics = [name for name in benchmark.metrics if name in published]
    for name in metrics:
        numbers = pd.to_numeric(published[name], errors="coerce")
        if (wrong := (published[name].notna() & ~numbers.between(0, 1))).any():
            raise InputError(f"{file}: {name} must be numbers from 0 to 1, got {published[name][wrong].iloc[0]}.")
        published[name] = numbers
    both = benchmark.table.assign(category=benchmark.table["category"].where(benchmark.table["kind"] != "mean", "mean"))
    known = published.dropna(subset=metrics, how="all").merge(both[[*keys, "category"]].drop_duplicates())
    if known.empty or not metrics:
        names = [", ".join(map(str, row)) for row in published[keys].drop_duplicates().itertuples(index=False)]
        raise InputError(
            f"{file} has nothing that the benchmark has, but {', '.join(metrics) or 'none of its metrics'} of "
            f"{shortened('; '.join(names))}."
        )
    return known
