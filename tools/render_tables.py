# SPDX-License-Identifier: Apache-2.0
"""Fill the tables of markdown files: evidence from results/*.csv, arguments from docstrings.

    python tools/render_tables.py README.md docs            # rewrite
    python tools/render_tables.py README.md docs --check    # fail if a file would change

A table stands between ``<!-- table: NAME -->`` or ``<!-- arguments: CLASS -->`` and ``<!-- end -->``. The functions
below have the names of the tables.
"""

import argparse
import inspect
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import docstring_parser
import pandas as pd

import anomalib_uniad
from anomalib_uniad.metric_names import in_words
from anomalib_uniad.metrics.run_files import to_markdown

RESULTS = Path(__file__).parents[1] / "results"
BLOCK = re.compile(r"(<!-- (table|arguments): (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
TABLES: dict[str, Callable[[Path], str]] = {}
NOT_YET = "Not measured yet."
METRICS = ("image_AUROC", "image_AP", "image_F1Max", "pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO")


def main(paths: Sequence[Path], check: bool = False, results: Path = RESULTS) -> None:
    """Render the tables of files and of all markdown files in folders.

    Args:
        paths: Markdown files and folders.
        check: Only compare; end with an error if a file is not up to date.
        results: Folder of the csv files.

    Raises:
        FileNotFoundError: If a path or a csv file does not exist.
        ValueError: If there is no such table or class.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*.md")) if path.is_dir() else [path])]
    stale = []
    for file in files:
        old = file.read_text(encoding="utf-8")
        try:
            new = render(old, results)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if new != old:
            stale.append(file)
            if not check:
                file.write_text(new, encoding="utf-8")
    if check and stale:
        command = f"python tools/render_tables.py {' '.join(map(str, paths))}"
        sys.exit(f"Not up to date: {', '.join(map(str, stale))}; run: {command}")


def render(text: str, results: Path = RESULTS) -> str:
    """Return a markdown text with its tables filled in."""

    def fill(block: re.Match) -> str:
        head, kind, name, _, end = block.groups()
        if kind == "arguments":
            cls = getattr(anomalib_uniad, name, None)
            if cls is None:
                raise ValueError(f"anomalib_uniad has no class {name!r}.")
            body = arguments(cls)
        elif name in TABLES:
            body = TABLES[name](results)
        else:
            raise ValueError(f"There is no table {name!r}; known are {', '.join(sorted(TABLES))}.")
        return f"{head}{body.rstrip()}\n{end}" if body else f"{head}{end}"

    return BLOCK.sub(fill, text)


def arguments(cls: type) -> str:
    """Table of the arguments of a class, from its signature and docstring."""
    documented = {p.arg_name: p.description or "" for p in docstring_parser.parse(inspect.getdoc(cls) or "").params}
    rows = ["| argument | default | meaning |", "| --- | --- | --- |"]
    for name, parameter in inspect.signature(cls).parameters.items():
        meaning = re.sub(r"\s*Defaults to (``[^`]*``|[^.]*)\.$", "", " ".join(documented[name].split()))
        value = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        default = "required" if value is parameter.empty else f"`{value}`"
        rows.append(f"| `{name}` | {default} | {meaning.replace('``', '`').replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


# Helpers of the tables.


def table(
    function: Callable[[pd.DataFrame], str], file: str | None = None, required: bool = True
) -> Callable[[pd.DataFrame], str]:
    """Register a function under its name as a table of ``results/<file>.csv``, by default of its own name.

    Unless it is required, the table says so as long as there is no file.
    """
    name = file or function.__name__

    def from_file(results: Path) -> str:
        if not required and not (results / f"{name}.csv").is_file():
            return NOT_YET
        return function(read(results, name))

    TABLES[function.__name__] = from_file
    return function


once_measured = partial(table, required=False)


def read(results: Path, name: str) -> pd.DataFrame:
    """Read a csv file; cells of text that are empty are empty strings, and only empty ones are missing."""
    path = results / f"{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path} to render the table from.")
    frame = pd.read_csv(path, dtype={"category": str}, keep_default_na=False, na_values="")
    texts = [name for name in ("compile_mode", "series", "cache", "note") if name in frame]
    return frame.assign(**{name: frame[name].astype(object).fillna("") for name in texts})


def markdown(columns: dict[str, Any]) -> str:
    """Render columns as a markdown table."""
    return to_markdown(pd.DataFrame(columns))


def crossed(
    rows: pd.DataFrame, index: str, by: str | list[str], cell: Callable, head: Callable = lambda name, _: str(name)
) -> dict[str, list]:
    """Columns of a table with a row for each value of a column, and a column for each value of others.

    Args:
        rows: Rows of a csv file.
        index: The column whose values name the rows, in the order of their appearance.
        by: The column or columns whose values name the columns.
        cell: Makes a cell of the rows that belong there.
        head: Makes a heading of a value of ``by`` and its rows.
    """
    columns: dict[str, list] = {index: list(rows[index].unique())}
    for name, part in rows.groupby(by, sort=False):
        cells = {key: cell(group) for key, group in part.groupby(index)}
        columns[head(name, part)] = [cells.get(key, "") for key in columns[index]]
    return columns


def per_device(rows: pd.DataFrame, render_one: Callable[[pd.DataFrame], str]) -> str:
    """A text for each device."""
    return "\n\n".join(f"On {device}:\n\n{render_one(part)}" for device, part in rows.groupby("device", sort=False))


def auroc_pair(rows: pd.DataFrame) -> str:
    """Image / pixel AUROC in percent, mean over seeds."""
    means = 100 * rows[["image_AUROC", "pixel_AUROC"]].mean()
    return " / ".join("no masks" if pd.isna(value) else f"{value:.1f}" for value in means)


FOUND = ("image_TPR@FPR2", "image_TPR@FPR5")
"""Share of the defective images that are found at 2 % and at 5 % false alarms."""
NOT_MEASURED = "found at 2 % / 5 % false alarms: not measured"


def found_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """What is found; NaN in files from before it was measured."""
    return rows.reindex(columns=list(FOUND)).astype(float)


def accuracy(rows: pd.DataFrame) -> str:
    """Image / pixel AUROC and what is found."""
    return auroc_pair(rows) + and_found(rows)


def and_found(rows: pd.DataFrame) -> str:
    """After a semicolon, what is found at 2 % / 5 % false alarms, if that was measured; mean over rows."""
    found = 100 * found_columns(rows).mean()
    return "" if found.isna().any() else f"; {found.iloc[0]:.0f} / {found.iloc[1]:.0f}"


def accuracy_heading(rows: pd.DataFrame) -> str:
    """What the cells of :func:`accuracy` are, and why parts of some are not there."""
    measured = found_columns(rows).notna().all(axis=1)
    if not measured.any():
        return f"Image / pixel AUROC in percent ({NOT_MEASURED}):"
    heading = "Image / pixel AUROC; defective images found at 2 % / 5 % false alarms, in percent"
    return f"{heading}:" if measured.all() else f"{heading} (not there: not measured):"


def percents(values: pd.Series) -> list[str]:
    """Parts in percent; nothing where there is no value."""
    return ["" if pd.isna(value) else f"{100 * value:.1f}" for value in values]


def why_empty(rows: pd.DataFrame) -> str:
    """Say why columns of what is found have empty cells, if they have."""
    return "" if found_columns(rows).notna().all(axis=None) else f"Empty cells of {NOT_MEASURED}."


def seed_range(rows: pd.DataFrame) -> str:
    """Lowest to highest image AUROC in percent, if there are several."""
    values = 100 * rows["image_AUROC"]
    return f" ({values.min():.1f} to {values.max():.1f})" if len(values) > 1 else ""


def spread(values: pd.Series) -> str:
    """Median and, in parentheses, the smallest and the largest."""
    low, middle, high = (f"{value:.3g}" for value in (values.min(), values.median(), values.max()))
    return middle if low == high else f"{middle} ({low} to {high})"


def milliseconds(seconds: pd.Series) -> list[str]:
    """Seconds as ms."""
    return [f"{1000 * value:.0f}" if value >= 0.1 else f"{1000 * value:.1f}" for value in seconds]


def gigabytes(sizes: pd.Series) -> list[str]:
    """Bytes as GB; nothing for 0."""
    return ["" if pd.isna(size) or size == 0 else f"{size / 1e9:.2f} GB" for size in sizes]


# Accuracy.


@table
def quickstart(rows: pd.DataFrame) -> str:
    """AUROC per category and seed, and the time."""
    rows = rows[rows["data"] != GOOD_ALONE]
    columns = crossed(rows, "category", "seed", accuracy, lambda seed, _: f"seed {seed}")
    seconds = rows.groupby("seed")["train_seconds"].first()  # in the rows of the means alone
    return (
        f"{accuracy_heading(rows)}\n\n{markdown(columns)}\n\nSeconds of training on {rows['device'].iloc[0]}, shared "
        f"with other work: {', '.join(f'{s:.0f}' for s in seconds)} (seeds {', '.join(map(str, seconds.index))})."
    )


GOOD_ALONE = "good images alone"


@partial(once_measured, file="quickstart")
def quickstart_decisions(rows: pd.DataFrame) -> str:
    """What the quickstart decides, by the images that its thresholds are from."""
    means = means_of(rows)
    good = means["test_images"] - means["defective"]
    columns = {
        "thresholds from": means["data"],
        "seed": means["seed"],
        "good parts called anomalous": [
            f"{alarms:.0f} of {of:.0f}" for alarms, of in zip(means["false_alarms"], good, strict=True)
        ],
        "defects missed": [
            f"{missed:.0f} of {of:.0f}" for missed, of in zip(means["missed"], means["defective"], strict=True)
        ],
        "pixel F1": percents(means["pixel_F1Score"]),
        "pixel F1 of the best threshold": percents(means["pixel_F1Max"]),
    }
    return markdown(columns)


@once_measured
def fresh(rows: pd.DataFrame) -> str:
    """False alarms among good images that are in no split."""
    columns = crossed(
        rows, "category", "seed", lambda part: f"{part['false_alarms'].iloc[0]}", lambda seed, _: f"seed {seed}"
    )
    alarms, of = rows["false_alarms"].sum(), rows["images"].sum()
    return (
        f"Called anomalous, of {rows['images'].iloc[0]} good images of each product:\n\n{markdown(columns)}\n\n"
        f"In all {alarms} of {of}, {100 * alarms / of:.1f} %. {how_measured(rows)}"
    )


@partial(once_measured, file="quickstart")
def decided(rows: pd.DataFrame) -> str:
    """The README's sentence about decisions."""
    means = means_of(rows)
    parts = []
    for alone, of in means.groupby(means["data"] == GOOD_ALONE):
        good, defective = (of["test_images"] - of["defective"]).sum(), of["defective"].sum()
        start = "with thresholds from good images alone, " if alone else ""
        parts.append(
            f"{start}{of['false_alarms'].sum():.0f} of {good:.0f} good parts are called anomalous and "
            f"{of['missed'].sum():.0f} of {defective:.0f} defective ones missed"
        )
    seeds = means["seed"].nunique()
    return (
        f"With no option set, by the six generated products of the quickstart ({seeds} seeds): {'; '.join(parts)} "
        "([decisions](docs/evidence/decisions.md))."
    )


def mistakes(rows: pd.DataFrame) -> str:
    """False alarms and misses in percent."""
    return f"{100 * rows['false_alarms'].mean():.1f} / {100 * rows['missed'].mean():.1f}"


@once_measured
def decisions(rows: pd.DataFrame) -> str:
    """Ways to find thresholds, on average over products."""
    columns = crossed(rows, "validation", "rule", mistakes)  # without validation images, only one rule finds something
    possible = 100 * rows["possible"].mean()
    return (
        f"False alarms / missed defects in percent, means over products, draws and seeds:\n\n{markdown(columns)}\n\n"
        f"With the best thresholds at 2 % false alarms, {possible:.1f} % are missed. {how_measured(rows)}"
    )


@partial(once_measured, file="decisions")
def decisions_products(rows: pd.DataFrame) -> str:
    """Each product with calibration."""
    rows = rows[rows["rule"] == "calibrated"]
    first = rows.groupby("category", sort=False).first()
    columns = crossed(rows, "category", "validation", mistakes)
    columns["good"] = [f"{first.loc[name, 'good']:.0f}" for name in columns["category"]]
    columns["missed at 2 % false alarms"] = [
        f"{100 * rows.loc[rows['category'] == name, 'possible'].mean():.1f}" for name in columns["category"]
    ]
    return markdown(columns)


@once_measured
def calibration_cost(rows: pd.DataFrame) -> str:
    """Milliseconds of an image with and without calibration."""
    of = rows.pivot_table(index="round", columns="file", values="latency_ms")
    times = of["calibrated"] / of["not calibrated"]
    first = rows.iloc[0]
    return (
        f"An image of {first['pixels']:.0f} x {first['pixels']:.0f} pixels, {first['products']:.0f} products, on "
        f"{first['device']}: {of['calibrated'].median():.2f} ms, without {of['not calibrated'].median():.2f} ms; "
        f"median of the ratio in each round {times.median():.3f} ({times.min():.3f} to {times.max():.3f})."
    )


@once_measured
def recognition(rows: pd.DataFrame) -> str:
    """Products that are recognised, and found to be unknown."""
    means = rows.groupby("category", sort=False).mean(numeric_only=True)
    columns = {
        "product": list(means.index),
        "images": [f"{value:.0f}" for value in means["images"]],
        "recognised": percents(means["recognised"]),
        "good ones called unknown": percents(means["good_called_unknown"]),
        **{
            f"... {name.removeprefix('good_called_unknown_')}": percents(means[name])
            for name in means
            if name.startswith("good_called_unknown_")
        },
        "defective ones called unknown": percents(means["defects_called_unknown"]),
        "found unknown when it is": percents(means["found_unknown"]),
    }
    return f"{markdown(columns)}\n\nIn percent. {how_measured(rows)}"


@table
def elpv(rows: pd.DataFrame) -> str:
    """Images, AUROC and decisions per product."""
    counted = rows[rows["training_images"].notna()]
    tested, defective = counted["test_images"], counted["defective"]
    columns = {
        "product": [
            "both" if kind == "mean" else name for kind, name in zip(counted["kind"], counted["category"], strict=True)
        ],
        "trained on": [f"{value:.0f}" for value in counted["training_images"]],
        "thresholds from": [f"{value:.0f}" for value in counted["validation_images"]],
        "tested: good": [f"{value:.0f}" for value in tested - defective],
        "defective": [f"{value:.0f}" for value in defective],
        "image AUROC": [f"{100 * value:.1f}" for value in counted["image_AUROC"]],
        "image AP": [f"{100 * value:.1f}" for value in counted["image_AP"]],
        **{in_words(name): percents(found_columns(counted)[name]) for name in FOUND},
        "defects found": [f"{value:.1%}" for value in 1 - counted["missed"] / defective],
        "false alarms": [f"{value:.1%}" for value in counted["false_alarms"] / (tested - defective)],
    }
    mean = means_of(rows).iloc[0]
    return (
        f"{markdown(columns)}\n\n{mean['epochs']:.0f} epochs, seed {mean['seed']:.0f}, {mean['seconds']:.0f} "
        f"seconds from start to end. Thresholds from {mean['thresholds']}, decisions by the {mean['decisions']} one. "
        f"AUROC and AP of both are means. {why_empty(rows)}"
    ).rstrip()


@once_measured
def data_check(rows: pd.DataFrame) -> str:
    """Time of checks, as it was measured."""
    columns = {
        "step": rows["step"],
        "images": [f"{value:,}" for value in rows["images"]],
        "MB": [f"{value:,.0f}" for value in rows["megabytes"]],
        "seconds": [f"{value:.1f}" for value in rows["seconds"]],
        "images per s": [f"{value:,}" for value in rows["images_per_s"]],
    }
    side = rows["pixels"].iloc[0]
    return f"On {rows['device'].iloc[0]}, images of {side} x {side} pixels:\n\n{markdown(columns)}"


@once_measured
def versions(rows: pd.DataFrame) -> str:
    """Which versions the tests were run with."""
    shown = ("torch", "lightning", "timm", "numpy", "pandas", "openvino", "onnx", "nncf")
    columns = {
        "versions": rows["range"],
        "date": rows["date"],
        "Python": rows["python"],
        **{name: rows[name] for name in shown},
        "tests": rows["tests"],
        "passed": rows["passed"],
        "failed": rows["failed"],
    }
    return markdown(columns)


@once_measured
def drift(rows: pd.DataFrame) -> str:
    """False alarms and warnings in other light and out of focus."""
    columns: dict[str, list[str]] = {"good images": [], "false alarms": [], "of unknown products": []}
    columns |= {f"warnings, {to}": [] for to in ("calibration", "reference")}
    for change, part in rows.groupby("change", sort=False):
        whole = part[part["product"] == "(all)"].iloc[0]
        columns["good images"].append("as they are" if change == "none" else str(change))
        for name, counted in (("false alarms", "false_alarms"), ("of unknown products", "unknown")):
            columns[name].append(f"{100 * whole[counted] / whole['images']:.1f} %")
        for to, compared in part.groupby("compared_with"):
            named = compared.replace({"product": {"(all)": "unknown products"}})
            warned = named[named["drift"].isin(["higher", "lower", "anomalous", "unknown"])]
            words = [
                f"{row.product}: {row.drift}" if row.drift != "unknown" else row.product for row in warned.itertuples()
            ]
            columns[f"warnings, {to}"].append(", ".join(words) or "none")
    products = rows[rows["product"] != "(all)"]
    images, count = products["images"].iloc[0], products["product"].nunique()
    return f"{markdown(columns)}\n\n{images} images of each of {count} products, and as many others for the reference."


@once_measured
def serve(rows: pd.DataFrame) -> str:
    """The server beside Inspector alone, and what many requests leave behind."""
    texts = []
    for (model, pixels), part in rows.groupby(["model", "pixels"], sort=False):
        speed, long = part[part["rounds"].notna()], part[part["rounds"].isna()].iloc[0]
        spans = zip(speed["inspector_ratio_min"], speed["inspector_ratio_max"], strict=True)
        columns = {
            "": speed["part"],
            "images per s": [f"{value:.1f}" for value in speed["per_second"]],
            "times Inspector": [f"{value:.2f}" for value in speed["inspector_ratio"]],
            "of all rounds": [f"{least:.2f} to {most:.2f}" for least, most in spans],
        }
        sizes = [f"{long[f'memory_{when}_mb']:,.0f}" for when in ("start", "half", "end")]
        texts.append(
            f"{model}, images of {pixels} x {pixels} pixels, {long['clients']} clients on the same machine:\n\n"
            f"{markdown(columns)}\n\n"
            f"{long['requests']:,} requests in a row, {long['refused']:.0f} of them with a broken image: "
            f"{long['failed']:.0f} wrong answers; memory of all processes {sizes[0]} MB at the start, {sizes[1]} MB at "
            f"half, {sizes[2]} MB at the end."
        )
    return f"On {rows['device'].iloc[0]}:\n\n" + "\n\n".join(texts)


@once_measured
def long_predictions(rows: pd.DataFrame) -> str:
    """What heatmaps cost, and what many images leave behind."""
    row = rows.iloc[-1]
    return (
        f"On {row['device']}: {row['images']:,} images in a row gave {row['rows']:,} rows and {row['heatmaps']:,} "
        f"heatmaps; memory {row['memory_tenth_mb']} MB after a tenth of the time, {row['memory_half_mb']} MB at half, "
        f"{row['memory_end_mb']} MB at the end; open files {row['files_tenth']}, {row['files_half']}, "
        f"{row['files_end']}. "
        f"Heatmaps and masks took {1 / row['without_ratio']:.2f} times as long as none "
        f"({1 / row['without_ratio_max']:.2f} to {1 / row['without_ratio_min']:.2f})."
    )


@once_measured
def kills(rows: pd.DataFrame) -> str:
    """Works that were killed and started again."""
    names = ["kills", "rounds", "equal", "half_written"]
    total = rows[names].sum()
    columns = {
        "work": [*rows["work"], "all"],
        "seconds undisturbed": [*(f"{value:.1f}" for value in rows["undisturbed_seconds"]), ""],
        **{name.replace("half_written", "half-written files"): [*rows[name], total[name]] for name in names},
    }
    return f"On {rows['device'].iloc[0]}:\n\n{markdown(columns)}"


@once_measured
def long_runs(rows: pd.DataFrame) -> str:
    """What long works leave in memory, and how many files they leave open."""
    works = {
        "training": "training with features in memory and validations",
        "watch": "`predict --watch`, a day",
        "serve": "`serve`, a day",
    }
    columns = {
        "work": [works[part] for part in rows["part"]],
        "so many": [f"{count:,} {units}" for count, units in zip(rows["count"], rows["units"], strict=True)],
        "MB after a tenth": rows["memory_tenth_mb"],
        "at the end": rows["memory_end_mb"],
        "open files after a tenth": rows["files_tenth"],
        "in the end": rows["files_end"],
    }
    return f"On {rows['device'].iloc[0]}:\n\n{markdown(columns)}"


@once_measured
def ray_predictions(rows: pd.DataFrame) -> str:
    """Workers, and the process that writes their rows."""
    real, simulated = rows[~rows["simulated"]], rows[rows["simulated"]].iloc[-1]
    columns = {
        "workers": ["none" if row.workers == 0 else row.workers for row in real.itertuples()],
        "images per s": [f"{value:.1f}" for value in real["per_second"]],
        "s to the first row": [f"{value:.0f}" for value in real["start_seconds"]],
        "GB of the writing process": [f"{value / 1000:.2f}" for value in real["memory_end_mb"]],
        "rows unlike those of one process": [f"{value:.0f}" for value in real["different"]],
    }
    first = real.iloc[0]
    return (
        f"{first['images']:,} images of {first['pixels']} pixels each time, on {first['device']}:\n\n"
        f"{markdown(columns)}\n\n"
        f"Simulated: from {simulated['workers']} workers that predict nothing, the writing process took "
        f"{simulated['per_second']:,.0f} rows per second, which bounds what any number of workers can reach."
    )


@once_measured
def messages(rows: pd.DataFrame) -> str:
    """What a user reads after a mistake, and how soon."""
    columns = {
        "mistake": rows["case"],
        "seconds": [f"{value:.1f}" for value in rows["seconds"]],
        "exit code": rows["exit_code"],
        "lines of the message": rows["of_message"],
        "last line": [f"`{row.last_line}`" if row.of_message else "" for row in rows.itertuples()],
    }
    return f"On {rows['device'].iloc[0]}:\n\n{markdown(columns)}"


def highlights(results: Path) -> str:
    """The README's list of speeds, each with a link to its table."""
    latency = read(results, "inference_speed").groupby("variant")["latency_ms"].median()
    step = read(results, "training_speed").set_index("variant")["seconds_per_step"]
    gpu = read(results, "training_gpu").query("batch_size == 8").sort_values("seconds_per_step").iloc[0]
    metrics = read(results, "evaluation_speed").query("images == 1725").set_index("method")["processor_seconds"]
    lines = (
        f"an image takes {latency['f32']:.0f} ms in OpenVINO, {latency['torch']:.0f} ms in torch "
        "([inference](docs/evidence/inference-speed.md)), and maps are equal to "
        f"{read(results, 'export_parity')['map'].max():.0e} of their range "
        "([exported models](docs/evidence/exported-models.md))",
        f"a training step with cached features in bfloat16 takes {step['UniAD with cache, bf16']:.2f} s, that of "
        f"straightforward code {step['plain loop']:.2f} s; on one {gpu['device']}, 1,000 epochs of as many images as "
        f"MVTec AD's take {gpu['minutes_for_1000_epochs']:.0f} minutes ([training](docs/evidence/training-speed.md))",
        f"seven metrics of 1,725 images take {metrics['per_category']:.1f} s of one processor, in scikit-learn "
        f"{metrics['sklearn']:.0f} s ([metrics](docs/evidence/metrics.md))",
    )
    return "\n".join(f"- {line}" for line in lines)


TABLES["highlights"] = highlights


@table
def cifar10(rows: pd.DataFrame) -> str:
    """AUROC per method."""
    columns: dict[str, list] = {"method": [], "epochs": [], "seeds": [], "image AUROC": []}
    columns |= {in_words(name): [] for name in FOUND} | {"thresholds from": []}
    for method, run in rows[rows["category"] == "mean"].groupby("method", sort=False):
        columns["method"].append(method)
        columns["epochs"].append("" if run["epochs"].isna().all() else f"{run['epochs'].max():.0f}")
        columns["seeds"].append(", ".join(f"{seed:.0f}" for seed in run["seed"].dropna()))
        columns["image AUROC"].append(f"{100 * run['image_AUROC'].mean():.1f}{seed_range(run)}")
        columns["thresholds from"].append(", ".join(run["thresholds"].dropna().unique()))
        for name, value in found_columns(run).mean().items():
            columns[in_words(str(name))] += percents(pd.Series([value]))
    return "\n\n".join(filter(None, (markdown(columns), why_empty(rows))))


@table
def cifar10_epochs(rows: pd.DataFrame) -> str:
    """AUROC per epoch and seed."""
    columns = crossed(
        rows.sort_values("epoch", kind="stable"),
        "epoch",
        ["method", "seed"],
        lambda part: f"{100 * part['image_AUROC'].mean():.1f}",
        lambda name, _: f"{name[0]}, seed {name[1]}",
    )
    return f"Image AUROC in percent:\n\n{markdown(columns)}"


def means_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a benchmark that are means over categories: they have what a training costs as well."""
    return rows[rows["kind"] == "mean"]


def costs(rows: pd.DataFrame) -> dict[str, list]:
    """Columns: what models cost, a row for each row."""
    columns: dict[str, Callable[[Any], str]] = {
        "minutes of training": lambda row: f"{row.train_seconds / 60:.1f}",
        "GB of memory": lambda row: f"{row.peak_memory / 1e9:.1f}",
        "MB on disk": lambda row: f"{row.size_on_disk / 1e6:.1f}",
        "ms per image": lambda row: f"{row.latency_ms:.1f}",
    }
    values = {name: [cell(row) for row in rows.itertuples()] for name, cell in columns.items()}
    return {name: ["" if cell == "nan" else cell for cell in cells] for name, cells in values.items()}


def metric_columns(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, list]:
    """Columns: metrics in percent, by their names for people."""
    return {in_words(name) or name.replace("_", " "): percents(rows[name]) for name in names}


def how_measured(rows: pd.DataFrame) -> str:
    """Device and seeds of a benchmark."""
    seeds = ", ".join(f"{seed:.0f}" for seed in rows["seed"].unique())
    devices = " and ".join(rows["device"].unique())
    return f"On {devices}; seed{'s' if ',' in seeds else ''} {seeds}."


@table
def methods(rows: pd.DataFrame) -> str:
    """All metrics of each method, and what it costs."""
    means = means_of(rows)
    return f"Means over the categories in percent. {how_measured(rows)}\n\n" + markdown(
        {"method": means["method"], **metric_columns(means, (*METRICS, *FOUND)), **costs(means)}
    )


@partial(table, file="methods")
def methods_in_short(rows: pd.DataFrame) -> str:
    """The table of the README: the methods on one backbone."""
    means = means_of(rows)[lambda frame: frame["method"].str.endswith(", Lite0")]
    columns = {
        "method": means["method"].str.removesuffix(", Lite0"),
        "image / pixel AUROC": [auroc_pair(row) for _, row in means.groupby(level=0)],
        "found at 5 % false alarms": percents(means["image_TPR@FPR5"]),
        **costs(means),
    }
    return f"Means over three products in percent. {how_measured(rows)}\n\n{markdown(columns)}"


@partial(table, file="methods")
def methods_products(rows: pd.DataFrame) -> str:
    """Accuracy of each method per category."""
    return by_category(rows, "method", across=False)


def by_category(rows: pd.DataFrame, by: str, across: bool = True) -> str:
    """Accuracy per category and value of a column; the categories down, or across."""
    names = (by, "category") if not across else ("category", by)
    columns = crossed(rows, *names, accuracy)
    return f"{accuracy_heading(rows)}\n\n{markdown(columns)}"


@table
def fast(rows: pd.DataFrame) -> str:
    """The fast recipe: each seed, and the mean over seeds."""
    named = rows.assign(seed=[f"seed {seed:.0f}" for seed in rows["seed"]])
    minutes = means_of(rows)["train_seconds"] / 60
    return (
        f"{by_category(pd.concat([named, rows.assign(seed='mean')]), 'seed')}\n\n"
        f"Minutes of training on {rows['device'].iloc[0]}, with the features: "
        f"{', '.join(f'{value:.1f}' for value in minutes)}."
    )


@once_measured
def modes(rows: pd.DataFrame) -> str:
    """One model against one for each category."""
    rows = rows.assign(mode=rows["mode"] + ", " + rows["method"].str.removeprefix("UniAD, "))
    means = means_of(rows)
    columns = {"": means["mode"], "models": [f"{value:.0f}" for value in means["models"]], **costs(means)}
    return f"{by_category(rows, 'mode')}\n\n{how_measured(rows)}\n\n{markdown(columns)}"


@once_measured
def unified(rows: pd.DataFrame) -> str:
    """Methods on several data sets, one model against one for each category."""
    named = rows.assign(to=rows["data"] + ", " + rows["mode"])
    means = means_of(named)
    over_seeds = crossed(means, "method", "to", lambda part: accuracy(part) + seed_range(part))
    parts = [f"{accuracy_heading(rows)[:-1]}; in parentheses, image AUROC of the seeds:", markdown(over_seeds)]
    for data, part in named[named["kind"] == "category"].groupby("data", sort=False):
        parts += [f"Each category of {data}:", markdown(crossed(part, "method", ["category", "mode"], accuracy, _in))]
    return "\n\n".join([*parts, how_measured(rows)])


def _in(name: tuple[str, str], _: pd.DataFrame) -> str:
    return ", ".join(name)


@once_measured
def products(rows: pd.DataFrame) -> str:
    """One model for more and more products."""
    means = means_of(rows)
    columns = {"": means["data"], "accuracy": [accuracy(row) for _, row in means.groupby(level=0)], **costs(means)}
    return f"{accuracy_heading(rows)}\n\n{markdown(columns)}\n\n{how_measured(rows)}"


@partial(once_measured, file="sampling")
def sampling_alike(rows: pd.DataFrame) -> str:
    """Accuracy of the products that are in several of these models."""
    return products_alike(rows)


@partial(once_measured, file="products")
def products_alike(rows: pd.DataFrame) -> str:
    """Accuracy of the products that are in several models."""
    kept = rows.groupby("category")["data"].transform("nunique") > 2
    return by_category(rows[kept & (rows["kind"] == "category")], "data")


def with_first(results: Path, name: str, other: str, query: str, called: str) -> pd.DataFrame | None:
    """Rows of a benchmark after those of the training of another one to which it compares, if both are there."""
    if not all((results / f"{stem}.csv").is_file() for stem in (name, other)):
        return None
    return pd.concat([read(results, other).query(query).assign(method=called), read(results, name)])


def seven(results: Path) -> str:
    """Variants of one model for seven products."""
    query = "data == '7 products'"
    rows = with_first(results, "seven", "products", query, "fast recipe, 1,000 steps")
    if rows is None:
        return NOT_YET
    if (results / "sampling.csv").is_file():
        sampled = read(results, "sampling").query(query)
        rows = pd.concat([rows, sampled.assign(method="sampled by variance, 1,000 steps")])
    means = means_of(rows)
    return f"{by_category(rows, 'method')}\n\n{how_measured(rows)}\n\n{markdown({'': means['method'], **costs(means)})}"


def sampling(results: Path) -> str:
    """Products that differ more shown more often, against each image once."""
    rows = with_first(results, "sampling", "products", "data != '1 product'", "each image once")
    if rows is None:
        return NOT_YET
    means = means_of(rows.replace({"method": r".*, sampled by variance"}, "by variance", regex=True))
    return f"{accuracy_heading(rows)}\n\n{markdown(crossed(means, 'data', 'method', accuracy))}\n\n{how_measured(rows)}"


@partial(once_measured, file="sampling_unseen")
def sampling_unseen(rows: pd.DataFrame) -> str:
    """The model of seven products on the half of the test images that sampling was not found on."""
    return unseen_half(rows)


def copies(results: Path) -> str:
    """Copies of one product's images, and what they do to all."""
    query = "mode == 'unified' and method == 'UniAD, 1,000 steps'"
    rows = with_first(results, "copies", "modes", query, "no copies")
    return NOT_YET if rows is None else f"{by_category(rows, 'method', across=False)}\n\n{how_measured(rows)}"


TABLES |= {"seven": seven, "sampling": sampling, "copies": copies}


def added(results: Path) -> str:
    """A product that was added to a model of others, against a model of all from the start."""
    if not (results / "added.csv").is_file():
        return NOT_YET
    before, after, anew = (read(results, name) for name in ("added_before", "added", "fast"))
    anew = anew[anew["seed"] == after["seed"].iloc[0]]
    parts = {"before": before, "after": after, "all from the start": anew}
    named = pd.concat([rows.assign(model=name) for name, rows in parts.items()])
    named = named[named["category"] != "mean"]
    minutes = {name: means_of(rows)["train_seconds"].iloc[0] / 60 for name, rows in parts.items()}
    return (
        f"{by_category(named, 'model', across=False)}\n\n{how_measured(after)} Minutes of training: "
        f"{', '.join(f'{name} {value:.1f}' for name, value in minutes.items())}."
    )


TABLES["added"] = added


@once_measured
def images(rows: pd.DataFrame) -> str:
    """Accuracy per number of training images."""
    means = means_of(rows)
    columns = crossed(means, "data", "method", accuracy)
    ordered = {"of each product": columns.pop("data"), **columns}
    return f"{accuracy_heading(means)}\n\n{markdown(ordered)}\n\n{how_measured(rows)}"


@once_measured
def curves(rows: pd.DataFrame) -> str:
    """Accuracy while training, against minutes."""
    columns = {
        "method": rows["method"],
        "epoch": rows["epoch"],
        "minutes": [f"{value / 60:.1f}" for value in rows["seconds"]],
        "accuracy": [accuracy(row) for _, row in rows.groupby(level=0)],
    }
    return f"{accuracy_heading(rows)}\n\n{markdown(columns)}\n\n{how_measured(rows)}"


@once_measured
def search(rows: pd.DataFrame) -> str:
    """The last validation of each variant of the fast recipe."""
    last = rows.groupby(["method", "seed"], sort=False).tail(1)
    groups = last.groupby("method", sort=False)
    columns = {
        "variant": list(groups.groups),
        "mean": [accuracy(part) for _, part in groups],
        **{
            name.removeprefix("image_AUROC/"): [
                f"{100 * part[name].mean():.1f} / {100 * part[name.replace('image', 'pixel')].mean():.1f}"
                for _, part in groups
            ]
            for name in last
            if name.startswith("image_AUROC/")
        },
    }
    return f"{accuracy_heading(last)}\n\n{markdown(columns)}\n\n{how_measured(last)}"


def study(name: str, index: str = "method") -> Callable[[Path], str]:
    """A table of ``ablation_<name>.csv``: accuracy by category, a row for each variant."""

    def from_file(results: Path) -> str:
        if not (results / f"ablation_{name}.csv").is_file():
            return NOT_YET
        rows = read(results, f"ablation_{name}").sort_values("kind", kind="stable")  # the means come last
        return f"{by_category(rows, index, across=False)}\n\n{how_measured(rows)}"

    return from_file


TABLES |= {f"ablation_{name}": study(name) for name in ("mask", "query", "jitter", "depth", "backbone")}
TABLES["ablation_products"] = study("products", "data")


@once_measured
def ablation_shortcut(rows: pd.DataFrame) -> str:
    """The best and the last validation of each network, and its loss there."""
    groups = [part.sort_values("epoch") for _, part in rows.groupby(["method", "seed"], sort=False)]
    best = [part.loc[part["image_AUROC"].idxmax()] for part in groups]
    last = [part.iloc[-1] for part in groups]
    columns: dict[str, list] = {"network": [part["method"].iloc[0] for part in groups]}
    for when, chosen in (("at best", best), ("at the end", last)):
        columns[f"epoch {when}"] = [str(row["epoch"]) for row in chosen]
        columns[f"loss {when}"] = [f"{row['train_loss']:.4f}" for row in chosen]
        columns[f"image / pixel AUROC {when}"] = [auroc_pair(row.to_frame().T) for row in chosen]
    return f"{markdown(columns)}\n\n{how_measured(rows)}"


@once_measured
def optimizers(rows: pd.DataFrame) -> str:
    """What each optimizer reaches, and how many directions its steps have."""
    last = rows[rows["epoch"] == rows["epoch"].max()]
    groups = last.groupby("optimizer", sort=False)
    columns = {
        "optimizer": list(groups.groups),
        "training loss": [f"{part['train_loss'].mean():.3f}" for _, part in groups],
        "image / pixel AUROC": [auroc_pair(part) + seed_range(part) for _, part in groups],
        "effective rank of a step": [f"{part['rank'].mean():.0%}" for _, part in groups],
        "condition of the features": [f"{part['condition'].mean():.0e}" for _, part in groups],
    }
    return f"{markdown(columns)}\n\n{how_measured(last)}"


@once_measured
def image_scores(rows: pd.DataFrame) -> str:
    """Means over categories and seeds of several scores of the same maps."""
    means = rows.groupby("method", sort=False).mean(numeric_only=True)
    columns = {"score": list(means.index), **metric_columns(means, ("image_AUROC", *FOUND))}
    return f"{markdown(columns)}\n\n{how_measured(rows)}"


@once_measured
def unseen_half(rows: pd.DataFrame) -> str:
    """Image AUROC and what is found, means over seeds."""
    mean = rows.groupby(["method", "seed"], sort=False).mean(numeric_only=True).reset_index().assign(category="mean")
    both = pd.concat([rows, mean])

    def cell(part: pd.DataFrame) -> str:
        return f"{100 * part['image_AUROC'].mean():.1f}{and_found(part)}"

    seeds = rows.groupby("method", sort=False)["seed"].nunique()
    several = [f"{name} {count}" for name, count in seeds.items() if count > 1]
    return (
        f"Image AUROC; defective images found at 2 % / 5 % false alarms, in percent:\n\n"
        f"{markdown(crossed(both, 'method', 'category', cell))}\n\n"
        f"Seeds: {', '.join([*several, 'others 1' if several else '1'])}."
    )


@table
def float16_features(rows: pd.DataFrame) -> str:
    """Accuracy per category from features in float32 and float16."""

    def cell(part: pd.DataFrame) -> str:
        return f"{part['image_AUROC'].item():.4f} / {part['pixel_AUROC'].item():.4f}{and_found(part)}"

    table = markdown(crossed(rows, "category", "method", cell))
    return f"Image / pixel AUROC; found at 2 % / 5 % false alarms in percent:\n\n{table}"


# Exported files.


@table
def ports(rows: pd.DataFrame) -> str:
    """Inputs and outputs of an exported file."""
    names, shapes = [f"`{name}`" for name in rows["name"]], [f"({shape})" for shape in rows["shape"]]
    return markdown(
        {"": rows["kind"], "name": names, "type": rows["type"], "shape": shapes, "content": rows["content"]}
    )


@table
def export_parity(rows: pd.DataFrame) -> str:
    """Differences of exported maps from torch's, per model, image size and padding."""
    columns = {
        "model": rows["recipe"].fillna("uniad.yaml") + ", " + rows["backbone"],
        "image size": rows["image_size"],
        "padding": rows["padding"],
        "batch": rows["batch"],
        "map": [f"{value:.0e}" for value in rows["map"]],
        "score": [f"{value:.0e}" for value in rows["score"]],
        "attentions with a mask": rows["masked"],
        "without the mask": [f"{value:.3f}" for value in rows["without_mask"]],
    }
    return (
        "Random weights, OpenVINO in f32; largest differences from torch, as parts of the range of its map; the last "
        f"column is the map's if nothing were masked:\n\n{markdown(columns)}"
    )


@table
def backbones(rows: pd.DataFrame) -> str:
    """Backbones that were taken through training and export."""
    columns: dict[str, list] = {}
    for name, run in rows.groupby("backbone", sort=False):
        cells = {
            "backbone": name,
            "layers": run["layers"].iloc[0],
            "channels": run["channels"].iloc[0],
            "parameters": f"{run['backbone_parameters'].iloc[0] / 1e6:.1f} M",
            "image sizes": ", ".join(dict.fromkeys(f"{row.height} x {row.width}" for row in run.itertuples())),
            "padding": ", ".join(run["padding_mode"].unique()),
            "largest difference": f"{run['openvino_difference'].max():.0e}",
        }
        for column, cell in cells.items():
            columns.setdefault(column, []).append(cell)
    return f"Differences are parts of the map's range:\n\n{markdown(columns)}"


def parity_columns(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Differences; changes of the mean and, in parentheses, the largest one in a category."""
    columns = {
        "map, largest": [f"{value:.1e}" for value in rows["map_difference_max"]],
        "map, mean": [f"{value:.1e}" for value in rows["map_difference_mean"]],
    }
    for name in ("image_AUROC", "pixel_AUROC"):
        pairs = zip(rows[f"{name}_change"], rows[f"{name}_largest_change"], strict=True)
        columns[name.replace("_", " ")] = [f"{mean:+.4f} ({largest:+.4f})" for mean, largest in pairs]
    for name in (name for name in FOUND if f"{name}_change" in rows):
        columns[in_words(name)] = ["" if pd.isna(value) else f"{value:+.4f}" for value in rows[f"{name}_change"]]
    columns["AUPRO"] = [f"{value:+.4f}" for value in rows["pixel_AUPRO_change"]]
    return columns


def parity_heading(rows: pd.DataFrame) -> str:
    """What the columns are, and on how many images."""
    return (
        "Differences of maps as parts of their range in torch, changes of metrics (means over categories, in "
        f"parentheses the largest change in one), on {rows['images'].iloc[0]} test images of "
        f"{rows['categories'].iloc[0]} categories"
    )


@table
def quantization(rows: pd.DataFrame) -> str:
    """INT8 with and without each of the choices behind it, for each model."""
    texts = []
    # The first model was measured before the name of the backbone was written down; the page names it.
    rows = rows.assign(backbone=rows["backbone"].fillna("")) if "backbone" in rows else rows.assign(backbone="")
    for (device, backbone), part in rows.groupby(["device", "backbone"], sort=False):
        columns = {
            "INT8": part["variant"],
            **parity_columns(part),
            "quantised tensors": part["quantised"],
            "MB": [f"{value / 1e6:.1f}" for value in part["size_bytes"]],
            "s": [f"{value:.0f}" for value in part["seconds"]],
        }
        torch = f"; torch has image AUROC {part['image_AUROC'].iloc[0] - part['image_AUROC_change'].iloc[0]:.4f}"
        about = f"{backbone}. {parity_heading(part)}" if backbone else parity_heading(part)
        texts.append(f"{about}, on {device}{torch}; s is processor time to quantise:\n\n{markdown(columns)}")
    return "\n\n".join(texts)


def precisions(rows: pd.DataFrame) -> str:
    """Each precision against torch, which is the first row."""
    first, others = rows.iloc[0], rows.iloc[1:]
    computed = others.get("computed_in", pd.Series(dtype=str))
    several = {"computed in": computed} if computed.nunique() > 1 else {}
    columns = {
        "precision": others["precision"],
        **several,
        **parity_columns(others),
        "flips": [f"{value:.0f}" for value in others["flipped_decisions"]],
        "MB": [f"{value / 1e6:.1f}" for value in others["size_bytes"]],
    }
    return (
        f"{parity_heading(rows)}; torch has image AUROC {first['image_AUROC']:.4f}, pixel AUROC "
        f"{first['pixel_AUROC']:.4f} and AUPRO {first['pixel_AUPRO']:.4f}:\n\n{markdown(columns)}"
    )


@table
def industrial_parity(rows: pd.DataFrame) -> str:
    """A model without calibration."""
    return precisions(rows)


@once_measured
def calibrated_parity(rows: pd.DataFrame) -> str:
    """A model with calibration."""
    return precisions(rows)


# Speed of training.


def ratios(rows: pd.DataFrame, name: str) -> list[str]:
    """Medians of the ratios of rounds, with the smallest and the largest."""
    values = rows[[f"{name}_ratio", f"{name}_ratio_min", f"{name}_ratio_max"]].to_numpy()
    return ["1" if low == high == 1 else f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in values]


@table
def training_speed(frame: pd.DataFrame) -> str:
    """Training from images: ratios."""

    def one(rows: pd.DataFrame) -> str:
        columns = {
            "training": rows["variant"],
            "seconds per step": [f"{value:.3g}" for value in rows["seconds_per_step"]],
            "epochs per hour": [f"{value:.2f}" for value in rows["epochs_per_hour"]],
            "times the plain loop": ratios(rows, "plain"),
            "times without cache": ratios(rows, "no_cache"),
        }
        first, built = rows.iloc[0], rows[["build_images_per_second", "build_in_epochs_without_cache"]].median()
        text = (
            f"{markdown(columns)}\n\nPNG images of {first['image_pixels']:,} px, "
            f"{first['bytes_per_image'] / 1e6:.1f} MB each; batch {first['batch_size']}; processes that read images: "
            f"{first['num_workers']}. An epoch is that of MVTec AD (3,629 images). Rounds: {first['rounds']}, of "
            f"{first['steps']} steps each; medians, and in parentheses the smallest and the largest."
        )
        if built.notna().all():
            text += (
                f" Building the cache, once: {built['build_images_per_second']:.1f} images per second, which is the "
                f"time of {built['build_in_epochs_without_cache']:.2g} epochs without cache."
            )
        return text

    return per_device(frame, one)


@table
def training_step(frame: pd.DataFrame) -> str:
    """A step of the fast recipe with each optimizer and precision."""

    def one(rows: pd.DataFrame) -> str:
        first = rows.iloc[0]
        columns = {
            "optimizer, precision": rows["variant"],
            "ms per step": milliseconds(rows["seconds_per_step"]),
            "times as fast as the first": ratios(rows, "first"),
        }
        measured = "bfloat16" if "bfloat16" in set(rows["dtype"]) else "float32"
        return (
            f"{markdown(columns)}\n\nBatch {first['batch_size']}, features from the cache; as measured is {measured} "
            f"here. Rounds: {first['rounds']}, of {first['steps']} steps each; medians, in parentheses the smallest "
            "and the largest."
        )

    return per_device(frame, one)


@once_measured
def training_embedding(frame: pd.DataFrame) -> str:
    """Images through the backbone of the fast recipe, some at a time."""

    def one(rows: pd.DataFrame) -> str:
        columns = {
            "images at a time": rows["at_once"],
            "ms per image": milliseconds(rows["seconds_per_image"]),
            "times as fast as the first": ratios(rows, "all"),
        }
        rounds = f"Rounds: {rows['rounds'].iloc[0]}; medians, in parentheses the smallest and the largest."
        return f"{markdown(columns)}\n\n{rounds}"

    return per_device(frame, one)


@table
def training_floor(frame: pd.DataFrame) -> str:
    """Where the time of a training step goes."""

    def one(rows: pd.DataFrame) -> str:
        names = list(rows["part"].unique())
        columns: dict[str, list[Any]] = {"part of a step": names}
        for dtype, part in rows.groupby("dtype", sort=False):
            cells = part.set_index("part").loc[names]
            columns[f"{dtype}, ms"] = milliseconds(cells["seconds_per_step"])
            columns[f"{dtype}, share"] = [f"{share:.0%}" for share in cells["share_of_step"]]
            rates = cells["gflop_per_second"]
            columns[f"{dtype}, GFLOP/s"] = ["" if pd.isna(rate) else f"{rate:.0f}" for rate in rates]
        return f"{markdown(columns)}\n\nBatch {rows['batch_size'].iloc[0]}, features from the cache."

    texts = [f"The {recipe} recipe. {per_device(rows, one)}" for recipe, rows in frame.groupby("recipe", sort=False)]
    return "\n\n".join(texts)


@table
def training_scaling(frame: pd.DataFrame) -> str:
    """How time and memory of training grow."""

    def one(rows: pd.DataFrame) -> str:
        texts = []
        images, sizes, batches = (rows[rows["series"] == name] for name in ("images", "image size", "batch"))
        if len(images):
            reading = images["reading_seconds_per_epoch"] / images["seconds_per_epoch"]
            columns = {
                "images": [f"{value:,}" for value in images["images"]],
                "features in": images["cache"],
                "ms per step": milliseconds(images["seconds_per_step"]),
                "minutes per epoch": [f"{value / 60:.2f}" for value in images["seconds_per_epoch"]],
                "of it reading": [f"{value:.1%}" for value in reading],
                "disk": gigabytes(images["disk_bytes"]),
                "memory": gigabytes(images["peak_memory_bytes"]),
                "of it pages of files": gigabytes(images["of_it_files_bytes"]),
            }
            texts.append(markdown(columns))
        if len(sizes):
            columns = {
                "image size": sizes["image_size"],
                "tokens": sizes["tokens"],
                "ms per step": milliseconds(sizes["seconds_per_step"]),
                "attention's share of operations": [f"{value:.0%}" for value in sizes["attention_of_operations"]],
                "attention's share of time": [f"{value:.0%}" for value in sizes["attention_of_time"]],
                "memory": gigabytes(sizes["peak_memory_bytes"]),
            }
            texts.append(markdown(columns))
            # Attention's operations per token grow with the number of tokens, the others' do not.
            first = sizes.iloc[0]
            half = math.ceil(first["tokens"] * (1 / first["attention_of_operations"] - 1))
            texts.append(
                f"Attention has half of the operations from {half:,} tokens on, which are images of "
                f"{16 * half**0.5:.0f} px."
            )
        if len(batches):
            columns = {
                "batch": batches["batch_size"],
                "ms per step": milliseconds(batches["seconds_per_step"]),
                "images per second": [f"{value:.1f}" for value in batches["images_per_second"]],
                "memory": gigabytes(batches["peak_memory_bytes"]),
            }
            texts.append(markdown(columns))
        return "\n\n".join(texts)

    return per_device(frame, one)


def training_gpu(results: Path) -> str:
    """MVTec AD's size on a GPU; nothing as long as it has not been measured."""

    def one(rows: pd.DataFrame) -> str:
        columns = {
            "batch": rows["batch_size"],
            "compile_mode": [mode or "none" for mode in rows["compile_mode"]],
            "steps per second": [f"{value:.1f}" for value in rows["steps_per_second"]],
            "minutes for 1,000 epochs": [f"{value:.1f}" for value in rows["minutes_for_1000_epochs"]],
            "of the matrix rate": [f"{value:.1%}" for value in rows["utilisation"]],
            "memory": gigabytes(rows["peak_memory_bytes"]),
        }
        rate = rows["matrix_gflop_per_second"].iloc[0] / 1000
        return (
            f"{markdown(columns)}\n\nbf16-mixed, {rows['images'].iloc[0]:,} images with generated features; measured "
            f"rate of matrix products: {rate:.0f} TFLOP/s in bfloat16."
        )

    measured = (results / "training_gpu.csv").is_file()
    return per_device(read(results, "training_gpu"), one) if measured else ""


TABLES["training_gpu"] = training_gpu


# Speed of the metrics.

METRIC_METHODS = {
    "per_category": "this package, per category",
    "functions": "its functions alone, per category",
    "shuffled": "this package, per category, images in random order",
    "pooled": "this package, all images pooled",
    "sklearn": "scikit-learn, per category",
    "anomalib": "anomalib, all images pooled",
}


@table
def evaluation_speed(frame: pd.DataFrame) -> str:
    """Time and memory of the metrics."""

    def seconds(rows: pd.DataFrame) -> str:
        (row,) = rows.to_dict("records")
        if pd.isna(row["processor_seconds"]):
            return row["note"]
        return f"{row['processor_seconds']:.3g}" + ("" if pd.isna(row["ratio"]) else f" ({row['ratio']:.3g})")

    def memory(rows: pd.DataFrame) -> str:
        (row,) = rows.to_dict("records")
        return row["note"] if pd.isna(row["peak_memory_bytes"]) else f"{row['peak_memory_bytes'] / 2**20:,.0f}"

    texts = []
    for (device, size, categories), rows in frame.groupby(["device", "image_size", "categories"], sort=False):
        texts.append(f"{categories} categories, maps of {size} x {size} pixels, on {device}:")
        data = rows.drop_duplicates("images").assign(method="data of one category")
        data["peak_memory_bytes"] = data["category_bytes"]
        for heading, cell, shown in (
            ("processor seconds (times the first)", seconds, rows),
            ("peak memory, MiB", memory, pd.concat([rows, data])),
        ):
            ordered = shown.assign(method=shown["method"].replace(METRIC_METHODS))
            order = [*METRIC_METHODS.values(), "data of one category"]
            ordered = ordered.sort_values("images", kind="stable")
            ordered = ordered.sort_values("method", key=lambda names: names.map(order.index), kind="stable")
            columns = crossed(ordered, "method", "images", cell, lambda count, _: f"{count:,} images")
            texts.append(markdown({heading: columns.pop("method"), **columns}))
    sentences = []
    for method, name in (("sklearn", "scikit-learn"), ("anomalib", "anomalib")):
        rows = frame[frame["method"] == method].dropna(subset=["difference"])
        if len(rows):
            sentences.append(
                f"Largest difference to {name}: {rows['difference_AUPRO'].max():.0e} in AUPRO, "
                f"{rows['difference'].max():.0e} in the other metrics."
            )
    return "\n\n".join([*texts, " ".join(sentences)])


# Speed of inference.

LARGE = "any_size_1024"  # with images of another size than the others
MODELS = {
    "torch": "UniAD, torch",
    "f32": "UniAD, OpenVINO, f32",
    "f16": "UniAD, OpenVINO, f16 file",
    "bf16": "UniAD, OpenVINO, bf16",
    "int8": "UniAD, OpenVINO, INT8 weights",
    "int8_ptq": "UniAD, OpenVINO, INT8",
    "any_size": "UniAD, OpenVINO, f32, file for any size",
    LARGE: "UniAD, OpenVINO, f32, file for any size, 1024 px",
    "patchcore_10": "PatchCore, 10 %, OpenVINO, f32",
    "patchcore_1": "PatchCore, 1 %, OpenVINO, f32",
    "padim": "PaDiM, OpenVINO, f32",
}
COMPARED = {"torch": "torch", "patchcore_10": "PatchCore", "patchcore_1": "PatchCore 1 %"}


@table
def inference_speed(frame: pd.DataFrame) -> str:
    """Latency and throughput, and how many times those of torch and of PatchCore."""

    def times(ratios: pd.Series, name: str) -> str:
        return "" if name == LARGE else f"{ratios.median():.3g} x"

    def one(rows: pd.DataFrame) -> str:
        columns: dict[str, list[str]] = {}
        of = {name: group.set_index("round") for name, group in rows.groupby("variant")}
        for name in (name for name in MODELS if name in of):
            own = of[name]
            cells = {
                "model": MODELS[name],
                "ms per image": spread(own["latency_ms"]),
                "as fast as torch": times(of["torch"]["latency_ms"] / own["latency_ms"], name),
                "images/s": spread(own["images_per_second"]),
            }
            for other in (other for other in COMPARED if other in of):
                ratio = own["images_per_second"] / of[other]["images_per_second"]
                cells[f"of {COMPARED[other]}'s"] = times(ratio, name)
            for head, cell in cells.items():
                columns.setdefault(head, []).append(cell)
        first = rows.iloc[0]
        banks = rows.dropna(subset=["bank_vectors"]).groupby("variant", sort=False)["bank_vectors"].first()
        vectors = "; ".join(f"{MODELS[str(name)].split(', ')[1]}: {count:,.0f}" for name, count in banks.items())
        sizes = f"images of {first['image_size']} px{' where no other size is given' if LARGE in of else ''}"
        text = (
            f"{markdown(columns)}\n\nBackbone {first['backbone']}, {sizes} in memory, generated weights; medians of "
            f"{rows['round'].nunique()} rounds, in parentheses the smallest and the largest. Images per second: "
            "OpenVINO with parallel requests, torch one after the other; what they are of the others' follows, as the "
            "median of the ratios of each round."
        )
        return f"{text} Vectors in PatchCore's memory bank: {vectors}." if vectors else text

    return per_device(frame, one)


PRECISIONS = {
    "f32": "f32",
    "f16": "f16 file, computed in f32",
    "bf16": "bf16",
    "int8_ptq": "INT8, the rest in f32",
    "int8_ptq, bf16": "INT8, the rest in bf16",
    "any_size, one image": "f32, any size, one image (`anomalib-uniad predict`)",
    "any_size": "f32, any size and number of images (as exported)",
}


@table
def inference_precision(frame: pd.DataFrame) -> str:
    """Times of all precisions and of files for any size, and parts of that of f32 for one size."""

    def one(rows: pd.DataFrame) -> str:
        texts = []
        for backbone, part in rows.groupby("backbone", sort=False):
            of = {name: group.set_index("round") for name, group in part.groupby("variant")}
            columns: dict[str, list[str]] = {"": [], "ms": [], "of f32's": []}
            for name in (name for name in PRECISIONS if name in of):
                own = of[name]
                cells = (
                    PRECISIONS[name],
                    f"{own['processor_ms'].median():.1f}",
                    spread(own["processor_ms"] / of["f32"]["processor_ms"]),
                )
                for head, cell in zip(columns, cells, strict=True):
                    columns[head].append(cell)
            first = part.iloc[0]
            texts.append(
                f"{backbone}, {first['image_size']} px, processor time of one image on one thread, "
                f"{part['round'].nunique()} rounds in turn:\n\n{markdown(columns)}"
            )
        return "\n\n".join(texts)

    return per_device(frame, one)


@table
def inference_floor(frame: pd.DataFrame) -> str:
    """Time and operations of the parts of each model, and the floor."""

    def one(rows: pd.DataFrame) -> str:
        return "\n\n".join(
            f"{backbone}, {part['image_size'].iloc[0]} px:\n\n{parts(part)}"
            for backbone, part in rows.groupby("backbone", sort=False)
        )

    def parts(rows: pd.DataFrame) -> str:
        names = list(rows["part"].unique())
        first = rows[rows["variant"] == rows["variant"].iloc[0]].set_index("part")
        columns = {"part": names, "GFLOP": [f"{count / 1e9:.3f}" for count in first["operations"][names]]}
        sentences = []
        for variant, part in rows.groupby("variant", sort=False):
            cells = part.set_index("part")
            columns[f"{variant}, ms"] = [f"{value:.1f}" for value in cells["ms"][names]]
            columns[f"{variant}, share"] = [f"{value:.0%}" for value in cells["ms"][names] / cells["ms"]["whole"]]
            least, rate = cells.loc["whole", ["floor_ms", "matrix_gflop_per_second"]]
            if not pd.isna(least):
                sentences.append(f"in {variant} {least:.1f} ms, at {rate:.0f} GFLOP/s of matrix products")
        floor = f"\n\nFloor, all operations at the measured rate: {'; '.join(sentences)}." if sentences else ""
        return f"{markdown(columns)}{floor}"

    return per_device(frame, one)


@table
def inference_start(frame: pd.DataFrame) -> str:
    """Seconds and memory of whole processes."""

    def one(rows: pd.DataFrame) -> str:
        columns = crossed(
            rows,
            "method",
            "images",
            lambda part: spread(part["seconds"]),
            lambda count, _: f"s, {count} image{'' if count == 1 else 's'}",
        )
        memory = rows.groupby("method", sort=False)["peak_memory_bytes"].median() / 1e6
        columns["peak memory, MB"] = [f"{value:.0f}" for value in memory]
        return (
            f"{markdown({'program': columns.pop('method'), **columns})}\n\nWhole processes, from start to end; medians "
            f"of {rows['round'].nunique()}, and in parentheses the smallest and the largest."
        )

    return per_device(frame, one)


@table
def import_torch(rows: pd.DataFrame) -> str:
    """What the plugin adds to ``import torch``."""
    return (
        f"{rows['plugin_ms'].median():.2f} ms of the {rows['import_torch_ms'].median():.0f} ms that `import torch` "
        f"takes (medians of {len(rows)} fresh processes)."
    )


@table
def licences(rows: pd.DataFrame) -> str:
    """Licences of the packages that pyproject.toml names."""
    named = rows[~rows["for"].str.startswith("others")]
    return markdown({name.replace("_", " "): named[name] for name in ("package", "for", "licence", "said_by")})


@partial(table, file="licences")
def licences_of_others(rows: pd.DataFrame) -> str:
    """Packages that these need, by their licence."""
    others = rows[rows["for"] == "others"].groupby("licence")["package"].agg(", ".join)
    return markdown({"licence": list(others.index), "packages": list(others)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fill the tables of markdown files from results/ and docstrings.")
    parser.add_argument("paths", type=Path, nargs="+", help="markdown files, and folders of them")
    parser.add_argument("--check", action="store_true", help="only compare; fail if a file is not up to date")
    given = parser.parse_args()
    main(given.paths, given.check)
