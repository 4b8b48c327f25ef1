# SPDX-License-Identifier: Apache-2.0
"""Two processes that train and test on products with and without masks; only one of them sees an image with a mask.

Usage: ``python mixed_worker.py <port> <data> <folder>``.
"""

import os
import signal
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import torch  # noqa: E402
from lightning.pytorch import Trainer  # noqa: E402

from anomalib_uniad import UniAD  # noqa: E402
from mixed_products import MixedProducts  # noqa: E402
from small import SMALL  # noqa: E402


def main(rank: int, port: str, data: str, folder: Path) -> None:
    """Train for one epoch from cached features, and test."""
    signal.alarm(120)  # ends a process that waits for ever, also in C++
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"NODE_RANK": "0", "RANK": str(rank)}
    model = UniAD(**SMALL, seed=1, feature_cache="memory", resume_interval=0, visualizer=False)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, default_root_dir=folder, barebones=False, **quiet
    )
    datamodule = MixedProducts(Path(data), batch_size=2)
    trainer.fit(model, datamodule=datamodule)
    trainer.test(model, datamodule=datamodule, verbose=False)
    if rank == 0:
        torch.save(model.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked: what takes seconds to import is imported once.
    arguments = (*sys.argv[1:3], Path(sys.argv[3]))
    torch.multiprocessing.start_processes(main, arguments, nprocs=2, start_method="fork")
