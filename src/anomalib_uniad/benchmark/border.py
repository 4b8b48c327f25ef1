# SPDX-License-Identifier: Apache-2.0
"""What padding by reflection buys: anomaly scores of normal images at the border against the inside.

    python -m anomalib_uniad.benchmark.border configs/benchmark/border-uniad.yaml zeros.ckpt reflect.ckpt

The two checkpoints are of the same recipe and seed, trained with ``backbone_padding_mode`` zeros and reflect. Each is
tested with both fillings, so that rows also tell the effect on the same weights.
"""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.cli.cli import AnomalibCLI
from jsonargparse import auto_cli
from torchmetrics.functional.classification import binary_auroc

from anomalib_uniad.benchmark.mean_image import extract
from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.metrics.run_files import versions

MODES = ("zeros", "reflect")


def border(recipe: Path, zeros: Path, reflect: Path, output_dir: Path = Path("results")) -> None:
    """Compare the border of anomaly maps of normal test images with their inside.

    The border is the ring of pixels that are nearer to the edge than one token. Writes ``border.csv`` and
    ``border.png``.

    Args:
        recipe: Config for ``anomalib train`` that both were trained with.
        zeros: Checkpoint of the training with zeros.
        reflect: Checkpoint of the training with reflection.
        output_dir: Folder of the files.
    """
    cli = AnomalibCLI(["fit", "--config", str(recipe)], run=False)
    datamodule = cli.datamodule
    datamodule.prepare_data()
    datamodule.setup()
    rows: list[dict[str, Any]] = []
    maps: dict[tuple[str, str, str], np.ndarray] = {}
    for trained, path in zip(MODES, (zeros, reflect), strict=True):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for tested in MODES:
            arguments = {**checkpoint["hyper_parameters"], "pre_trained": False, "backbone_padding_mode": tested}
            model = type(cli.model)(**arguments, evaluator=False, visualizer=False, post_processor=False).eval()
            network = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith("model.")}
            model.load_state_dict(network, strict=False)
            features, categories, labels, masks = extract(model, datamodule, datamodule.test_dataloader())
            with torch.no_grad():
                prediction = model.model.predict(features)
            ring = border_ring(prediction.anomaly_map.shape[2:], arguments["feature_stride"])
            for name in dict.fromkeys(categories):
                of = torch.from_numpy(categories == name)
                normal = prediction.anomaly_map[of & (labels == 0), 0]  # (M, H, W)
                maps[trained, tested, name] = normal.mean(dim=0).numpy()
                at_border, inside = normal[:, ring].mean().item(), normal[:, ~ring].mean().item()
                rows.append(
                    {
                        "trained_with": trained,
                        "tested_with": tested,
                        "category": name,
                        "border": at_border,
                        "inside": inside,
                        "ratio": at_border / inside,
                        "image_AUROC": binary_auroc(prediction.pred_score[of], labels[of]).item(),
                        "pixel_AUROC": binary_auroc(prediction.anomaly_map[of].flatten(), masks[of].flatten()).item(),
                        "epochs": checkpoint["epoch"] + 1,
                        "seed": arguments["seed"],
                    }
                )
    checkpoints = [f"{mode}.ckpt" for mode in MODES]  # without the folders of the machine
    command = shlex.join(["python", "-m", "anomalib_uniad.benchmark.border", str(recipe), *checkpoints])
    frame = pd.DataFrame(rows).assign(device="cpu", versions=versions(), command=command)
    add_rows(output_dir / "border.csv", frame, ("trained_with", "tested_with", "category", "seed"))
    draw(maps, output_dir / "border.png")


def border_ring(size: tuple[int, ...], width: int) -> torch.Tensor:
    """Mark the pixels near the edge.

    Args:
        size: Height and width, in pixels.
        width: How near, in pixels.

    Returns:
        torch.Tensor: (H, W), bool.

    Example:
        >>> border_ring((4, 4), 1).int().sum().item()
        12
    """
    ring = torch.ones(*size, dtype=torch.bool)
    ring[width:-width, width:-width] = False
    return ring


def profile(anomaly_map: np.ndarray) -> np.ndarray:
    """Mean of a map over all pixels of the same distance to the edge.

    Args:
        anomaly_map: (H, W).

    Returns:
        np.ndarray: (min(H, W) // 2,), from the edge inwards.

    Example:
        >>> profile(np.pad(np.zeros((2, 2)), 1, constant_values=3.0))
        array([3., 0.])
    """
    height, width = anomaly_map.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    distance = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    return np.array([anomaly_map[distance == step].mean() for step in range(min(height, width) // 2)])


def draw(maps: dict[tuple[str, str, str], np.ndarray], path: Path) -> None:
    """Draw the mean map of normal images of each category, and its profile from the edge inwards.

    Args:
        maps: Filling in training, in the test, and category -> mean map (H, W).
        path: The image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
    from matplotlib.figure import Figure

    categories = list(dict.fromkeys(category for _, _, category in maps))
    figure = Figure(figsize=(10, 3 * len(categories)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(categories), 3, squeeze=False)
    for row, category in zip(axes, categories, strict=True):
        both = [maps[mode, mode, category] / np.median(maps[mode, mode, category]) for mode in MODES]
        highest = max(map(np.max, both))
        for place, mode, relative in zip(row, MODES, both, strict=False):
            image = place.imshow(relative, vmin=0, vmax=highest, cmap="magma")
            place.set(title=f"{category}, {mode}", xticks=[], yticks=[])
            figure.colorbar(image, ax=place, shrink=0.8)
            row[2].plot(profile(relative), label=mode)
        row[2].set(xlabel="distance to the edge, px", ylabel="mean score / median", ylim=(0, None))
        row[2].legend()
    figure.suptitle("Mean anomaly map of normal test images, in units of its median")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    auto_cli(border)
