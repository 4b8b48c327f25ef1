# SPDX-License-Identifier: Apache-2.0
"""Two processes that train together from cached features; each writes what it saw as JSON.

Usage: ``python feature_cache_worker.py <port> <data> <folder>``.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import torch  # noqa: E402
from anomalib.data import MVTecAD  # noqa: E402
from lightning.pytorch import Callback, Trainer  # noqa: E402

from anomalib_uniad import UniAD, UniADModel  # noqa: E402


class Seen(Callback):
    """Notes the images of the training batches, and how many images were embedded."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.extracted = 0
        self.kinds: set[str] = set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.paths += batch.image_path
        self.kinds.add(type(batch).__name__)


def main(rank: int, port: str, data: str, folder: Path) -> None:
    """Train for two epochs."""
    signal.alarm(120)  # ends a process that waits for ever, also in C++
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"NODE_RANK": "0", "RANK": str(rank)}
    seen, extract = Seen(), UniADModel.extract

    def counted(self, images):
        seen.extracted += len(images)
        return extract(self, images)

    UniADModel.extract = counted
    model = UniAD(
        "resnet18",
        pre_trained=False,
        image_size=64,
        hidden_dim=16,
        num_heads=2,
        neighbor_size=3,
        seed=1,
        feature_cache="disk",
        feature_cache_dir=folder / "features",
        resume_interval=0,
        visualizer=False,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        callbacks=[seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    datamodule = MVTecAD(root=data, category="bottle", train_batch_size=2, eval_batch_size=2, num_workers=0)
    trainer.fit(model, datamodule=datamodule)
    weight = float(model.model.transformer.output_projection.weight.sum())
    result = {"paths": seen.paths, "extracted": seen.extracted, "kinds": sorted(seen.kinds), "weight": weight}
    (folder / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked: what takes seconds to import is imported once.
    arguments = (*sys.argv[1:3], Path(sys.argv[3]))
    torch.multiprocessing.start_processes(main, arguments, nprocs=2, start_method="fork")
