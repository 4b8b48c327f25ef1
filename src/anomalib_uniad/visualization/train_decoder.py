# SPDX-License-Identifier: Apache-2.0
"""Trains a feature decoder on normal training images."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from rich.console import Console
from rich.progress import track
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import ExistingFileError
from anomalib_uniad.files import check_writable
from anomalib_uniad.model import UniAD
from anomalib_uniad.report.benchmark import is_benchmark, trainings_of_uniad
from anomalib_uniad.trained_run import checkpoint_of, folder_of, look, open_run, pixels_of, training_images
from anomalib_uniad.training.checkpoint_files import WholeFileIO

from .feature_decoder import PIXELS_PER_TOKEN, FeatureDecoder, features_of

BATCH_SIZE = 16
DECODER = "decoder.pt"


class DecoderTraining(LightningModule):
    """Mean absolute error of pixels, AdamW, one cycle of the learning rate.

    Args:
        decoder (FeatureDecoder): What is trained.
        steps (int): Steps of the whole training.
    """

    def __init__(self, decoder: FeatureDecoder, steps: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.steps = steps

    def training_step(self, batch: Sequence[torch.Tensor], *args: Any) -> torch.Tensor:
        """Loss of ``features`` (B, C, h, w), in float16, and ``images`` (B, 3, H, W), uint8."""
        features, images = batch
        loss = F.l1_loss(self.decoder(features.float()), images.float() / 255)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with one cycle."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def checkpoints_of(runs: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Checkpoints, and where the decoder of each is.

    Args:
        runs (Sequence[Path]): Folders of runs, or checkpoints, whose decoders are in the folder of the run; or folders
            of benchmarks, which stand for their trainings of UniAD and have one decoder for all of them.

    Returns:
        list[tuple[Path, Path]]: Checkpoint and decoder.

    Raises:
        FileNotFoundError: If a checkpoint is not there.
        ValueError: If a benchmark has none of UniAD.
    """
    found = []
    for run in runs:
        if is_benchmark(run):
            found += [(checkpoint_of(training), run / DECODER) for training in trainings_of_uniad(run)]
        else:
            checkpoint = checkpoint_of(run)
            found.append((checkpoint, folder_of(checkpoint) / DECODER))
    return found


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
        run (Path): Folder of a run, or its checkpoint; or the folder of a benchmark, whose first training counts.
        output (Path | None): The file. Defaults to ``None``, ``decoder.pt`` in the folder.
        data (Path | None): Folder of the images. Defaults to ``None``, those of the run.
        data_class (str): Datamodule that reads ``data``. Defaults to ``"MultiCategory"``.
        steps (int): Steps of 16 images. Defaults to ``1000``.
        images (int): As many normal training images are looked at, evenly of all categories, at least one of each.
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
    checkpoint, own = checkpoints_of([run])[0]
    output = output or own
    if output.is_dir():
        raise ExistingFileError(f"{output} is a folder: give a file as --output.")
    if output.exists() and not overwrite:
        raise ExistingFileError(f"{output} is there: give another --output, or --overwrite true.")
    check_writable(output.parent)
    model, datamodule = open_run(checkpoint, data, data_class)
    dataset, rows, _ = training_images(datamodule, images)
    paths = [str(path) for path in dataset.samples["image_path"].iloc[rows]]
    about = {"features": features_of(model), "steps": steps, "seed": seed, "images": paths}
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    unfinished = output.parent / f".{output.name}.{key}"  # of this very training
    last = unfinished / "last.ckpt"
    pairs = _features_and_images(model, dataset, rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        training = DecoderTraining(_decoder_for(pairs.tensors[0]), steps)
        trainer = Trainer(
            max_steps=steps,
            max_epochs=1,
            devices=1,
            callbacks=[ModelCheckpoint(unfinished, save_last=True, every_n_train_steps=100), RichProgressBar()],
            plugins=WholeFileIO(TorchCheckpointIO()),
            logger=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        with warnings.catch_warnings():  # the images are in memory: workers would only copy them
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            # One epoch of all steps: its bar shows the time left of the whole.
            loader = DataLoader(pairs, BATCH_SIZE, sampler=RandomSampler(pairs, num_samples=steps * BATCH_SIZE))
            trainer.fit(training, loader, ckpt_path=last if last.is_file() else None)
    training.decoder.cpu().save(output, model)
    shutil.rmtree(unfinished, ignore_errors=True)
    return output


def _features_and_images(model: UniAD, dataset: Any, rows: Sequence[int]) -> TensorDataset:
    """Features of the neck ``(M, C, h, w)``, float16, and images ``(M, 3, H, W)``, uint8, of some rows of a dataset."""
    network = model.model
    side = [PIXELS_PER_TOKEN * length for length in network.grid_size]
    features, pictures = [], []
    for row in track(rows, "Features", console=Console(stderr=True)):
        # Each alone: a batch would stretch images of other sizes.
        prepared, found = look(model, dataset.collate_fn([dataset[row]]).image)
        features.append(network.denormalise(found).half())
        pixels = pixels_of(model, prepared)
        parts = pixels if network.tiles is None else network.tiles.cut(pixels)
        small = F.interpolate(parts, side, mode="bilinear", antialias=True).clamp(0, 1)
        small = small if network.tiles is None else network.tiles.mosaic(small)
        pictures.append((255 * small).round().byte())
    return TensorDataset(torch.cat(features), torch.cat(pictures))


def _decoder_for(features: torch.Tensor) -> FeatureDecoder:
    """An untrained decoder that takes all channels on one scale."""
    decoder = FeatureDecoder(features.shape[1])
    values = features[:: max(1, len(features) // 200)].float().transpose(0, 1).flatten(1)
    decoder.mean.copy_(values.mean(dim=1).view(-1, 1, 1))
    std = values.std(dim=1)
    # A channel that hardly varies here would be blown up where it does.
    decoder.std.copy_(std.clamp(min=float(std.median()) / 100 or 1).view(-1, 1, 1))
    return decoder
