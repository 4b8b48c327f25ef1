# SPDX-License-Identifier: Apache-2.0
"""Compares exported files with their checkpoint, image by image, and writes the results."""

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress

from anomalib_uniad.category import categories_of
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import plain_table, replacing
from anomalib_uniad.metric_names import heading
from anomalib_uniad.metrics.run_files import command_line, to_markdown, versions

from .differences import METRICS, Quality, difference, difference_columns
from .inputs import check, export_files, load, load_pickled, make_datamodule, normalises
from .models import ExportedModel, Kind, Model, TorchModel, pixels_of, processor
from .timing import latencies, throughput


def compare_files(
    ckpt: Path,
    models: Sequence[Path],
    data: Path | None,
    data_class: str,
    output: Path,
    export: bool,
    timed_images: int,
    overwrite: bool,
) -> pd.DataFrame:
    """Compare exported files with their checkpoint; write ``parity.csv`` and ``parity.md``, and print the tables.

    Args:
        ckpt (Path): See ``anomalib-uniad parity --help`` for this and the others.
        models (Sequence[Path]): Exported files.
        data (Path | None): Folder of the data set.
        data_class (str): Name of its datamodule.
        output (Path): Folder of the results.
        export (bool): Export the checkpoint and compare these files as well.
        timed_images (int): Images to measure with.
        overwrite (bool): Replace results that are there.

    Returns:
        pd.DataFrame: The rows of ``parity.csv``; the first one is torch.

    Raises:
        OSError: If a file is not there, or is there already.
        ValueError: If a file or the data set is not what it should be.
    """
    check(models, data, output, export, timed_images, overwrite)
    model = load(ckpt)
    datamodule = make_datamodule(data_class, data, model.value_range)
    console = Console(stderr=True, highlight=False)
    kind = normalises(model), model.model.image_size, model.value_range
    with tempfile.TemporaryDirectory() as folder:
        others = _open(models, *kind)
        if export:  # after the given files are known to be usable
            console.print("Exporting ...")
            exported = export_files(model, Path(folder), datamodule)
            others += _open(exported, *kind)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            rows = _compare(model, TorchModel(model, ckpt), others, datamodule, timed_images, progress)
    frame = pd.DataFrame(rows).assign(
        device=f"{processor()}, {torch.get_num_threads()} threads",
        versions=versions(),
        command=command_line(),
    )
    text = to_text(frame)
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / "parity.csv", output / "parity.md", overwrite=overwrite) as (csv, markdown):
        plain_table(frame).to_csv(csv, index=False)
        markdown.write_text(f"{text}\n", encoding="utf-8")
    shown = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    shown.print(Markdown(text))
    shown.print(f"Wrote {output / 'parity.csv'} and {output / 'parity.md'}.", soft_wrap=True, markup=False)
    return frame


def to_text(frame: pd.DataFrame) -> str:
    """Render the rows of ``parity.csv`` as markdown: a table of differences and speed, and one of metrics."""
    first = frame.iloc[0]
    differences = pd.DataFrame(
        {
            "model": frame["model"],
            "precision": frame["precision"],
            "computed in": frame["computed_in"],
            "map, largest": _formatted(frame["map_difference_max"], ".1e"),
            "map, mean": _formatted(frame["map_difference_mean"], ".1e"),
            "score, largest": _formatted(frame["score_difference_max"], ".1e"),
            "flips": _formatted(frame["flipped_decisions"], ".0f"),
            "ms": _formatted(frame["latency_ms"], ".1f"),
            "images/s": _formatted(frame["images_per_second"], ".1f"),
            "MB": _formatted(frame["size_bytes"] / 1e6, ".1f"),
        }
    )
    metrics = pd.DataFrame({"model": frame["model"], "computed in": frame["computed_in"]})
    for name in METRICS:
        reference, others = frame[name].iloc[:1], frame[f"{name}_change"].iloc[1:]
        metrics[" ".join(heading(name))] = [*_formatted(reference, ".4f"), *_formatted(others, "+.4f")]
    parts = [
        f"{first['images']} test images of {first['categories']} categories, on {first['device']}. Differences of maps "
        "and scores are parts of their ranges in torch; flips are images whose decision is another one; ms is the "
        "median of one image after the other, images/s with parallel requests (torch: one after the other).",
        to_markdown(differences),
        "Means over the categories: of torch, and what the others have more.",
        to_markdown(metrics),
    ]
    normalised = ", ".join(frame["model"][frame["compared"] != "raw"])
    if normalised:
        parts.append(
            f"Of {normalised}, the raw maps and scores cannot be had: compared are normalised ones, cut to "
            "[0, 1], on both sides, and changes of metrics are to torch's metrics of those."
        )
    return "\n\n".join(parts)


def _formatted(values: pd.Series, form: str) -> list[str]:
    return ["" if pd.isna(value) else f"{value:{form}}" for value in values]


def _open(
    files: Sequence[Path],
    normalised: bool,
    image_size: tuple[int, int],
    value_range: tuple[float, float] | None,
) -> list[Model]:
    """Each file in f32, and in the device's default precision where that is another one."""
    models: list[Model] = []
    for file in files:
        if file.suffix == ".pt":
            models.append(TorchModel(load_pickled(file), file))
            continue
        in_f32 = ExportedModel(file, normalised)
        if in_f32.image_size not in {None, image_size}:
            raise InputError(f"{file} is of images of {in_f32.image_size} pixels, the checkpoint of {image_size}.")
        if in_f32.value_range != value_range:
            raise InputError(f"{file} has value_range {in_f32.value_range}, the checkpoint {value_range}.")
        default = ExportedModel(file, normalised, "auto")
        models += [in_f32] if default.computed_in == in_f32.computed_in else [in_f32, default]
    return models


def _compare(
    model: Any, torch_model: TorchModel, others: Sequence[Model], datamodule: Any, timed_images: int, progress: Progress
) -> list[dict[str, Any]]:
    """Rows of the torch model and of the others."""
    paths = list(datamodule.test_data.samples["image_path"])
    expected = Counter(categories_of(paths, datamodule))
    kinds: list[Kind] = ["raw", "normalised"] if any(other.kind == "normalised" for other in others) else ["raw"]
    references = {kind: Quality(datamodule, expected) for kind in kinds}
    qualities = [Quality(datamodule, expected) for _ in others]
    differences: list[list[Any]] = [[] for _ in others]  # of each model and image
    images: list[np.ndarray] = []
    task = progress.add_task("Comparing", total=len(paths))
    for batch in datamodule.test_dataloader():
        image = pixels_of(batch, rounded=model.value_range is None)
        if len(images) < timed_images:
            images.append(image)
        if batch.gt_mask is not None:
            _, batch.gt_mask = model.pre_processor.transform(batch.image, batch.gt_mask)
        reference = torch_model.predict(image)
        for kind in kinds:
            references[kind].update(batch, reference.scores[kind], reference.maps[kind])
        for other, quality, found in zip(others, qualities, differences, strict=True):
            result = other.predict(image)
            try:
                found.append(difference(result, reference, other.kind))
            except ValueError as error:
                raise InputError(f"{other.name}: {error}") from error
            quality.update(batch, result.scores[other.kind], result.maps[other.kind])
        progress.advance(task)
    rows: list[dict[str, Any]] = [{**_about(torch_model), **references["raw"].compute()}]
    for other, quality, found in zip(others, qualities, differences, strict=True):
        expected_quality = references[other.kind]
        columns = difference_columns(found, expected_quality) | quality.changes(expected_quality)
        rows.append(_about(other) | columns)
    compared = [torch_model, *others]
    task = progress.add_task("Measuring", total=len(compared) * (len(images) + 1))
    times = latencies(compared, images, lambda: progress.advance(task))
    for row, timed, seconds in zip(rows, compared, times, strict=True):
        row |= {"latency_ms": 1000 * seconds, "images_per_second": throughput(timed, images)}
        row |= {"images": len(paths), "categories": len(expected)}
        progress.advance(task)
    return rows


def _about(model: Model) -> dict[str, Any]:
    return {
        "model": model.name,
        "precision": model.precision,
        "computed_in": model.computed_in,
        "compared": model.kind,
        "size_bytes": model.size_bytes,
    }
