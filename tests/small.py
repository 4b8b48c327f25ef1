# SPDX-License-Identifier: Apache-2.0
"""A small UniAD, and an engine that says little."""

from pathlib import Path
from typing import Any

from anomalib.engine import Engine
from lightning.pytorch import Callback

SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "pre_trained": False,
    "image_size": 64,
    "hidden_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "feedforward_dim": 16,
    "neighbor_size": 3,
}


def quiet_engine(folder: Path, *callbacks: Callback, **arguments: Any) -> Engine:
    """Make an engine for one process on the CPU."""
    return Engine(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        logger=False,
        callbacks=list(callbacks),
        **arguments,
    )
