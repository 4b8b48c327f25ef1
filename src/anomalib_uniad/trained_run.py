# SPDX-License-Identifier: Apache-2.0
"""A trained model and its images, from the folder of a run or from a checkpoint and a folder."""

import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anomalib.data
import torch
from anomalib.data import AnomalibDataModule
from torchvision.transforms.v2 import Normalize

from anomalib_uniad.category import categories_of, rows_of
from anomalib_uniad.errors import InputError, MissingFileError, UserError
from anomalib_uniad.files import read_yaml
from anomalib_uniad.image_files import check_samples
from anomalib_uniad.model import UniAD
from anomalib_uniad.parity.inputs import load, make_datamodule
from anomalib_uniad.transforms import steps_of

CHECKPOINT = Path("weights", "lightning", "model.ckpt")
CONFIG = "model.yaml"


def checkpoint_of(run: Path) -> Path:
    """The checkpoint of a run: of its folder, or the file itself.

    Args:
        run (Path): Folder of a run of UniAD, such as ``results/UniAD/mydata/latest``, or its checkpoint.

    Returns:
        Path: The checkpoint.

    Raises:
        FileNotFoundError: If it is not there.
    """
    file = run / CHECKPOINT if run.is_dir() else run
    if not file.is_file():
        what = f"{run} is not the folder of a run of UniAD: there is no {CHECKPOINT} in it" if run.is_dir() else ""
        raise MissingFileError(
            f"{what or f'There is no checkpoint {run}'}: give the folder of a run, such as "
            "results/UniAD/mydata/latest, or its checkpoint."
        )
    return file


def folder_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of; of one without a run, the folder that it is in."""
    file = checkpoint.absolute()
    return file.parents[2] if file.parts[-3:-1] == CHECKPOINT.parts[:-1] else file.parent


def open_run(
    checkpoint: Path, data: Path | None, data_class: str = "MultiCategory"
) -> tuple[UniAD, AnomalibDataModule]:
    """Load a checkpoint, and the images that it was trained and tested with.

    Args:
        checkpoint (Path): Lightning checkpoint of UniAD.
        data (Path | None): Folder of the images; ``None`` takes those of the run, by the ``model.yaml`` in its folder.
        data_class (str): Datamodule that reads the folder, as the run's did if it is the same: so that images that were
            tested stay among those. Defaults to ``"MultiCategory"``.

    Returns:
        tuple[UniAD, AnomalibDataModule]: The model in evaluation mode, and the datamodule, set up.

    Raises:
        FileNotFoundError: If there is no ``model.yaml``, or no folder.
        ValueError: If the images cannot be read as the config says.
    """
    model = load(checkpoint)
    if data is not None and not data.is_dir():
        raise MissingFileError(f"There is no folder {data}.")
    file = folder_of(checkpoint) / CONFIG
    try:
        config = read_yaml(file) if file.is_file() else {}
        section = config.get("data") if isinstance(config, dict) else None
        if data is not None:
            if not section or section["class_path"].rsplit(".")[-1] != data_class.rsplit(".")[-1]:
                return model, make_datamodule(data_class, data, model.value_range)
            section["init_args"]["root"] = str(data)
        if not section:
            raise MissingFileError(
                f"{file} does not say what the images of {checkpoint} are: give them with --data FOLDER."
            )
        datamodule = _datamodule_of(section)
        datamodule.setup()
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The images that {file} names cannot be read: {reason}; give them with --data.") from error
    check_samples(datamodule, whole=False)
    return model, datamodule


def _datamodule_of(section: Mapping[str, Any]) -> Any:
    """A datamodule of a config that somebody else may have written: of a class that is loaded, of plain values."""
    name, arguments = str(section["class_path"]), dict(section.get("init_args") or {})
    found = getattr(anomalib.data, name.rpartition(".")[2], None)
    if not (inspect.isclass(found) and issubclass(found, AnomalibDataModule)):
        raise TypeError(f"{name} is no datamodule of anomalib")
    source = str(arguments.get("source") or "")
    if "." in source and source.rpartition(".")[0] not in sys.modules:
        raise TypeError(f"the source {source} is of a module that is not loaded, and would be by its name")
    return found(**arguments)


def look(model: UniAD, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model sees of images ``(B, 3, H, W)``, from 0 to 1.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: The prepared images, as large as the model takes them, and what it
        reconstructs of them, ``(B, C, h, w)``.
    """
    with torch.no_grad():
        prepared = images if model.pre_processor is None else model.pre_processor(images)
        return prepared, model.model.normalise(model.model.extract(prepared))


def pixels_of(model: UniAD, prepared: torch.Tensor) -> torch.Tensor:
    """Prepared images ``(B, 3, H, W)`` from 0 to 1 again."""
    steps = steps_of(getattr(model.pre_processor, "transform", None))
    normalise = next((step for step in steps if isinstance(step, Normalize)), None)
    if normalise is None:
        return prepared
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalise.mean, normalise.std))
    return (prepared * std + mean).clamp(0, 1)


def test_images(datamodule: AnomalibDataModule) -> dict[str, tuple[int, Any]]:
    """Row and dataset of each image that was tested or validated with, by its :func:`resolved` path."""
    sets = [part for part in (getattr(datamodule, "val_data", None), datamodule.test_data) if part is not None]
    return {resolved(path): (row, part) for part in sets for row, path in enumerate(part.samples["image_path"])}


def resolved(path: str | Path) -> str:
    """The path of a file that no other spelling or link has."""
    return os.path.realpath(path)


def training_images(datamodule: AnomalibDataModule, count: int) -> tuple[Any, list[int], list[str]]:
    """Normal training images, so many, evenly of all categories, and at least one of each.

    Returns:
        tuple[Any, list[int], list[str]]: The dataset, rows of it, and the category of each.

    Raises:
        ValueError: If there are none.
    """
    images = datamodule.train_data
    if not len(images):
        raise InputError(f"{datamodule.name} has no training images.")
    names = categories_of(list(images.samples["image_path"]), datamodule)
    of = rows_of(names)
    each = max(1, count // len(of))
    chosen = sorted(row for rows in of.values() for row in rows[:: -(-len(rows) // each)])
    return images, chosen, [names[row] for row in chosen]
