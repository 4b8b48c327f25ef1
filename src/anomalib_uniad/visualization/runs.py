# SPDX-License-Identifier: Apache-2.0
"""A trained model and its images, from the folder of a run or from a checkpoint and a folder."""

from pathlib import Path
from typing import Any

import yaml
from anomalib.data import AnomalibDataModule, UnknownDatamoduleError, get_datamodule

from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.model import UniAD
from anomalib_uniad.parity.inputs import load, make_datamodule

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
        what = f"{run} is not the folder of a run of UniAD: there is no {CHECKPOINT} in it" if run.is_dir() else None
        raise MissingFileError(f"{what or f'There is no checkpoint {run}'}.")
    return file


def folder_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of."""
    return checkpoint.absolute().parents[2]


def open_run(
    checkpoint: Path, data: Path | None, data_class: str = "MultiCategory"
) -> tuple[UniAD, AnomalibDataModule]:
    """Load a checkpoint, and the images that it was trained and tested with.

    Args:
        checkpoint (Path): Lightning checkpoint of UniAD.
        data (Path | None): Folder of the images; ``None`` takes those of the run, by the ``model.yaml`` in its folder.
        data_class (str): Datamodule that reads the folder. Defaults to ``"MultiCategory"``.

    Returns:
        tuple[UniAD, AnomalibDataModule]: The model in evaluation mode, and the datamodule, set up.

    Raises:
        FileNotFoundError: If there is no ``model.yaml``, or no folder.
        ValueError: If the images cannot be read as the config says.
    """
    model = load(checkpoint)
    if data is not None:
        if not data.is_dir():
            raise MissingFileError(f"There is no folder {data}.")
        return model, make_datamodule(data_class, data, model.value_range)
    file = folder_of(checkpoint) / CONFIG
    config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "data" not in config:
        raise MissingFileError(
            f"{file} does not say what the images of {checkpoint} are: give them with --data FOLDER."
        )
    try:
        datamodule = get_datamodule({"data": config["data"]})
    except (TypeError, UnknownDatamoduleError) as error:
        raise InputError(f"{file} has a section data that cannot be read: {error}") from error
    datamodule.setup()
    return model, datamodule
