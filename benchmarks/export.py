# SPDX-License-Identifier: Apache-2.0
"""Whether exported files give torch's maps; weights are random, as rounding does not depend on what was learned.

python benchmarks/export.py parity        # image sizes, paddings and batches at the paper's size
python benchmarks/export.py parity --recipe configs/model/uniad_fast.yaml --image_sizes [256] --padding_modes [zeros]
python benchmarks/export.py backbones     # two training steps, export and comparison, backbone after backbone
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino
import torch
import yaml
from anomalib.data import ImageBatch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer
from rich.progress import track
from torch.utils.data import DataLoader

from anomalib_uniad import UniAD
from anomalib_uniad.model.components import NeighborMaskedAttention
from harness import CPU, RESULTS, add_rows, origin, quiet, show

PaddingMode = Literal["zeros", "reflect"]


def parity(
    backbone: str = "tf_efficientnet_b4",
    image_sizes: Sequence[int] = (224, 256, 448),
    padding_modes: Sequence[PaddingMode] = ("zeros", "reflect"),
    batches: Sequence[int] = (1, 8),
    recipe: Path | None = None,
    output_dir: Path = RESULTS,
) -> None:
    """Export models to OpenVINO f32, and compare maps and scores with torch's; writes ``export_parity.csv``.

    Args:
        backbone: The backbone's name in timm; its first four maps are used.
        image_sizes: Sides of the images, in pixels.
        padding_modes: What the backbone's convolutions pad with.
        batches: Images per batch.
        recipe: Config of another model than the paper's with that backbone.
        output_dir: Folder of the csv file.
    """
    path = output_dir / "export_parity.csv"
    for size, mode in track(list(itertools.product(image_sizes, padding_modes)), "Exporting"):
        given = {"backbone": backbone} if recipe is None else yaml.safe_load(recipe.read_text())["init_args"]
        given |= {"image_size": size, "backbone_padding_mode": mode, "pre_trained": False, "seed": 0}
        # Without post-processor, nothing is normalised or cut off.
        model = UniAD(**given, evaluator=False, post_processor=False).eval()
        if model.model.feature_norm is not None:
            features = model.model.extract(torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0)))
            model.model.feature_norm.fill(features.mean((0, 2, 3)), features.std((0, 2, 3)), torch.tensor(8))
        about = {"backbone": given["backbone"], "image_size": size, "padding": mode, **origin(CPU)}
        about |= {"recipe": None if recipe is None else recipe.name}
        rows = [{**row, **about} for row in compare(model, batches)]
        add_rows(path, rows, ("recipe", "backbone", "image_size", "padding", "batch"))
    show(path, ("recipe", "backbone", "image_size", "padding", "batch", "map", "score", "masked", "without_mask"))


def compare(model: UniAD, batches: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows for a model in evaluation mode, one per batch: largest differences, as parts of the range of torch's map.

    ``masked`` is the number of attentions in the file that have a mask, ``without_mask`` by how much the map would
    differ if torch's model had none.
    """
    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        read = core.read_model(model.to_openvino(folder))
        masked = sum(op.get_type_name() == "ScaledDotProductAttention" and has_mask(op) for op in read.get_ops())
        compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for batch in batches:
            images = torch.rand(batch, 3, *model.model.image_size, generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                expected, unmasked = model(images), map_without_mask(model, images)
            outputs = compiled(images.numpy())
            span = np.ptp(expected.anomaly_map.numpy())
            yield {
                "batch": batch,
                "map": largest(outputs["anomaly_map"], expected.anomaly_map) / span,
                "score": largest(outputs["pred_score"], expected.pred_score) / span,
                "masked": masked,
                "without_mask": largest(unmasked.numpy(), expected.anomaly_map) / span,
            }
        del read, compiled  # they read from the folder


def has_mask(attention: Any) -> bool:
    """Whether the mask of an operation is a constant that hides something."""
    if attention.get_input_size() < 4:
        return False
    mask = attention.input_value(3).get_node()
    return mask.get_type_name() == "Constant" and bool(np.isneginf(mask.get_data()).any())


def map_without_mask(model: UniAD, images: torch.Tensor) -> torch.Tensor:
    """The map of a model if nothing is hidden from its tokens."""
    masks = {m: m.visible for m in model.modules() if isinstance(m, NeighborMaskedAttention)}
    try:
        for module in masks:
            module.visible = None
        return model(images).anomaly_map
    finally:
        for module, mask in masks.items():
            module.visible = mask


def largest(found: np.ndarray, expected: torch.Tensor) -> float:
    """Largest difference."""
    return float(np.abs(found - expected.numpy()).max())


# Backbone -> layers, pixels per token.
BACKBONES: dict[str, tuple[list[int], int]] = {
    **{f"tf_efficientnet_b{number}": ([0, 1, 2, 3], 16) for number in range(7)},
    "tf_efficientnet_lite0": ([0, 1, 2, 3, 4], 16),
    "efficientnet_b4": ([0, 1, 2, 3], 16),
    **{name: ([1, 2, 3], 16) for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")},
    "mobilenetv2_100": ([0, 1, 2, 3], 16),
    "convnext_tiny": ([0, 1, 2], 16),
    "vit_small_patch14_dinov2": ([11], 14),
}
SIZES = ((224, 224), (256, 256), (320, 320), (224, 320))


def backbones(
    names: Sequence[str] = tuple(BACKBONES), sizes: Sequence[Sequence[int]] = SIZES, output_dir: Path = RESULTS
) -> None:
    """Take UniAD through training, export to OpenVINO in f32 and comparison with each backbone; ``backbones.csv``.

    Args:
        names: Backbones of :data:`BACKBONES`.
        sizes: Heights and widths in pixels. For a backbone with other pixels per token, the nearest multiples.
        output_dir: Folder of the csv file.
    """
    path = output_dir / "backbones.csv"
    for name, size in track(list(itertools.product(names, sizes)), "Backbones"):
        layers, stride = BACKBONES[name]
        image_size = [round(side / stride) * stride for side in size]
        # Reflection once, where the size is not square; transformers pad nothing.
        reflect: list[PaddingMode] = ["reflect"] if size[0] != size[1] and not name.startswith("vit") else []
        for mode in ("zeros", *reflect):
            row = {**check_backbone(name, layers, image_size, stride, mode), "epochs": 0, **origin(CPU)}
            add_rows(path, [row], ("backbone", "height", "width", "padding_mode"))
    show(path, ("backbone", "height", "width", "padding_mode", "loss", "loss_after_step", "openvino_difference"))


def check_backbone(
    name: str, layers: Sequence[int], image_size: Sequence[int], stride: int, padding_mode: PaddingMode
) -> dict[str, Any]:
    """Take one small model through two steps and export; the difference is that of :func:`compare`."""
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
        hidden_dim=64,
        num_encoder_layers=1,
        num_decoder_layers=1,
        feedforward_dim=128,
        neighbor_size=3,
        dropout=0.0,
        jitter_probability=0.0,  # so that the loss tells what the step has changed
        seed=0,
    )
    height, width = image_size
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    batch: Any = ImageBatch(image=images, gt_label=torch.zeros(2, dtype=torch.bool))
    losses = []
    for _ in range(2):  # the second time to see what the first step has changed
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **model.trainer_arguments,
        )
        with quiet():
            trainer.fit(model, DataLoader([batch], batch_size=None))
        losses.append(trainer.callback_metrics["train_loss"].item())
    ((row),) = compare(model.eval(), [1])
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
        "openvino_difference": row["map"],
    }


if __name__ == "__main__":
    auto_cli([parity, backbones])
