# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on the disk: written whole or not at all, and elsewhere if their folder has no room in the end."""

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from anomalib_uniad.errors import DiskError, UserError
from anomalib_uniad.files import replacing


def save_torch(content: Any, path: Path) -> None:
    """Write what ``torch.save`` does as a whole or not at all.

    Args:
        content (Any): What is saved.
        path (Path): The file, in a folder that is there.

    Raises:
        OSError: If it cannot be written; the file is as it was before.
    """
    data = io.BytesIO()  # torch's own errors do not say that a disk is full
    torch.save(content, data)
    with replacing(path) as (part,):
        part.write_bytes(data.getbuffer())


class WholeFileIO(CheckpointIO):
    """Writes each checkpoint whole or not at all; that it cannot be written is a warning, not an error.

    An existing file stays as it was until the new one is complete. Lightning's own plugin writes to the folder for
    temporary files and moves the file from there, which may fail or stop half-way if that is on another disk.

    Args:
        inner (CheckpointIO): Plugin that reads and removes files.

    Attributes:
        failed (dict[Path, OSError]): Files that could not be written when it was last tried, and why.
    """

    def __init__(self, inner: CheckpointIO) -> None:
        self.inner = inner
        self.failed: dict[Path, OSError] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint under another name, and rename it once it is on the disk."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_torch(checkpoint, path)
        except OSError as error:
            reason = error.__cause__ if isinstance(error.__cause__, OSError) else error  # as the system calls it
            self.failed[path] = reason
            rank_zero_warn(f"{path} could not be written: {reason}")
        else:
            self.failed.pop(path, None)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint."""
        return self.inner.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        self.inner.remove_checkpoint(path)


class CheckpointRescue(Callback):
    """Has the checkpoints of a training written by :class:`WholeFileIO`, and loses none.

    A training goes on if one cannot be written. If that is still so at its end, the model is saved in the working
    directory, the home or the folder for temporary files instead, and an error says where.

    Examples:
        >>> trainer = Trainer(callbacks=[CheckpointRescue()], accelerator="cpu", logger=False)
    """

    def __init__(self) -> None:
        self._io: WholeFileIO | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace Lightning's or anomalib's plugin for the time of the training; one of the user stays."""
        plugin = trainer.strategy.checkpoint_io
        standard = getattr(type(plugin), "save_checkpoint", None) is TorchCheckpointIO.save_checkpoint
        if stage == "fit" and standard and "://" not in str(trainer.default_root_dir):
            trainer.strategy.checkpoint_io = self._io = WholeFileIO(plugin)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save elsewhere what could not be written.

        Raises:
            OSError: If there is such a checkpoint; the message says where it is now.
        """
        if trainer.strategy.broadcast(bool(self._io and self._io.failed)):
            raise DiskError(self._save_elsewhere(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same if the training ends early; other processes may be elsewhere, so with one only."""
        if trainer.world_size == 1 and self._io and self._io.failed and not isinstance(exception, UserError):
            with contextlib.suppress(UserError):  # weights that are not finite
                rank_zero_warn(self._save_elsewhere(trainer))
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the trainer its plugin back."""
        if self._io is not None:
            trainer.strategy.checkpoint_io = self._io.inner
            self._io = None

    def _save_elsewhere(self, trainer: Trainer) -> str:
        """Save the model in the first folder that has room; all processes call this. Returns what is to be said."""
        path, error = trainer.strategy.broadcast(next(((p, str(e)) for p, e in self._failed().items()), ("", "")))
        name = trainer.strategy.broadcast(f"anomalib-uniad-{time.strftime('%Y%m%d-%H%M%S')}-{Path(path).name}")
        places = trainer.strategy.broadcast([folder / name for folder in _other_folders()])
        for place in places:
            trainer.save_checkpoint(place, weights_only=False)
            if trainer.strategy.broadcast(place not in self._failed()):
                return (
                    f"{path} could not be written ({error}), so the trained model was saved as {place}: test it with "
                    "--ckpt_path, and make room before the next training."
                )
        folders = ", ".join(str(place.parent) for place in places)
        return f"{path} could not be written ({error}), and neither could a file in {folders}: the training is lost."

    def _failed(self) -> dict[Path, OSError]:
        return self._io.failed if self._io is not None else {}


def _other_folders() -> list[Path]:
    folders = []
    for find in (Path.cwd, Path.home, tempfile.gettempdir):
        with contextlib.suppress(OSError, RuntimeError):  # deleted, or unknown
            folders.append(Path(find()))
    return folders


def checkpoint_path(trainer: Trainer, name: str) -> Path:
    """Return the path of a file in the folder of the run's checkpoints, the same one in all processes."""
    return Path(trainer.strategy.broadcast(str(Path(trainer.default_root_dir, "weights", "lightning", name))))


def save_whole(trainer: Trainer, path: Path) -> bool:
    """Save a checkpoint; all processes have to call this.

    Returns:
        bool: Whether it could be written; if not, that was a warning, and ``path`` is as it was before.
    """
    trainer.save_checkpoint(path, weights_only=False)  # the default, but Lightning logs that it is
    plugin = trainer.strategy.checkpoint_io
    failed = isinstance(plugin, WholeFileIO) and plugin.failed.pop(path, None) is not None
    return not trainer.strategy.broadcast(failed)


def newest_checkpoint(trainer: Trainer) -> Path | None:
    """Return the checkpoint of this run that was written last, of those that are there."""
    folder = Path(trainer.default_root_dir, "weights", "lightning")
    own = [Path(getattr(callback, "best_model_path", "") or folder) for callback in trainer.checkpoint_callbacks]
    found = [path for path in (*own, *folder.glob("[!.]*.ckpt")) if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
