# SPDX-License-Identifier: Apache-2.0
"""Takes UniAD through its whole path with one backbone after the other: a training step, export, inference.

    python -m anomalib_uniad.benchmark.backbones

The backbones have random weights, so nothing is downloaded; the maps of an exported model are compared with torch's.
"""

import logging
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import torch
from anomalib.data import ImageBatch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from anomalib_uniad import UniAD
from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.metrics.run_files import versions
from anomalib_uniad.model.components.padding import PaddingMode

logger = logging.getLogger(__name__)

# Backbone -> layers, pixels per token.
BACKBONES: dict[str, tuple[list[int], int]] = {
    **{f"tf_efficientnet_b{number}": ([0, 1, 2, 3], 16) for number in range(7)},
    "efficientnet_b4": ([0, 1, 2, 3], 16),
    **{name: ([1, 2, 3], 16) for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")},
    "mobilenetv2_100": ([0, 1, 2, 3], 16),
    "convnext_tiny": ([0, 1, 2], 16),
    "vit_small_patch14_dinov2": ([11], 14),
}
SIZES = ((224, 224), (256, 256), (320, 320), (224, 320))
SMALL: dict[str, Any] = {
    "hidden_dim": 64,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "feedforward_dim": 128,
    "neighbor_size": 3,
    "dropout": 0.0,
    "jitter_probability": 0.0,  # so that the loss tells what the step has changed
    "seed": 0,
}


def backbones(
    names: Sequence[str] | None = None, sizes: Sequence[Sequence[int]] | None = None, output_dir: Path = Path("results")
) -> None:
    """Train a step, export to OpenVINO in f32, compare.

    Rows of the same backbone, image size and padding are replaced in ``<output_dir>/backbones.csv``.

    Args:
        names: Backbones of :data:`BACKBONES`; default: all.
        sizes: Heights and widths in pixels; default: 224, 256 and 320 squared, and 224 x 320. For a backbone with other
            pixels per token, the nearest multiples.
        output_dir: Folder of the csv file.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in names or BACKBONES:
        layers, stride = BACKBONES[name]
        for size in sizes or SIZES:
            image_size = [round(side / stride) * stride for side in size]
            # Reflection once, where the size is not square; transformers pad nothing.
            both: tuple[PaddingMode, ...] = get_args(PaddingMode)
            for mode in both if size[0] != size[1] and not name.startswith("vit") else both[:1]:
                row = check(name, layers, image_size, stride, mode)
                command = shlex.join(["python", "-m", "anomalib_uniad.benchmark.backbones", *sys.argv[1:]])
                frame = pd.DataFrame([{**row, "device": "cpu", "versions": versions(), "command": command}])
                same = ("backbone", "height", "width", "padding_mode")
                add_rows(output_dir / "backbones.csv", frame, same)
                logger.info("%s", row)


def check(
    name: str, layers: Sequence[int], image_size: Sequence[int], stride: int, padding_mode: PaddingMode
) -> dict[str, Any]:
    """Take one model through the whole path.

    Args:
        name: The backbone.
        layers: Its maps.
        image_size: Height and width, in pixels.
        stride: Pixels per token.
        padding_mode: What the backbone's convolutions pad with.

    Returns:
        dict[str, Any]: What was found: the loss before and after the step, and the largest difference between the maps
        of the exported model and of torch, as a part of the map's range.
    """
    import openvino

    model = UniAD(
        backbone=name,
        layers=layers,
        pre_trained=False,
        image_size=list(image_size),
        feature_stride=stride,
        backbone_padding_mode=padding_mode,
        post_processor=False,
        evaluator=False,
        visualizer=False,
        **SMALL,
    )
    height, width = image_size
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    batch = ImageBatch(image=images, gt_label=torch.zeros(2, dtype=torch.bool))
    losses = []
    for _ in range(2):  # the second time to see what the first step has changed
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[cast("Callback", model.pre_processor)],
            gradient_clip_val=model.gradient_clip_norm,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(cast("Any", [batch]), batch_size=None))
        losses.append(trainer.callback_metrics["train_loss"].item())
    model = model.eval()
    with torch.no_grad():
        expected = model(images[:1]).anomaly_map.numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = model.to_openvino(folder)
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        exported = compiled(images[:1].numpy())["anomaly_map"]
    return {
        "backbone": name,
        "layers": list(layers),
        "channels": sum(model.model.backbone.channels),
        "height": height,
        "width": width,
        "padding_mode": padding_mode,
        "tokens": height * width // stride**2,
        "backbone_parameters": sum(parameter.numel() for parameter in model.model.backbone.parameters()),
        "loss": losses[0],
        "loss_after_step": losses[1],
        "openvino_difference": float(np.abs(exported - expected).max() / np.ptp(expected)),
        "seed": SMALL["seed"],
        "epochs": 0,
    }


if __name__ == "__main__":
    auto_cli(backbones)
