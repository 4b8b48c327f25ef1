# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint of the authors' code to one that anomalib takes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        FileExistsError: If one of the new files exists.
        FileNotFoundError: If ``checkpoint`` or the folder of ``output`` does not exist.
        ValueError: If ``output`` does not end in ``.ckpt``, or ``checkpoint`` cannot be used.
    """
    config = output.with_suffix(".yaml")
    _check_output((output, config), overwrite)
    model = UniAD.from_official(checkpoint, **arguments)
    official = model.official
    if official is None:
        msg = "UniAD.from_official has kept nothing of the checkpoint."
        raise RuntimeError(msg)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[model.evaluator] if isinstance(model.evaluator, Callback) else None,  # it keeps notes there
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.strategy.connect(model)
    progress: Any = trainer.fit_loop.epoch_progress.current  # for the tables, which tell how long a model was trained
    progress.ready = progress.started = progress.processed = progress.completed = official.epoch or 0
    _replace(output, trainer.save_checkpoint)
    arguments_of_model = {**official.arguments, "pre_trained": False}  # the weights are in the checkpoint
    text = yaml.safe_dump({"model": {"class_path": "UniAD", "init_args": arguments_of_model}}, sort_keys=False)
    _replace(config, lambda path: path.write_text(text, encoding="utf-8"))
    return official, config


def _check_output(paths: tuple[Path, Path], overwrite: bool) -> None:
    """Refuse to write where something is, or where there is no folder, before any work."""
    output = paths[0]
    if output.suffix != ".ckpt":
        msg = f"The name of the checkpoint must end in .ckpt, as anomalib expects; got {str(output)!r}."
        raise ValueError(msg)
    if not output.parent.is_dir():
        msg = f"There is no folder {str(output.parent)!r} for {output.name}; create it first."
        raise FileNotFoundError(msg)
    for path in paths:
        if path.exists() and not overwrite:
            msg = f"{str(path)!r} exists; choose another name, or replace it with overwrite."
            raise FileExistsError(msg)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name first, so that there is never half of it."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
