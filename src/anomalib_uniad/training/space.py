# SPDX-License-Identifier: Apache-2.0
"""Room on the disk for the files of a training, looked at before it starts."""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from anomalib_uniad.errors import DiskError

from .checkpoint_selection import CheckpointSelection

PICTURE = 200_000  # bytes of anomalib's picture of one test image, of noise; photographs take less


class SpaceCheck(Callback):
    """Refuses a training whose checkpoints and pictures do not fit on the disk.

    Examples:
        >>> trainer = Trainer(callbacks=[SpaceCheck()], accelerator="cpu", logger=False)
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, once the sizes of everything are known and before anything long.

        Raises:
            OSError: If there is not enough room; the message says how much is needed, and where.
        """
        needed, words = space_of_run(trainer, pl_module)
        folder = Path(trainer.default_root_dir)
        if not needed or "://" in str(folder):
            return
        free = trainer.strategy.broadcast(shutil.disk_usage(_existing(folder)).free)
        if needed > free:
            raise DiskError(
                f"The training needs {gigabytes(needed)} in {folder} ({words}), but there are only {gigabytes(free)}: "
                "make room, or choose a folder on another disk (default_root_dir)."
            )
        rank_zero_info(
            f"The files of the training need up to {gigabytes(needed)} in {folder} (free: {gigabytes(free)})."
        )


def space_of_run(trainer: Any, pl_module: LightningModule) -> tuple[int, str]:
    """Estimate what a training writes into its folder.

    Args:
        trainer (Any): Its trainer.
        pl_module (LightningModule): Its model.

    Returns:
        tuple[int, str]: Bytes, and in words what they are for.
    """
    if trainer.fast_dev_run or trainer.barebones:
        return 0, ""
    model = sum(value.numel() * value.element_size() for value in pl_module.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in pl_module.parameters() if value.requires_grad)
    checkpoint = model + 2 * trained  # two moments of each parameter, as AdamW keeps them
    # Each callback keeps one file or more; the next one is complete before it takes the place of the last.
    files = 1 + sum(isinstance(callback, (Checkpoint, CheckpointSelection)) for callback in trainer.callbacks)
    datamodule = trainer.datamodule
    shown = getattr(pl_module, "visualizer", None) is not None
    pictures = len(getattr(datamodule, "test_data", None) or ()) if shown else 0
    words = f"{files} checkpoints of {gigabytes(checkpoint)}, pictures of {pictures} test images"
    return files * checkpoint + pictures * PICTURE, words


def on_same_disk(first: Path, second: Path) -> bool:
    """Whether two folders, which need not be there yet, are on one disk."""
    return _existing(first).stat().st_dev == _existing(second).stat().st_dev


def gigabytes(size: int) -> str:
    """Format a number of bytes: 1.50 GB, 2.0 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
