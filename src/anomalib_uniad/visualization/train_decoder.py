# SPDX-License-Identifier: Apache-2.0
"""Trains a feature decoder on normal training images."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from rich.console import Console
from rich.progress import track
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.transforms.v2 import Normalize

from anomalib_uniad.category import categories_of
from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import ExistingFileError, InputError
from anomalib_uniad.model import UniAD

from .feature_decoder import PIXELS_PER_TOKEN, FeatureDecoder, features_of
from .runs import checkpoint_of, folder_of, open_run

BATCH_SIZE = 16
DECODER = "decoder.pt"


class DecoderTraining(LightningModule):
    """Mean absolute error of pixels, AdamW, one cycle of the learning rate.

    Args:
        decoder (FeatureDecoder): What is trained.
        about (dict[str, Any]): ``steps`` of the whole training, and whatever else tells it from others.
    """

    def __init__(self, decoder: FeatureDecoder, about: dict[str, Any]) -> None:
        super().__init__()
        self.decoder = decoder
        self.save_hyperparameters(about)

    def training_step(self, batch: Sequence[torch.Tensor], *args: Any) -> torch.Tensor:
        """Loss of ``features`` (B, C, h, w), in float16, and ``images`` (B, 3, H, W), uint8."""
        features, images = batch
        loss = F.l1_loss(self.decoder(features.float()), images.float() / 255)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with one cycle."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, self.hparams["steps"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_decoder(
    run: Path,
    output: Path | None = None,
    data: Path | None = None,
    data_class: str = "MultiCategory",
    steps: int = 1000,
    images: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Train a decoder of the features of a model, and write it to a file.

    A training that was interrupted goes on, from a folder beside the file that is removed at the end.

    Args:
        run (Path): Folder of a run, or its checkpoint.
        output (Path | None): The file. Defaults to ``None``, ``decoder.pt`` in the folder of the run.
        data (Path | None): Folder of the images. Defaults to ``None``, those of the run.
        data_class (str): Datamodule that reads ``data``. Defaults to ``"MultiCategory"``.
        steps (int): Steps of 16 images. Defaults to ``1000``.
        images (int): At most as many normal training images are looked at, evenly of all categories.
            Defaults to ``1000``.
        seed (int): Of weights and order of images. Defaults to ``0``.
        overwrite (bool): Replace a decoder that is there. Defaults to ``False``.

    Returns:
        Path: The file.

    Raises:
        OSError: If the checkpoint or the images are not there, or a decoder is.
        ValueError: If an argument is out of its range, or the images cannot be read.
    """
    check_at_least("steps", steps, 1)
    check_at_least("images", images, 1)
    checkpoint = checkpoint_of(run)
    output = output or folder_of(checkpoint) / DECODER
    if output.is_dir() or (output.exists() and not overwrite):
        raise ExistingFileError(f"{output} is there: give another --output, or --overwrite true.")
    model, datamodule = open_run(checkpoint, data, data_class)
    about = {"features": features_of(model), "steps": steps, "images": images, "seed": seed}
    unfinished = output.parent / f".{output.name}.training"
    last = unfinished / "last.ckpt"
    if last.is_file() and torch.load(last, weights_only=True)["hyper_parameters"] != about:
        shutil.rmtree(unfinished)  # of another training
    dataset = features_and_images(model, datamodule, images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        training = DecoderTraining(_decoder_for(dataset.tensors[0]), about)
        trainer = Trainer(
            max_steps=steps,
            max_epochs=-1,
            callbacks=[ModelCheckpoint(unfinished, save_last=True, every_n_train_steps=100), RichProgressBar()],
            logger=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        with warnings.catch_warnings():  # the images are in memory: workers would only copy them
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            trainer.fit(
                training, DataLoader(dataset, BATCH_SIZE, shuffle=True), ckpt_path=last if last.is_file() else None
            )
    training.decoder.cpu().save(output, model)
    shutil.rmtree(unfinished, ignore_errors=True)
    return output


def features_and_images(model: UniAD, datamodule: AnomalibDataModule, count: int) -> TensorDataset:
    """Normalised features ``(M, C, h, w)``, float16, and images ``(M, 3, H, W)``, uint8, of normal training images.

    Args:
        model (UniAD): The model, which computes the features.
        datamodule (AnomalibDataModule): Where the images are from.
        count (int): At most as many images, evenly of all categories.

    Returns:
        TensorDataset: Of the two, in memory.
    """
    features, pictures = [], []
    for batch in track(training_images(datamodule, count)[0], "Features", console=Console(stderr=True)):
        with torch.no_grad():
            prepared = model.pre_processor(batch.image) if model.pre_processor is not None else batch.image
            features.append(model.model.normalise(model.model.extract(prepared)).half())
            pictures.append((255 * seen(model, prepared)).round().byte())
    return TensorDataset(torch.cat(features), torch.cat(pictures))


def training_images(datamodule: AnomalibDataModule, count: int) -> tuple[DataLoader, list[str]]:
    """Batches of normal training images, at most so many, evenly of all categories, in order; and the category of each.

    Raises:
        ValueError: If there are none.
    """
    images = datamodule.train_data
    if not len(images):
        raise InputError(f"{datamodule.name} has no training images.")
    of = pd.Series(categories_of(list(images.samples["image_path"]), datamodule))
    each = max(1, count // of.nunique())
    rows = sorted(row for _, part in of.groupby(of) for row in part.index[:: -(-len(part) // each)])
    return DataLoader(Subset(images, rows), BATCH_SIZE, collate_fn=images.collate_fn), list(of[rows])


def seen(model: UniAD, prepared: torch.Tensor) -> torch.Tensor:
    """What the model sees of prepared images ``(B, 3, H, W)``, as large as a decoder draws it, from 0 to 1."""
    normalise = next((step for step in _steps(model) if isinstance(step, Normalize)), None)
    if normalise is not None:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalise.mean, normalise.std))
        prepared = prepared * std + mean
    network = model.model
    side = [PIXELS_PER_TOKEN * length for length in network.grid_size]
    tiles = prepared if network.tiles is None else network.tiles.cut(prepared)
    small = F.interpolate(tiles, side, mode="bilinear", antialias=True).clamp(0, 1)
    return small if network.tiles is None else network.tiles.mosaic(small)


def _steps(model: UniAD) -> list[Any]:
    transform: Any = getattr(model.pre_processor, "transform", None)
    return list(getattr(transform, "transforms", [transform]))


def _decoder_for(features: torch.Tensor) -> FeatureDecoder:
    """An untrained decoder that takes all channels on one scale."""
    decoder = FeatureDecoder(features.shape[1])
    values = features[:: max(1, len(features) // 200)].float().transpose(0, 1).flatten(1)
    decoder.mean.copy_(values.mean(dim=1).view(-1, 1, 1))
    decoder.std.copy_(values.std(dim=1).clamp(min=1e-6).view(-1, 1, 1))
    return decoder
