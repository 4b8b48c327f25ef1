# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint of the authors' code to one that anomalib takes."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch import Callback, Trainer

from anomalib_uniad.deploy.official import OfficialCheckpoint
from anomalib_uniad.model import UniAD


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
    _check_output((output, config), overwrite)
    model = UniAD.from_official(checkpoint, **arguments)
    official = cast("OfficialCheckpoint", model.official)
    trainer = _quiet_trainer(model)
    _replace(output, trainer.save_checkpoint)
    arguments_of_model = {**official.arguments, "pre_trained": False}  # the weights are in the checkpoint
    text = yaml.safe_dump({"model": {"class_path": "UniAD", "init_args": arguments_of_model}}, sort_keys=False)
    _replace(config, lambda path: path.write_text(text, encoding="utf-8"))
    return official, config


def _quiet_trainer(model: UniAD) -> Trainer:
    """A trainer that only writes the checkpoint, and says nothing of devices that it does not use."""
    lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            callbacks=[model.evaluator] if isinstance(model.evaluator, Callback) else None,  # it keeps notes there
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    finally:
        lightning.setLevel(level)
    trainer.strategy.connect(model)
    return trainer


def _check_output(paths: tuple[Path, Path], overwrite: bool) -> None:
    """Refuse to write where something is, or where nothing can be written, before any work."""
    output = paths[0]
    if output.suffix != ".ckpt":
        msg = f"The name of the checkpoint must end in .ckpt, as anomalib expects; got {str(output)!r}."
        raise ValueError(msg)
    if not output.parent.is_dir():
        msg = f"There is no folder {str(output.parent)!r} for {output.name}; create it first."
        raise FileNotFoundError(msg)
    for path in paths:
        if path.is_dir():
            msg = f"{str(path)!r} is a folder; choose another name."
            raise FileExistsError(msg)
        if path.exists() and not overwrite:
            msg = f"{str(path)!r} exists; choose another name, or replace it with overwrite."
            raise FileExistsError(msg)
    try:
        with tempfile.NamedTemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        msg = f"Nothing can be written to the folder {str(output.parent.resolve())!r}: {error.strerror or error}."
        raise OSError(msg) from error


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file in a folder of its own first, so that there is never half of it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}") as folder:
        temporary = Path(folder, path.name)
        write(temporary)
        temporary.replace(path)
