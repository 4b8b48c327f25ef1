# SPDX-License-Identifier: Apache-2.0
"""Files of checkpoints: read without their weights, and named where they cannot be read."""

import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib.utils.serialization import anomalib_safe_globals
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_uniad.errors import DiskError, InputError, MissingFileError, UserError

_IMPORT = "one of the authors' code is turned into one with `anomalib-uniad import-checkpoint`."


def read_checkpoint(path: Path, safe_globals: Sequence[Any] = ()) -> dict[str, Any]:
    """Read a checkpoint; the values of its tensors stay in the file until they are used.

    Args:
        path (Path): The file.
        safe_globals (Sequence[Any]): Classes that may be in it, besides those that anomalib allows. Defaults to ``()``.

    Returns:
        dict[str, Any]: Its content, with ``state_dict`` and ``pytorch-lightning_version``.

    Raises:
        FileNotFoundError: If it is not there.
        OSError: If it must not be read.
        ValueError: If it is not a checkpoint, or damaged.
    """
    if not path.is_file():
        raise MissingFileError(_what_is_there(path))
    try:
        with anomalib_safe_globals(safe_globals):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError as error:
        raise DiskError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # torch's readers raise all kinds on other files
        found = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found:
            msg = (
                f"{path} is not a checkpoint that anomalib can load: it has objects of the class {found[1]} in it; "
                f"{_IMPORT}"
            )
        else:
            msg = f"{path} is not a checkpoint that torch can read: it is damaged, cut off, or a file of another kind."
        raise InputError(msg) from error
    if not isinstance(content, dict) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        official = isinstance(content, dict) and "arch" in content
        hint = _IMPORT if official else "`anomalib train` writes one to weights/lightning."
        raise InputError(f"{path} is not a checkpoint of Lightning: {hint}")
    return content


class UnreadableCheckpoint(Callback):
    """Names the file where a trainer cannot read the checkpoint that it was given."""

    def __init__(self) -> None:
        self._has_read = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Expect a checkpoint."""
        self._has_read = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note that it was read."""
        self._has_read = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what is wrong with the file, if that is why the trainer has stopped.

        Raises:
            OSError: If there is no such file, or it must not be read.
            ValueError: If it is not a checkpoint, or damaged.
        """
        path = trainer.ckpt_path
        known = isinstance(exception, UserError) or not isinstance(exception, Exception)
        if self._has_read or known or path is None or "://" in str(path):
            return
        try:
            read_checkpoint(Path(path), getattr(pl_module, "checkpoint_safe_globals", tuple)())
        except UserError as error:
            raise error from exception


def _what_is_there(path: Path) -> str:
    """Say what is in the place of a file that is not there."""
    folder = path if path.is_dir() else path.parent
    files = sorted(file.name for file in folder.glob("[!.]*.ckpt")) if folder.is_dir() else []
    there = f": its folder has {', '.join(files[:5])}." if files else "."
    if path.is_dir():
        found = f", such as {path / files[0]}." if files else "."
        return f"{path} is a folder: give the file of the checkpoint{found}"
    return f"There is no checkpoint {path}{there}"
