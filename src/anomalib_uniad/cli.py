# SPDX-License-Identifier: Apache-2.0
"""Console command ``anomalib-uniad``: what anomalib's own command has no place for.

Heavy packages are imported by the subcommands that need them.
"""

import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from anomalib_uniad.errors import InputError, UserError
from anomalib_uniad.files import check_output
from anomalib_uniad.inference import predict  # light: the rest is imported when it runs
from anomalib_uniad.messages import wants_traceback
from anomalib_uniad.serve import serve


def cache_ls(directory: Path | None = None) -> None:
    """List the feature caches on this machine.

    A new cache takes the place of those that were used longest ago, if all have more than 20 GB or the disk is full.
    The environment variable ANOMALIB_UNIAD_CACHE_GB sets another limit.

    Args:
        directory: Where they are; default: anomalib-uniad/features in $XDG_CACHE_HOME or ~/.cache.
    """
    from rich.table import Table
    from rich.text import Text

    from anomalib_uniad.training.feature_store import FeatureStore

    store = FeatureStore(directory)
    entries, unfinished = store.entries(), store.unfinished()
    if entries:
        table = Table(title=f"Feature caches in {store.directory}")
        for name in ("key", "dataset", "backbone", "images", "size", "last used"):
            table.add_column(name, justify="right" if name in {"images", "size"} else "left", overflow="fold")
        for entry in entries:
            dtype = entry.meta.get("arrays", {}).get("features", {}).get("dtype", "")
            row = (
                entry.key[:8],  # enough for `clear --key`, and the table fits into 80 columns
                str(entry.meta.get("dataset", "damaged")),
                str(entry.meta.get("backbone", "")),
                f"{entry.meta.get('images', '')} {dtype}".strip(),
                _megabytes(entry.size),
                datetime.fromtimestamp(entry.last_used).astimezone().strftime("%Y-%m-%d %H:%M"),
            )
            table.add_row(*map(Text, row))  # not plain strings: names in square brackets would be markup
        table.add_section()
        table.add_row("", f"{len(entries)} in total", "", "", _megabytes(sum(entry.size for entry in entries)))
        _show(table)
        _show(f"A new one deletes those that were used longest ago, if all are more than {_megabytes(store.limit)}.")
    else:
        _show(f"There are no feature caches in {store.directory}.")
    if unfinished:
        _show(f"{len(unfinished)} unfinished, being built or left by a build that was killed.")


def cache_clear(directory: Path | None = None, key: str = "") -> None:
    """Delete feature caches, and what builds that were killed have left. Other files stay.

    Args:
        directory: Where they are; default: anomalib-uniad/features in $XDG_CACHE_HOME or ~/.cache.
        key: Only the caches whose key begins so; default: all.
    """
    from anomalib_uniad.training.feature_store import FeatureStore

    store = FeatureStore(directory)
    deleted, freed, busy = store.clear(key)
    for entry in deleted:
        _show(f"Deleted {entry.key} ({entry.meta.get('dataset', 'damaged')}, {_megabytes(entry.size)}).")
    for name in busy:
        _show(f"Left {name}: a training is building it now.")
    if not deleted and not busy and not freed:
        wanted = f" whose key begins with {key!r}" if key else ""
        _show(f"There are no feature caches{wanted} in {store.directory}.")
    else:
        _show(f"Freed {_megabytes(freed)} in {store.directory}.")


def parity(
    ckpt: Path,
    models: list[Path],
    data: Path | None = None,
    data_class: str = "MultiCategory",
    output: Path = Path("parity"),
    export: bool = False,
    timed_images: int = 20,
    overwrite: bool = False,
) -> None:
    """Compare exported files with the checkpoint that they are from, on the test images of a data set.

    Of each file: differences of anomaly map and score, as parts of their ranges in torch, changes of the metrics,
    decisions that flip, latency, throughput and size. All are computed in f32, and once more in the device's default
    precision where that is another one. Writes parity.csv and parity.md.

    Args:
        ckpt: Lightning checkpoint of UniAD.
        models: Exported files: model.xml, model.onnx or model.pt.
        data: Folder of the data set; by default in the layout of MVTec AD, one folder per category.
        data_class: Datamodule that reads it: MultiCategory, MetaFile, CIFAR10 or one of anomalib's.
        output: Folder of the results.
        export: Export the checkpoint to OpenVINO in f32, f16, INT8 weights and INT8 (post-training quantisation, on
            training images), to a temporary folder, and compare these as well.
        timed_images: Images with which latency and throughput are measured.
        overwrite: Replace results that are there.
    """
    from anomalib_uniad.parity.compare import compare_files

    compare_files(ckpt, models, data, data_class, output, export, timed_images, overwrite)


def report(
    runs: list[Path],
    output: Path = Path("report"),
    names: list[str] | None = None,
    metrics: list[str] | None = None,
    heatmaps: int = 2,
    failures: int = 3,
    published: Path | None = None,
    overwrite: bool = False,
    images: Path | None = None,
) -> None:
    """Lay the results of several runs side by side, as report.md, report.csv and one page report.html.

    Of the folder of a benchmark, the tables and pictures of all its methods.

    Args:
        runs: Folders of runs, such as results/UniAD/MVTecAD/latest, or their metrics.json or metrics.csv. In a folder,
            the newest one is taken; if there is none, the newest one of its sub-folders. Or one folder of a benchmark.
        output: Folder of the report; made if it is not there.
        names: What the runs are called, such as '[A,B]', one name for each; default: their models.
        metrics: Which metrics, in this order, such as '[image_AUROC,pixel_AUPRO]'; default: all.
        heatmaps: How many heatmaps per category, of images that all runs have, defective ones first.
        failures: How many false alarms per category, and missed defects, those farthest on the wrong side of the
            threshold; each beside the good training image that looks most like it, if the run is UniAD's and its images
            are there.
        published: Of a benchmark: csv file of published numbers to put beside, such as configs/benchmark/published.csv.
        overwrite: Replace reports that are there.
        images: Folder of the images, to show those that have no heatmap; default: only those in the folders of the runs
            and in the working directory are read, whatever the tables name.
    """
    from anomalib_uniad.report.benchmark import is_benchmark

    if any(map(is_benchmark, runs)):
        from anomalib_uniad.report.benchmark_report import write_benchmark_report

        if len(runs) > 1 or names is not None:
            raise InputError(f"{next(filter(is_benchmark, runs))} is a benchmark: report it alone, and without names.")
        files = write_benchmark_report(runs[0], output, metrics, overwrite, published)
    elif published is not None:
        raise InputError("Published numbers are put beside those of a benchmark: give its folder.")
    else:
        from anomalib_uniad.report.text import show
        from anomalib_uniad.report.write import write_report

        comparison, files = write_report(runs, output, names, metrics, heatmaps, failures, overwrite, images)
        show(comparison)
    for file in files:
        _show(f"Wrote {file}.")


def review(
    source: Path,
    output: Path = Path("review.html"),
    labels: Path | None = None,
    thresholds: Path | None = None,
    pictures: int = 200,
    overwrite: bool = False,
    images: Path | None = None,
) -> None:
    """Make a page in which thresholds are moved and images labelled, of the predictions of a run or of `predict`.

    One file that works without a network: scores and pictures of each product, what a threshold would call wrong, and
    buttons that save thresholds.yaml and labels.csv.

    Args:
        source: Folder of a run or prediction, or its predictions.csv; in a folder, the newest one is taken, and if
            there is none, the newest one of its sub-folders.
        output: The page.
        labels: labels.csv of an earlier review; its labels count more than those of the run.
        thresholds: thresholds.yaml by which was predicted, if one was: what the page does not show of it, such as
            thresholds of pixels, is in the file that the page saves as well.
        pictures: Pictures of each product, of the images nearest to its threshold; all images are counted.
        overwrite: Replace a page that is there.
        images: Folder of the images, to show those that have no heatmap; default: only those in the folder of the table
            and in the working directory are read, whatever the table names.
    """
    from anomalib_uniad.review.page import write_page

    table = write_page(source, output, labels, thresholds, pictures, overwrite, images)
    left = f" ({len(table.left_out)} are not counted: see the end of the page)" if table.left_out else ""
    count = sum(len(group.images) for group in table.groups)
    _show(f"Wrote {output} ({_megabytes(output.stat().st_size)}): {count} images of {table.file}{left}.")


def recalibrate(
    model: Path,
    images: list[Path],
    labels: Path | None = None,
    thresholds: Path | None = None,
    false_alarm_rate: float = 0.01,
    output: Path = Path("thresholds.yaml"),
    overwrite: bool = False,
    device: str = "CPU",
) -> None:
    """Find new thresholds of an exported model from new labelled images, without training: thresholds.yaml.

    `predict --thresholds` decides by them. The model recognises the product, or it is the last folder with the name of
    a category of the model. From good images alone, a threshold is that which a further good image exceeds with the
    given probability; with defective ones, it makes the fewest mistakes. With too few images of a product, its
    threshold stays.

    Args:
        model: model.xml (with model.bin beside it) or model.onnx, as `anomalib export` writes them.
        images: Folders, searched at all depths, and images. Folders called good or defective, or something as usual,
            are the labels; images without a label are left out.
        labels: labels.csv of `anomalib-uniad review`; its labels count more than names of folders.
        thresholds: thresholds.yaml by which was decided so far; what is not found anew stays as it is there.
        false_alarm_rate: Share of good images that may be called anomalous.
        output: The file.
        overwrite: Replace a file that is there.
        device: OpenVINO's name of the device, for example CPU, GPU or AUTO.
    """
    from anomalib_uniad.review.recalibrate import recalibrate as run

    run(model, images, labels, thresholds, false_alarm_rate, output, overwrite, device)
    _show(f"Wrote {output}. Decide by it: anomalib-uniad predict {model} IMAGES --thresholds {output}")


def benchmark(
    file: Path,
    output: Path | None = None,
    jobs: int | None = None,
    wait: bool = True,
    overwrite: bool = False,
) -> None:
    """Train and measure models x data x mode (unified, separate) x seeds, and go on where it was interrupted.

    Each training is a process in a folder of its own below the output. Finished ones are not repeated, one that fails
    is reported and the rest goes on, with exit code 1 in the end. The same command, started again on the same folder
    from other terminals or machines, takes part in the work. Writes results.csv and epochs.csv; `anomalib-uniad report`
    on the folder draws them.

    Args:
        file: Config with models, data, modes and seeds, such as configs/benchmark/mydata.yaml.
        output: Folder of the results; default: that of the config, else runs/benchmark/NAME of the config.
        jobs: Trainings at a time; default: one for each GPU or, without one, for every 4 cores. Cores are divided
            among them.
        wait: Wait for trainings that other processes are at, and take over those of processes that are killed.
        overwrite: Train again, in place of what is there, where the config or the images of a training have changed.
    """
    from anomalib_uniad.benchmark.command import benchmark as run

    if not run(file, output, jobs, wait, overwrite, _show):
        sys.exit(1)


def check(
    folder: Path,
    output: Path = Path("check"),
    overwrite: bool = False,
    features: bool = True,
    backbone: str = "tf_efficientnet_lite0",
    categories: list[str] | None = None,
    normal_dir: str | list[str] | None = None,
    abnormal_dir: str | list[str] | None = None,
    normal_test_dir: str | list[str] | None = None,
    mask_dir: str | list[str] | None = None,
    extensions: list[str] | None = None,
    value_range: list[float] | None = None,
) -> None:
    """Look at images before a model is trained on them: damaged files, copies, masks, images that stand out.

    Ends with exit code 1 if something would stop a training. Writes check.html, problems.csv and a picture of each
    product.

    Args:
        folder: Folder with a folder per product, or a config of `anomalib train`.
        output: Folder of the results.
        overwrite: Replace results that are there.
        features: Look at what images show as well: good ones unlike the others, a product that looks like two.
        backbone: What sees that, by its name in timm; the weights of the default need no download.
        categories: Names of the products, such as '[bottle,cable]'; default: all.
        normal_dir: Folder of good training images in each product, or several; default: recognised by its name.
        abnormal_dir: Folder of defective images in each product, or several.
        normal_test_dir: Folder of good test images in each product, or several.
        mask_dir: Folder of masks in each product, or several.
        extensions: Types of files that are read, such as '[.png]'; default: all that anomalib reads.
        value_range: Values that are black and white in images with more than 8 bits, such as '[0,4095]'.
    """
    arguments = {name: value for name, value in locals().items() if name not in _NOT_OF_LAYOUT}
    from anomalib_uniad.check import command as checking
    from anomalib_uniad.check.source import read_config, read_folder
    from anomalib_uniad.check.terminal import show

    if folder.suffix in {".yaml", ".yml"} and folder.is_file():
        if given := [name for name, value in arguments.items() if value is not None]:
            raise InputError(f"{', '.join(given)}: set it in {folder}, which is a config.")
        source = read_config(folder)
    else:
        source = read_folder(folder, **arguments)
    check_output(output, checking.output_files(output, [product.name for product in source.products]), overwrite)
    found = checking.inspect(source, backbone if features else None)
    show(found, checking.write(found, output))
    if found.stops:
        sys.exit(1)


def drift(
    predictions: list[Path],
    model: Path | None = None,
    reference: Path | None = None,
    output: Path = Path("drift"),
    window: int = 50,
    defects: float = 0.1,
    overwrite: bool = False,
) -> None:
    """Tell whether the scores of a production have moved: a lamp that ages, a lens out of focus, a camera that moved.

    Compares all images of each product, and its last ones, with the good images of the calibration, or of a reference.
    Ends with exit code 3 if something has moved, 0 if nothing has. Writes drift.csv and drift.png. Needs neither torch
    nor anomalib.

    Args:
        predictions: predictions.csv of `anomalib-uniad predict`, one or several in the order of time.
        model: The exported file, model.xml or model.onnx, that has predicted them.
        reference: predictions.csv of a good time, in the place of the calibration.
        output: Folder of the results.
        window: How many images the last ones are.
        defects: Largest usual share of defective images.
        overwrite: Replace results that are there.
    """
    from anomalib_uniad.drift.command import report_drift

    found = report_drift(predictions, model, reference, output, window, defects, overwrite)
    for sentence in found.sentences:
        _show(sentence)
    _show(f"Wrote {found.files[0]} and {found.files[1]}.")
    if found.drift:
        sys.exit(3)


def train_decoder(
    run: Path,
    output: Path | None = None,
    data: Path | None = None,
    data_class: str = "MultiCategory",
    steps: int = 1000,
    images: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Train a network that draws images from the features of a model, for `anomalib-uniad show`.

    It learns from normal training images alone, and only to look at: the model stays as it is. The same command goes on
    after an interruption.

    Args:
        run: Folder of a run of UniAD, such as results/UniAD/mydata/latest, or its checkpoint; or the folder of a
            benchmark, whose first training of UniAD counts.
        output: The file; default: decoder.pt in that folder.
        data: Folder of the images; default: those of the run.
        data_class: Datamodule that reads data: MultiCategory, MetaFile, CIFAR10 or one of anomalib's.
        steps: Steps of 16 images.
        images: As many training images are looked at, evenly of all categories, at least one of each.
        seed: Seed of weights and of the order of images.
        overwrite: Replace a decoder that is there.
    """
    from anomalib_uniad.visualization.train_decoder import train_decoder as train

    _show(f"Wrote {train(run, output, data, data_class, steps, images, seed, overwrite)}.")


def show(
    runs: list[Path],
    output: Path = Path("show"),
    images: list[Path] | None = None,
    count: int = 3,
    failures: bool = False,
    point: list[float] | None = None,
    queries: bool = False,
    decoder: Path | None = None,
    data: Path | None = None,
    data_class: str = "MultiCategory",
    overwrite: bool = False,
) -> None:
    """Draw what a model makes of images: what its features and its reconstruction look like, map and decision.

    A contact sheet for each category, and a picture of each image. `train-decoder` has to be run before.

    Args:
        runs: Folders of runs of UniAD, or their checkpoints, or the folder of a benchmark, which stands for all of its
            trainings of UniAD; of several, each shows the same images.
        output: Folder of the pictures.
        images: Test images, such as '[a.png,b.png]'; default: by the scores in predictions.csv of the first run.
        count: How many of the most anomalous images of each category, and of the least anomalous.
        failures: Instead, the false alarms and missed defects of each category that are farthest on the wrong side of
            the threshold, at most count of each, beside the good training image that looks most like them.
        point: Place in each image, such as '[120,80]', in pixels of its file from the left and the top: where its token
            looks is drawn too, for each attention and head of the first run.
        queries: Draw what the learned queries of the first run hold, too: queries.png.
        decoder: Decoder of the features; default: decoder.pt in the folder of each.
        data: Folder of the images; default: those of the first run.
        data_class: Datamodule that reads data: MultiCategory, MetaFile, CIFAR10 or one of anomalib's.
        overwrite: Replace pictures that are there.
    """
    from anomalib_uniad.visualization.show import show as draw

    files = draw(runs, output, images or (), count, failures, point, queries, decoder, data, data_class, overwrite)
    _show(f"Wrote {len(files)} pictures to {output}, the contact sheet of each category among them.")


def make_meta(
    folder: Path,
    output: Path | None = None,
    overwrite: bool = False,
    categories: list[str] | None = None,
    normal_dir: str | list[str] | None = None,
    abnormal_dir: str | list[str] | None = None,
    normal_test_dir: str | list[str] | None = None,
    mask_dir: str | list[str] | None = None,
    normal_split_ratio: float = 0.2,
    extensions: list[str] | None = None,
    seed: int = 0,
) -> None:
    """Write the meta files train.json and test.json of a folder of products, as MetaFile reads them.

    The folder is read as by MultiCategory, in any usual layout.

    Args:
        folder: Folder with a folder per product.
        output: Where to write them; default: the folder itself.
        overwrite: Replace files that are there.
        categories: Names of the products, such as '[bottle,cable]'; default: all.
        normal_dir: Folder of good training images in each product, or several; default: recognised by its name.
        abnormal_dir: Folder of defective images in each product, or several.
        normal_test_dir: Folder of good test images in each product, or several.
        mask_dir: Folder of masks in each product, or several.
        normal_split_ratio: Part of the good images that become test images of a product without good test images.
        extensions: Types of files that are read, such as '[.png]'; default: all that anomalib reads.
        seed: Seed of that draw.
    """
    given = {name: value for name, value in locals().items() if name not in {"folder", "output", "overwrite"}}
    from anomalib_uniad.data.make_meta import make_meta as write

    files, counts = write(folder, output, overwrite, **given)
    for file, count in zip(files, counts, strict=True):
        _show(f"Wrote {file}: {count} images.")


def import_checkpoint(
    checkpoint: Path,
    output: Path,
    overwrite: bool = False,
    backbone: str | None = None,
    layers: list[int] | list[str] | None = None,
    backbone_padding: Literal["static", "timm"] | None = None,
    backbone_padding_mode: Literal["zeros", "reflect"] | None = None,
    image_size: int | list[int] | None = None,
    feature_stride: int | None = None,
    num_heads: int | None = None,
    dropout: float | None = None,
    neighbor_size: int | list[int] | None = None,
    neighbor_mask: bool | list[bool] | None = None,
    jitter_scale: float | None = None,
    jitter_probability: float | None = None,
    image_score: Literal["max", "mean", "std"] | None = None,
    score_pool_size: int | None = None,
) -> None:
    """Turn a checkpoint of the authors' code (ckpt.pth.tar) into one for anomalib, with a config beside it.

    Sizes are read off the tensors; the rest is from the config in the file, else the paper's, and can be given here.
    Nothing of the file is executed.

    Args:
        checkpoint: The authors' file.
        output: The new checkpoint, .ckpt; the config of the model gets the same name with .yaml.
        overwrite: Replace them if they exist.
        backbone: The backbone's name in timm.
        layers: Which of timm's maps of the backbone.
        backbone_padding: Padding of the backbone; default: static, as in the authors' code.
        backbone_padding_mode: What it pads with; default: zeros.
        image_size: Height and width of the images, in pixels.
        feature_stride: Pixels per token.
        num_heads: Attention heads.
        dropout: Dropout, if it is trained further.
        neighbor_size: Height and width of the window that the neighbor mask hides, in tokens.
        neighbor_mask: Where neighbors are hidden: encoder, decoder's attention to the encoder, to the previous layer.
        jitter_scale: Strength of the feature jitter, if it is trained further.
        jitter_probability: Probability of the feature jitter, if it is trained further.
        image_score: Score of an image; default: max. The authors' configs for CIFAR-10 have mean.
        score_pool_size: Side of the average pool before the maximum; default: 16.
    """
    given = {name: value for name, value in locals().items() if name not in {"checkpoint", "output", "overwrite"}}
    from anomalib_uniad.import_checkpoint import import_checkpoint as write
    from anomalib_uniad.import_checkpoint import show

    official, config = write(checkpoint, output, overwrite, **given)
    show(official)
    _show(f"Wrote {output} and {config}. Use them together:")
    _show(f"  anomalib test --config {config} --data MultiCategory --data.root FOLDER --ckpt_path {output}")
    _show(f"  anomalib predict --config {config} --data IMAGES --ckpt_path {output}")
    _show(f"  anomalib export --config {config} --export_type openvino --ckpt_path {output}")
    _show(
        "The authors' file has no thresholds: scores and AUROC are right, but no image is called normal or anomalous "
        "until thresholds are learned from your images: see the documentation, page Thresholds."
    )


_NOT_OF_LAYOUT = {"folder", "output", "overwrite", "features", "backbone"}  # arguments of check

# Subcommands: names -> function, nested as deep as needed.
COMMANDS: dict[str, Any] = {
    "benchmark": benchmark,
    "cache": {
        "_help": "Features that trainings with feature_cache=disk have kept.",
        "ls": cache_ls,
        "clear": cache_clear,
    },
    "check": check,
    "drift": drift,
    "import-checkpoint": import_checkpoint,
    "make-meta": make_meta,
    "parity": parity,
    "predict": predict,
    "recalibrate": recalibrate,
    "report": report,
    "review": review,
    "serve": serve,
    "show": show,
    "train-decoder": train_decoder,
}

# Arguments that are several paths: name, how many, how the help calls one of them, and what it is.
_LISTS: dict[Any, tuple[str, str, str, str]] = {
    drift: ("predictions", "+", "PREDICTIONS", "predictions.csv of `anomalib-uniad predict`, in the order of time."),
    parity: ("models", "*", "MODEL", "Exported file: model.xml, model.onnx or model.pt."),
    predict: ("images", "+", "IMAGES", "Folder, searched at all depths, or image."),
    recalibrate: ("images", "+", "IMAGES", "Folder, searched at all depths, or image."),
    report: ("runs", "+", "RUN", "Folder of a run, or its metrics.json or metrics.csv; the newest one is taken."),
    show: ("runs", "+", "RUN", "Folder of a run of UniAD or of a benchmark, or a checkpoint."),
}


def main(args: list[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        args (list[str] | None): Arguments; ``None`` is those of the process. Defaults to ``None``.

    Examples:
        >>> main(["cache", "ls", "--directory", "/not/there"])
        There are no feature caches in /not/there.
    """
    try:
        _run(args)
    except (UserError, OSError, ModuleNotFoundError) as error:  # of the system: it names the file
        if wants_traceback():
            raise
        sys.stdout.flush()  # the sentence comes last
        sys.exit(f"error: {_sentence(error)}")
    except KeyboardInterrupt:
        if wants_traceback():
            raise
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)


def _run(args: list[str] | None) -> None:
    from jsonargparse import ArgumentParser, auto_cli

    class Parser(ArgumentParser):
        """Takes each path of a list as a word of its own; otherwise a list would be one word, ``[A,B]``."""

        def add_function_arguments(self, function: Any, *args: Any, **kwargs: Any) -> list[str]:
            if function not in _LISTS:
                return super().add_function_arguments(function, *args, **kwargs)
            name, number, metavar, about = _LISTS[function]
            names = super().add_function_arguments(function, *args, **{**kwargs, "skip": {name}})
            self.add_argument(name, nargs=number, type=Path, metavar=metavar, help=about)
            return [name, *names]

    description = "Tools of UniAD for anomalib."
    auto_cli(
        COMMANDS,
        args=args,
        prog="anomalib-uniad",
        description=description,
        version=version("anomalib-uniad"),
        parser_class=Parser,
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, UserError):
        package = (error.name or str(error)).partition(".")[0]
        return f"{package} is not installed: pip install 'anomalib-uniad[openvino]'"
    return str(error)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _show(what: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    # Lines as they are, so that paths can be copied; a table may be wider than a file or pipe seems to be.
    console.print(what, soft_wrap=isinstance(what, str), markup=False)
