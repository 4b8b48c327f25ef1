# SPDX-License-Identifier: Apache-2.0
"""One comparison, from the check of what was given to the files."""

import shlex
import sys
import tempfile
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
from anomalib_uniad.metrics.table import versions

from .comparison import Differences, Quality, Range, category_changes, changes, number_of_images
from .inputs import check, export_files, load, make_datamodule, normalises
from .predictors import Kind, OpenVINOPredictor, Predictor, TorchPredictor, processor
from .tables import render
from .timing import latencies, throughput

KINDS: tuple[Kind, ...] = ("raw", "normalised")


def run(
    ckpt: Path,
    models: Sequence[Path],
    data: Path | None,
    data_class: str,
    output: Path,
    export: bool,
    timed_images: int,
    overwrite: bool,
) -> pd.DataFrame:
    """Compare; see :func:`anomalib_uniad.parity.parity` for the arguments.

    Returns:
        pd.DataFrame: The rows of ``parity.csv``.

    Raises:
        OSError: If a file is not there, or is there already.
        ValueError: If a file or the data set is not what it should be.
    """
    check(models, data, output, export, timed_images, overwrite)
    model = load(ckpt)
    datamodule = make_datamodule(data_class, data)
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        predictors = _open(models, normalises(model), model.model.image_size)
        if export:  # after the given files are known to be usable
            console.print("Exporting ...")
            exported = export_files(model, Path(folder), datamodule)
            predictors += _open(exported, normalises(model), model.model.image_size)
        predictors.insert(0, TorchPredictor(model, ckpt))
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            rows = _compare(predictors, model, datamodule, timed_images, progress)
    frame = pd.DataFrame(rows).assign(
        device=f"{processor()}, {torch.get_num_threads()} threads",
        versions=versions(),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )
    output.mkdir(parents=True, exist_ok=True)
    frame.to_csv(output / "parity.csv", index=False)
    text = render(frame)
    (output / "parity.md").write_text(f"{text}\n", encoding="utf-8")
    shown = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    shown.print(Markdown(text))
    shown.print(f"Wrote {output / 'parity.csv'} and {output / 'parity.md'}.", soft_wrap=True, markup=False)
    return frame


def _open(files: Sequence[Path], normalised: bool, image_size: tuple[int, int]) -> list[Predictor]:
    """Each file in f32, and in the device's default precision where that is another one."""
    predictors: list[Predictor] = []
    for file in files:
        if file.suffix == ".pt":
            from anomalib.deploy import TorchInferencer

            predictors.append(TorchPredictor(TorchInferencer(file, device="cpu").model, file))
            continue
        exact = OpenVINOPredictor(file, normalised)
        if exact.image_size not in {None, image_size}:
            msg = f"{file} is of images of {exact.image_size} pixels, the checkpoint of {image_size}."
            raise ValueError(msg)
        default = OpenVINOPredictor(file, normalised, computed_in="")
        predictors += [exact] if default.computed_in == exact.computed_in else [exact, default]
    return predictors


def _compare(
    predictors: Sequence[Predictor], model: Any, datamodule: Any, timed_images: int, progress: Progress
) -> list[dict[str, Any]]:
    torch_model, others = predictors[0], predictors[1:]
    paths = datamodule.test_data.samples["image_path"]
    categories = categories_of(list(paths), datamodule)
    expected = number_of_images(categories)
    kinds = [kind for kind in KINDS if kind == "raw" or any(other.kind == kind for other in others)]
    references = {kind: Quality(datamodule, expected) for kind in kinds}
    qualities = [Quality(datamodule, expected) for _ in others]
    differences = [Differences() for _ in others]
    ranges = {(kind, what): Range() for kind in kinds for what in ("map", "score")}
    images: list[np.ndarray] = []
    task = progress.add_task("Comparing", total=len(paths))
    for batch in datamodule.test_dataloader():
        image = batch.image.numpy()
        if len(images) < timed_images:
            images.append(image)
        if batch.gt_mask is not None:
            _, batch.gt_mask = model.pre_processor.transform(batch.image, batch.gt_mask)
        said = torch_model.predict(image)
        for kind in kinds:
            references[kind].update(batch, said.scores[kind], said.maps[kind])
            ranges[kind, "map"].update(said.maps[kind])
            ranges[kind, "score"].update(said.scores[kind])
        for other, difference, quality in zip(others, differences, qualities, strict=True):
            own = other.predict(image)
            try:
                difference.update(own, said, other.kind)
            except ValueError as error:
                msg = f"{other.name}: {error}"
                raise ValueError(msg) from error
            quality.update(batch, own.scores[other.kind], own.maps[other.kind])
        progress.advance(task)
    reference = {kind: quality.compute() for kind, quality in references.items()}
    rows: list[dict[str, Any]] = [{**_columns(torch_model), **reference["raw"]}]
    for other, difference, quality in zip(others, differences, qualities, strict=True):
        found = difference.columns(ranges[other.kind, "map"], ranges[other.kind, "score"])
        found |= changes(quality.compute(), reference[other.kind]) | category_changes(quality, references[other.kind])
        rows.append({**_columns(other), **found})
    task = progress.add_task("Measuring", total=len(predictors) * (len(images) + 1))
    times = latencies(predictors, images, lambda: progress.advance(task))
    for row, predictor, seconds in zip(rows, predictors, times, strict=True):
        row |= {"latency_ms": 1000 * seconds, "images_per_second": throughput(predictor, images)}
        row |= {"images": len(paths), "categories": len(expected)}
        progress.advance(task)
    return rows


def _columns(predictor: Predictor) -> dict[str, Any]:
    return {
        "model": predictor.name,
        "precision": predictor.precision,
        "computed_in": predictor.computed_in,
        "compared": predictor.kind,
        "size_bytes": predictor.size_bytes,
    }
