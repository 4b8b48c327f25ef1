# SPDX-License-Identifier: Apache-2.0
"""``anomalib-uniad predict``. OpenVINO, numpy and Pillow are imported when it runs."""

import io
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Literal

from anomalib_uniad.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from .images import ImageFile
    from .inspector import Judge
    from .predictor import Output
    from .writer import Writer


def predict(
    model: Path,
    images: list[Path],
    output: Path = Path("predictions"),
    category: str = "",
    thresholds: Path | None = None,
    heatmaps: bool = True,
    minimum_area: int = 0,
    regions_of_interest: Path | None = None,
    overwrite: bool = False,
    device: str = "CPU",
    precision_hint: Literal["f32", "bf16", "auto"] = "f32",
    threads: int = 0,
    watch: bool = False,
    workers: int = 0,
    resume: bool = False,
) -> None:
    """Predict images with an exported model: a table of scores and decisions, and a heatmap and a mask for each image.

    Images that cannot be read are reported and have their error in the table; the others are predicted, and the
    exit code is 1. Needs neither torch nor anomalib. With `--watch true`, it goes on with images as they arrive, until
    Ctrl-C or SIGTERM, which end it with exit code 0.

    Args:
        model: model.xml (with model.bin beside it) or model.onnx, as `anomalib export` writes them.
        images: Folders, searched at all depths, and images.
        output: Folder for predictions.csv, predictions.jsonl with the defective regions, heatmaps and masks.
        category: Decide by the threshold of this category, which the model must have; "auto" takes the last folder in
            an image's path that has the name of one. Default: as the model does, which may recognise products itself.
        thresholds: thresholds.yaml by which to decide, for example of `anomalib-uniad review`. Default: as the model
            has learned.
        heatmaps: Write `heatmaps/<path of the image>.jpg`, the image with its anomaly map over it, and
            `masks/<path of the image>.png`.
        minimum_area: Defective regions of fewer pixels are left out of masks and regions.
        regions_of_interest: regions.yaml with the part of each product's images that counts: scores, decisions, masks
            and regions are of that part alone. Default: all of each image.
        overwrite: Replace files that are there; heatmaps of images that are not predicted now stay.
        device: OpenVINO's name of the device, for example CPU, GPU or AUTO.
        precision_hint: Precision of the computation. "f32" gives the numbers of torch; "bf16" is faster on processors
            that have it and shifts scores slightly; "auto" is OpenVINO's choice, which is bf16 on such processors.
            Models in INT8 stay in INT8.
        threads: Threads for the model on the CPU; 0 takes all cores.
        watch: Judge what is in the folders, then each image that arrives, once: a table of the same model and
            thresholds is gone on with.
        workers: Processes on Ray Data with a model each, which share the cores; with RAY_ADDRESS in the environment,
            on all machines of that cluster, which need the same folders. The table is that of one process. 0 is no
            other process.
        resume: Go on with the table that is there, if it is of this model and these thresholds: images that have a row
            are not judged again, unless it has an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be in the terminal's encoding
    try:
        with _stopped_by_signals() if watch else nullcontext() as stop:
            failed = _predict(
                model,
                images,
                output,
                category,
                thresholds,
                heatmaps,
                minimum_area,
                regions_of_interest,
                overwrite,
                device,
                precision_hint,
                threads,
                stop,
                workers,
                resume,
            )
    except KeyboardInterrupt:
        _say("Interrupted; the rows of the images until then are in the table.", stderr=True)
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise MissingPackageError("openvino is not installed: pip install openvino") from error
    if failed:
        sys.exit(1)


def _predict(
    model: Path,
    images: list[Path],
    output: Path,
    category: str,
    thresholds: Path | None,
    heatmaps: bool,
    minimum_area: int,
    regions_of_interest: Path | None,
    overwrite: bool,
    device: str,
    precision_hint: Literal["f32", "bf16", "auto"],
    threads: int,
    stop: Event | None,
    workers: int,
    resume: bool,
) -> int:
    """Predict, with ``stop`` what arrives until then; return the number of images without a result."""
    if workers:
        from .workers import Task, check_workers, outputs_of_workers

        check_workers(workers, stop is not None)
    from .compiled import compile_file, computes_in_bf16
    from .images import HEATMAPS, MASKS, find_images
    from .inspector import Judge
    from .predictor import Predictor
    from .watching import arrivals, check_folders
    from .writer import Writer

    files: list[ImageFile] = []
    if stop is None:
        files = find_images(images, leave_out=[output / HEATMAPS, output / MASKS])  # of an earlier run
    else:
        check_folders(images)
    compiled = compile_file(model, device, precision_hint, threads)
    if precision_hint == "bf16" and not computes_in_bf16(compiled):
        _say(f"{device} cannot compute in bf16 here; the model runs in f32.", stderr=True)
    if heatmaps and "anomaly_map" not in compiled.outputs:
        raise InputError(f"{model} puts out no anomaly map: leave the heatmaps out with --heatmaps false.")
    judge = Judge(compiled, minimum_area, category, thresholds, regions_of_interest)
    judge.decider.check([file.path for file in files])
    with Writer(output, files, heatmaps, overwrite, judge.origin, go_on=resume or stop is not None) as writer:
        files = [file for file in files if str(file.path.absolute()) not in writer.judged]
        if workers:
            arguments = (minimum_area, category, thresholds, regions_of_interest)
            task = Task(Path.cwd(), model, device, precision_hint, threads, arguments, heatmaps, judge.origin)
            failed = _run(outputs_of_workers(task, files, workers), writer, len(files))["failed"]
        else:
            batches: Iterable[Sequence[ImageFile]] = [files]
            if stop is not None:
                _say(f"Watching {', '.join(map(str, images))}; Ctrl-C ends it.")
                batches = arrivals(images, writer.judged, stop, compiled.metadata.value_range)
            predictor = Predictor(compiled)
            finish = partial(_finish, judge=judge, writer=writer if heatmaps else None)
            outputs = (output for files in batches for output in predictor.predict(files, finish))
            counts = _run(outputs, writer, len(files), stop)
            failed = counts["failed"] if stop is None else 0
    folders = f", the folders {output / HEATMAPS} and {output / MASKS}" if heatmaps else ""
    _say(f"Wrote {writer.table} and {writer.regions.name}{folders}.")
    return failed


def _finish(output: "Output", judge: "Judge", writer: "Writer | None") -> None:
    """Judge an image and write its pictures, in the thread that has it."""
    judge.finish(output)
    if output.inspection is None or output.image is None:
        return
    if writer is not None:
        with _pictures_may_fail(output):
            writer.pictures(output.file, output.image, output.inspection)
    output.inspection = output.inspection.without_maps()  # until its row is written, it waits in memory


@contextmanager
def _pictures_may_fail(output: "Output") -> Iterator[None]:
    try:
        yield
    except OSError as error:  # the prediction goes on
        output.error = f"The heatmap of {output.file.path} cannot be written: {str(error).rstrip('.')}."


def _run(
    found: "Generator[Output, None, None]", writer: "Writer", total: int | None = None, stop: Event | None = None
) -> Counter[str]:
    """Write what is found; images that are watched until they are stopped, and disappear, are left out."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counts: Counter[str] = Counter()
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("Predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    disable = not console.is_terminal or stop is not None
    # Closed at once when it ends early: until then, threads go on with images that nobody asks for.
    with Progress(*columns, console=console, transient=True, disable=disable) as progress, closing(found) as outputs:
        for output in progress.track(outputs, total=total):
            if stop is not None and output.inspection is None and not os.path.lexists(output.file.path):
                continue
            if output.pictures:
                with _pictures_may_fail(output):
                    writer.save(output.file, output.pictures)
            writer.row(output.file, output.inspection, output.error)
            counts["images"] += 1
            if output.error:
                counts["failed"] += 1
                progress.console.print(output.error, soft_wrap=True, markup=False)
            elif output.inspection is not None:
                counts[output.inspection.decision] += 1
            if stop is not None and stop.is_set():
                break
    seconds = time.perf_counter() - start
    words = (
        f"{counts['anomalous']} anomalous, {counts['normal']} normal",
        f"{counts['unknown']} of unknown products" if counts["unknown"] else "",
        f"{counts['undecided']} without a decision, because the model has no threshold" if counts["undecided"] else "",
        f"{counts['failed']} failed" if counts["failed"] else "",
    )
    rate = f" {counts['images'] / seconds:.1f} images per second." if stop is None else " Stopped."
    _say(f"{counts['images']} images: {', '.join(filter(None, words))}.{rate}")
    return counts


@contextmanager
def _stopped_by_signals() -> Iterator[Event]:
    """Give out what Ctrl-C and SIGTERM set, instead of an interruption."""
    stop = Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str, stderr: bool = False) -> None:
    from rich.console import Console

    Console(highlight=False, stderr=stderr).print(line, soft_wrap=True, markup=False)
