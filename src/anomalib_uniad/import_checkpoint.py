# SPDX-License-Identifier: Apache-2.0
"""Converts checkpoints of the authors' code to Lightning checkpoints."""

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch import Trainer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anomalib_uniad.deploy.official import OfficialCheckpoint
from anomalib_uniad.errors import DiskError, ExistingFileError, InputError, MissingFileError
from anomalib_uniad.files import replacing
from anomalib_uniad.model import UniAD

_SOURCES = {"tensors": "tensors", "arch": "config in the file", "default": "paper's default", "given": "given"}


def import_checkpoint(
    checkpoint: Path, output: Path, overwrite: bool = False, **arguments: Any
) -> tuple[OfficialCheckpoint, Path]:
    """Turn a checkpoint of the authors' code into a Lightning checkpoint, with a config of the model beside it.

    Args:
        checkpoint (Path): The authors' file, ``ckpt.pth.tar``.
        output (Path): The new checkpoint, ``.ckpt``; the config gets the same name with ``.yaml``.
        overwrite (bool): Whether files that exist are replaced. Defaults to ``False``.
        **arguments (Any): See :meth:`anomalib_uniad.UniAD.from_official`.

    Returns:
        tuple[OfficialCheckpoint, Path]: What was found in the file, and the config.

    Raises:
        OSError: If one of the new files exists or cannot be written, or ``checkpoint`` is not there.
        ValueError: If ``output`` does not end in ``.ckpt``, or ``checkpoint`` cannot be used.
    """
    config = output.with_suffix(".yaml")
    _check_output(output, config, overwrite)
    model = UniAD.from_official(checkpoint, **arguments)
    official = cast("OfficialCheckpoint", model.official)
    arguments_of_model = {**official.arguments, "pre_trained": False}  # the weights are in the checkpoint
    text = yaml.safe_dump({"model": {"class_path": "UniAD", "init_args": arguments_of_model}}, sort_keys=False)
    with replacing(output, config, overwrite=overwrite) as (new_output, new_config):
        save_checkpoint(model, new_output)
        new_config.write_text(text, encoding="utf-8")
    return official, config


def save_checkpoint(model: UniAD, file: Path) -> None:
    """Save a model that was not trained here as a Lightning checkpoint.

    Args:
        model (UniAD): The model.
        file (Path): The checkpoint.
    """
    lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = lightning.level
    lightning.setLevel(logging.WARNING)  # nothing about devices that are not used
    try:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    finally:
        lightning.setLevel(level)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(file)


def show(official: OfficialCheckpoint) -> None:
    """Print the arguments of an imported model with their origin, and the tensors that are not used.

    Args:
        official (OfficialCheckpoint): The checkpoint.
    """
    console = Console(highlight=False)
    table = Table("argument", "value", "from", title="Arguments of UniAD", box=box.HEAVY_HEAD)
    for name, value in official.arguments.items():
        table.add_row(Text(name), Text(str(value)), Text(_SOURCES[official.sources[name]]))
    console.print(table)
    trained = "" if official.epoch is None else f", trained for {official.epoch} epochs"
    console.print(f"{official.used} tensors are used{trained}.", soft_wrap=True)
    if official.unused:
        console.print(f"{len(official.unused)} tensors are not used:", soft_wrap=True)
    for line in grouped(official.unused):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def grouped(names: Sequence[str]) -> list[str]:
    """Group names of tensors by the module that they belong to.

    Args:
        names (Sequence[str]): Names of tensors.

    Returns:
        list[str]: A line per module; blocks and layers with a number share one, with the number of tensors.

    Examples:
        >>> grouped(["a._fc.weight", "a._fc.bias", "a._blocks.22.bn.weight", "a._blocks.23.bn.weight", "b"])
        ['a._blocks.22 to 23: 2 tensors', 'a._fc: bias, weight', 'b']
    """
    blocks: dict[str, list[int]] = {}
    modules: dict[str, list[str]] = {}
    for name in names:
        if match := re.match(r"(.*?(?:blocks\.|layer))(\d+)\.", name):
            blocks.setdefault(match[1], []).append(int(match[2]))
        else:
            module, _, tensor = name.rpartition(".")
            modules.setdefault(module, []).append(tensor)
    lines = [f"{name}{min(found)} to {max(found)}: {len(found)} tensors" for name, found in blocks.items()]
    for module, tensors in modules.items():
        lines.append(f"{module}: {', '.join(sorted(tensors))}" if module else ", ".join(tensors))
    return lines


def _check_output(output: Path, config: Path, overwrite: bool) -> None:
    """Refuse to write where something is, or where nothing can be written, before any work."""
    if output.suffix != ".ckpt":
        raise InputError(f"The name of the checkpoint must end in .ckpt, as anomalib expects; got {str(output)!r}.")
    if not output.parent.is_dir():
        raise MissingFileError(f"There is no folder {str(output.parent)!r} for {output.name}; create it first.")
    for path in (output, config):
        if path.is_dir():
            raise ExistingFileError(f"{str(path)!r} is a folder; choose another name.")
        if path.exists() and not overwrite:
            raise ExistingFileError(f"{str(path)!r} exists; choose another name, or replace it with overwrite.")
    try:
        with tempfile.NamedTemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        msg = f"Nothing can be written to the folder {str(output.parent.resolve())!r}: {error.strerror or error}."
        raise DiskError(msg) from error
