# SPDX-License-Identifier: Apache-2.0
"""Checkpoint, exported files and data set of a comparison, checked before the work."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import anomalib.data
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType, TorchInferencer

import anomalib_uniad.data
from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import check_output
from anomalib_uniad.image_files import check_samples
from anomalib_uniad.model import UniAD

SUFFIXES = (".xml", ".onnx", ".pt")
# Name of an exported file -> anomalib's compression.
EXPORTED: dict[str, CompressionType | None] = {
    "f32": None,
    "f16": CompressionType.FP16,
    "int8": CompressionType.INT8,
    "int8_ptq": CompressionType.INT8_PTQ,
}


def check(
    models: Sequence[Path], data: Path | None, output: Path, export: bool, timed_images: int, overwrite: bool
) -> None:
    """Refuse arguments that cannot work, before anything is loaded; see :func:`~.compare.compare_files` for them."""
    if not models and not export:
        msg = "There is nothing to compare: give exported files, or --export true to export the checkpoint first."
        raise InputError(msg)
    for file in models:
        if file.suffix not in SUFFIXES:
            raise InputError(f"{file} is not an exported model: their names end in {', '.join(SUFFIXES)}.")
        if file.suffix == ".pt" and os.environ.get("TRUST_REMOTE_CODE", "0").lower() not in {"1", "true"}:
            raise InputError(
                f"{file} is pickled, and whoever reads it runs what is in it: set the environment variable "
                "TRUST_REMOTE_CODE=1, as for anomalib's TorchInferencer, if you trust the file, or leave it out."
            )
        weights = file.with_suffix(".bin")
        for path in (file, *([weights] if file.suffix == ".xml" else [])):
            if not path.is_file():
                raise MissingFileError(f"There is no file {path}.")
    check_at_least("timed_images", timed_images, 1)
    if data is None:
        raise InputError("The folder of the test images is missing: give it with --data FOLDER.")
    if not data.is_dir():
        raise MissingFileError(f"There is no folder {data}.")
    check_output(output, [output / "parity.csv", output / "parity.md"], overwrite)


def load(ckpt: Path) -> UniAD:
    """Load a checkpoint of UniAD."""
    return UniAD.load_from_checkpoint(ckpt, map_location="cpu").eval()


def load_pickled(file: Path) -> Any:
    """Load the torch module of a ``model.pt``.

    Raises:
        ValueError: If the file is damaged, or its classes are not those of the installed version.
    """
    try:
        return TorchInferencer(file, device="cpu").model
    except (AttributeError, ImportError) as error:  # classes that have moved since
        raise InputError(
            f"{file} was exported with another version of anomalib-uniad or anomalib ({error}): export it again from "
            "the checkpoint with `anomalib export --export_type torch`."
        ) from error
    except Exception as error:  # of torch, pickle and zipfile
        raise InputError(f"{file} is not a model that torch can read: {type(error).__name__}.") from error


def normalises(model: UniAD) -> bool:
    """Whether a model normalises its outputs, which its post-processor does after a validation."""
    post_processor: Any = model.post_processor
    return bool(getattr(post_processor, "enable_normalization", False) and post_processor.image_min.isfinite())


def make_datamodule(name: str, root: Path | None, value_range: tuple[float, float] | None = None) -> AnomalibDataModule:
    """Make a datamodule with the test images of a folder, one by one, read as the model's own.

    Nothing is downloaded to the folder.
    """
    cls: Any = getattr(anomalib_uniad.data, name, None) or getattr(anomalib.data, name, None)
    if not (inspect.isclass(cls) and issubclass(cls, AnomalibDataModule)):
        msg = f"data_class must be MultiCategory, MetaFile, CIFAR10 or a datamodule of anomalib, got {name!r}."
        raise InputError(msg)
    parameters = inspect.signature(cls).parameters
    needed = [key for key, value in parameters.items() if value.default is value.empty and key != "root"]
    if "root" not in parameters or needed:
        lacking = f"needs {', '.join(needed)} as well" if needed else "has no argument root"
        raise InputError(f"{name} {lacking}, so it cannot be made of a folder alone; give MultiCategory.")
    arguments: dict[str, Any] = {"root": root, "eval_batch_size": 1, "num_workers": 0}
    if value_range is not None and "value_range" in parameters:
        arguments["value_range"] = value_range
    if issubclass(cls, anomalib_uniad.data.MultiCategory):
        arguments["val_split_mode"] = "same_as_test"  # of own folders, it would set some of the test images aside
    datamodule = cls(**arguments)
    try:
        datamodule.setup()  # without prepare_data, which would download a public data set
    except RuntimeError as error:  # what some of anomalib's readers raise
        raise InputError(f"{name} cannot read {root}: {error}") from error
    if not len(datamodule.test_data):
        raise InputError(f"{name} finds no test images in {root}.")
    check_samples(datamodule, whole=False)
    return cast("AnomalibDataModule", datamodule)


def export_files(model: UniAD, folder: Path, datamodule: AnomalibDataModule) -> list[Path]:
    """Export a model in all precisions; INT8 is calibrated on training images."""
    # INT8_PTQ first, which is most likely to be refused.
    files = {
        name: model.to_openvino(folder, name, compression_type=EXPORTED[name], datamodule=datamodule)
        for name in reversed(EXPORTED)
    }
    return [files[name] for name in EXPORTED]
