# SPDX-License-Identifier: Apache-2.0
"""Trains UniAD for a few steps, as users do, and takes the time."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from anomalib_uniad.model import UniAD
from anomalib_uniad.training.cached_dataset import CachedDataset, hand_on
from anomalib_uniad.training.feature_build import ArrayWriter

# The model at the paper's size, without weights from a hub and without checkpoints.
PAPER: dict[str, Any] = {"backbone": "tf_efficientnet_b4", "pre_trained": False, "resume_interval": 0}
MVTEC_IMAGES = 3629  # training images of MVTec AD
BATCH_SIZE = 8


@dataclass(frozen=True)
class Steps:
    """Times of the steps of one training, warm-up left out.

    Attributes:
        seconds (list[float]): Seconds of each step. On a GPU only their mean means something.
        before (float): Seconds from the start of the training to the end of its first step.
    """

    seconds: list[float]
    before: float

    @property
    def mean(self) -> float:
        """Mean seconds per step."""
        return sum(self.seconds) / len(self.seconds)

    @property
    def typical(self) -> float:
        """Median seconds per step, which leaves out interruptions."""
        return median(self.seconds)


class StepTimer(Callback):
    """Takes the time at the end of each training step.

    Args:
        warm_up (int): Steps that are not counted; at least 1.
        steps (int): Steps that are.
    """

    def __init__(self, warm_up: int, steps: int) -> None:
        self.warm_up = warm_up
        self.last = warm_up + steps
        self.times: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time; a GPU is waited for where counting begins and ends."""
        del trainer, outputs, batch, batch_idx
        if len(self.times) + 1 in {self.warm_up, self.last}:
            synchronize(pl_module.device)
        self.times.append(time.perf_counter())


def train_steps(
    model: UniAD, datamodule: LightningDataModule, device: torch.device, precision: Any, warm_up: int, steps: int
) -> Steps:
    """Train with Lightning's trainer and the arguments that the model wants, without validation and checkpoints.

    Args:
        model (UniAD): The model.
        datamodule (LightningDataModule): Its training data; one epoch should be long enough.
        device (torch.device): Where to train.
        precision (str): Lightning's name of it, for example ``"bf16-mixed"``.
        warm_up (int): Steps that are not counted; at least 1.
        steps (int): Steps that are.

    Returns:
        Steps: The times.
    """
    timer = StepTimer(warm_up, steps)
    with quiet():
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1,
            precision=precision,
            max_epochs=-1,
            max_steps=warm_up + steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timer],
            **model.trainer_arguments,
        )
        start = time.perf_counter()
        trainer.fit(model, datamodule=datamodule)
    times = timer.times
    counted = [end - begin for begin, end in zip(times[warm_up - 1 :], times[warm_up:], strict=False)]
    return Steps(counted, times[0] - start)


class GeneratedFeatures(LightningDataModule):
    """Features as the cache has them, for measurements without images.

    Args:
        arrays (dict[str, np.ndarray]): ``features`` and ``labels``, see :func:`write_features`.
        batch_size (int): Images per step.
        device (torch.device): Where the training is; as with the cache, features lie there if there is room.
    """

    def __init__(self, arrays: dict[str, np.ndarray], batch_size: int, device: torch.device) -> None:
        super().__init__()
        paths: list[str | None] = [f"{number:05}.png" for number in range(len(arrays["labels"]))]
        without: list[str | None] = [None] * len(paths)
        self.dataset = CachedDataset.place(arrays, paths, without, device)
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        """The loader that the cache would make."""
        return DataLoader(self.dataset, self.batch_size, shuffle=True, collate_fn=hand_on)


def write_features(writer: ArrayWriter, shape: tuple[int, int, int, int], seed: int = 0) -> None:
    """Write features of images that never were.

    Args:
        writer (ArrayWriter): Where they go: memory or the files of a cache.
        shape (tuple[int, int, int, int]): Images, channels, height and width.
        seed (int): Seed of their values. Defaults to ``0``.
    """
    block = np.random.default_rng(seed).standard_normal((min(64, shape[0]), *shape[1:]), dtype=np.float32)
    writer.start("features", shape, "float32")
    for start in range(0, shape[0], len(block)):
        writer.append("features", block[: shape[0] - start])
    writer.start("labels", shape[:1], "int8")
    writer.append("labels", np.zeros(shape[0], np.int8))


def feature_shape(model: UniAD, images: int) -> tuple[int, int, int, int]:
    """Shape of the features of so many images: ``(images, C, h, w)``."""
    return (images, sum(model.model.backbone.channels), *model.model.grid_size)


def device_of(name: str) -> torch.device:
    """The device of a name: ``"cpu"`` or ``"cuda"``, which is the first GPU."""
    return torch.device("cuda", 0) if name == "cuda" else torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning and anomalib from telling what every training tells."""
    names = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric", "anomalib")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
