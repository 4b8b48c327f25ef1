# SPDX-License-Identifier: Apache-2.0
"""How long the paper's recipe and the fast one take to the same loss, at the size of MVTec AD.

python benchmarks/equal_loss.py --data datasets/MVTecAD          # a GPU: about 20 minutes
python benchmarks/equal_loss.py --quick true                     # generated products, to show that it runs
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from jsonargparse import auto_cli
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from anomalib_uniad import MultiCategory, UniAD
from harness import RESULTS, add_rows, find_device, origin, quiet, show, synchronize
from training import MVTEC_IMAGES, FeatureBatches

MODELS = Path(__file__).parents[1] / "configs" / "model"
# The same for both, or losses could not be compared.
FEATURES = ("backbone", "layers", "image_size", "feature_stride", "feature_resize")
TINY = {"backbone": "tf_efficientnet_lite0", "layers": [0, 1], "image_size": [64, 64], "hidden_dim": 16, "num_heads": 2}
TINY |= {
    "layer_weights": None,
    "feedforward_dim": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "neighbor_size": [1, 1],
}


def equal_loss(
    data: Path | None = None,
    epochs: int = 20,
    paper_minutes: float = 15.0,
    images: int = MVTEC_IMAGES,
    batch_size: int = 8,
    device: str = "auto",
    output_dir: Path = RESULTS,
    seed: int = 0,
    quick: bool = False,
) -> None:
    """Train with both recipes on the same cached features and write ``equal_loss.csv``: a row per measured epoch.

    Both have the backbone, the maps and the image size of the fast recipe. Their losses are of different features, raw
    and normalised ones, so both are judged by the same number, on images that neither trains on: the part of each
    channel's variance that the reconstruction leaves unexplained, as a mean over the channels.

    Args:
        data: Folder of products, as for MultiCategory; generated products if left out.
        epochs: Epochs of the fast recipe.
        paper_minutes: Minutes of training that the paper's recipe gets; it has 1,000 epochs to end its schedule.
        images: Images of an epoch; those of the data are repeated, or left out, to make so many.
        batch_size: Images per step.
        device: "cpu", "cuda", or "auto", which takes a GPU if there is one.
        output_dir: Folder of the results; with quick, the folder "quick" in it.
        seed: Seed of the images held out and of the trainings.
        quick: Small numbers that only show that everything runs.
    """
    if quick:
        epochs, paper_minutes, images, output_dir = 2, 0.02, 16, output_dir / "quick"
    where = find_device(device)
    fast = yaml.safe_load((MODELS / "uniad_fast.yaml").read_text())["init_args"] | (TINY if quick else {})
    paper = yaml.safe_load((MODELS / "uniad.yaml").read_text())["init_args"]
    paper |= TINY if quick else {name: fast[name] for name in FEATURES if name in fast}
    common = {"feature_cache": "off", "resume_interval": 0, "seed": seed, "visualizer": False}
    train, held_out = features_of(UniAD(**{**fast, **common}), data, where, seed)
    train = train[torch.arange(images, device=train.device) % len(train)]
    path = output_dir / "equal_loss.csv"
    for name, arguments, precision, limit in (
        ("fast", fast, "32-true", math.inf),
        ("paper", paper, "bf16-mixed" if where.type == "cuda" else "32-true", 60 * paper_minutes),
    ):
        model = UniAD(**{**arguments, **common, "pre_processor": False, "evaluator": False})
        about = {"recipe": name, "images": images, "batch_size": batch_size, "data": data.name if data else "generated"}
        about |= origin(where, seed)

        def keep(rows: list[dict[str, Any]], about: dict[str, Any] = about) -> None:
            add_rows(path, [{**about, **row} for row in rows], ("device", "recipe", "data"))

        measure = Measure(held_out, limit, keep)
        train_and_measure(model, train, measure, batch_size, where, precision, epochs if name == "fast" else 1000)
    show(path, ("recipe", "epoch", "seconds", "unexplained"))
    summarise(pd.read_csv(path))


def features_of(model: UniAD, data: Path | None, device: torch.device, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, C, h, w) of all normal training images, on the device: to train on, and a tenth that is held out."""
    source = {"source": "SyntheticProducts", "root": "datasets/SyntheticProducts"} if data is None else {"root": data}
    with quiet():
        datamodule = MultiCategory(**source, val_split_mode="same_as_test", eval_batch_size=32, num_workers=4)
        datamodule.prepare_data()
        datamodule.setup()
    loader = DataLoader(datamodule.train_data, 32, num_workers=4, collate_fn=datamodule.train_data.collate_fn)
    model = model.to(device).eval()
    with torch.no_grad():
        found = torch.cat([model.model.extract(model.pre_processor(batch.image.to(device))) for batch in loader])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(found))).to(device)
    return found[order[len(found) // 10 :]], found[order[: len(found) // 10]]


class Measure(Callback):
    """Measures after each epoch, outside of the time that is counted; ends the training after so many seconds."""

    def __init__(self, held_out: torch.Tensor, limit: float, keep: Callable[[list[dict[str, Any]]], None]) -> None:
        self.held_out, self.limit, self.keep = held_out, limit, keep  # what is kept at once outlasts an interruption
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: UniAD) -> None:  # type: ignore[override]
        del trainer
        synchronize(pl_module.device)
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: UniAD) -> None:  # type: ignore[override]
        synchronize(pl_module.device)
        self.seconds += time.perf_counter() - self.start
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "seconds": self.seconds}
        self.rows.append({**row, "unexplained": unexplained(pl_module, self.held_out)})
        self.keep(self.rows)
        trainer.should_stop = self.seconds > self.limit


def unexplained(model: UniAD, features: torch.Tensor) -> float:
    """Part of the variance of features (n, C, h, w) that their reconstruction leaves, as a mean over channels."""
    model.model.eval()
    with torch.no_grad():
        targets = [model.model.normalise(part) for part in features.split(64)]
        errors = [(model.model.reconstruct(target) - target).square() for target in targets]
    model.model.train()
    left, all_of_it = torch.cat(errors).mean(dim=(0, 2, 3)), torch.cat(targets).var(dim=(0, 2, 3))
    varies = all_of_it > 0
    return float((left[varies] / all_of_it[varies]).mean())


def train_and_measure(
    model: UniAD,
    features: torch.Tensor,
    measure: Measure,
    batch_size: int,
    device: torch.device,
    precision: Any,
    epochs: int,
) -> None:
    """Train on features, and measure after each epoch."""
    with quiet():
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=precision,
            max_epochs=epochs,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[measure],
            **model.trainer_arguments,
        )
        trainer.fit(model, datamodule=FeatureBatches(features, batch_size))


def summarise(frame: pd.DataFrame) -> None:
    """Say when the paper's recipe came to the loss at which the fast one was, and what that took."""
    for line in comparison(frame):
        print(line)


def comparison(frame: pd.DataFrame) -> Iterator[str]:
    """A line for each quarter of the fast recipe."""
    for _, rows in frame.groupby(["device", "data"]):
        fast, paper = (rows[rows["recipe"] == name].sort_values("seconds") for name in ("fast", "paper"))
        for at in sorted({math.ceil(len(fast) * quarter / 4) - 1 for quarter in (1, 2, 3, 4)}):
            goal = fast.iloc[at]
            there = paper[paper["unexplained"] <= goal["unexplained"]]
            took = (
                f"{there.iloc[0]['seconds'] / goal['seconds']:.1f} times as long"
                if len(there)
                else (f"not there after {paper['seconds'].iloc[-1] / goal['seconds']:.1f} times as long")
            )
            yield f"unexplained {goal['unexplained']:.4f}: fast {goal['seconds'] / 60:.2f} min, paper {took}"


if __name__ == "__main__":
    auto_cli(equal_loss)
