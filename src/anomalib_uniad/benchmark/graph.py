# SPDX-License-Identifier: Apache-2.0
"""Operations and weights of an exported model, before and after what the export does about them.

    python -m anomalib_uniad.benchmark.graph

Compared are a model with torch's own attention, as torch's exporter writes it; the exported file; and what OpenVINO
makes of that for a batch of fixed size on this processor. The model has the paper's size and random weights.
"""

import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import timm
import torch
from jsonargparse import auto_cli
from torch.nn import functional as F

from anomalib_uniad import UniAD
from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.metrics.table import versions

BEFORE, AFTER, EXECUTED = "torch's attention", "exported", "executed"


def graph(
    backbone: str = "tf_efficientnet_b4", image_size: Sequence[int] = (224, 224), output_dir: Path = Path("results")
) -> None:
    """Export a model with random weights, and count.

    Rows of the same backbone are replaced in ``graph.csv``.

    Args:
        backbone: The backbone's name in timm; its first four maps are used.
        image_size: Height and width, in pixels.
        output_dir: Folder of the csv file.
    """
    model = UniAD(backbone=backbone, pre_trained=False, image_size=list(image_size), seed=0, evaluator=False).eval()
    for name, value in {"min": 0.0, "max": 100.0}.items():  # as if they were learned; nothing is cut off
        for level in ("image", "pixel"):
            getattr(model.post_processor, f"{level}_{name}").fill_(value)
            getattr(model.post_processor, f"_{level}_threshold").fill_(50.0)
    rows = [{**row, "backbone": backbone, "height": image_size[0], "width": image_size[1]} for row in count(model)]
    rows[-1] |= parameters(model, backbone)
    command = shlex.join(["python", "-m", "anomalib_uniad.benchmark.graph", *sys.argv[1:]])
    frame = pd.DataFrame(rows).assign(seed=0, device="cpu", versions=versions(), command=command)
    add_rows(output_dir / "graph.csv", frame, ("backbone",))


def count(model: UniAD) -> list[dict[str, Any]]:
    """Rows for a model: operations of each type, bytes of constants, in the three graphs.

    The row of all operations that are executed has the largest difference of the map from that of torch, as a part of
    the map's range.

    Args:
        model: The model, in evaluation mode.
    """
    import openvino

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch("anomalib_uniad.model.components.attention.masked_attention", _attention_of_torch):
            before = core.read_model(model.to_openvino(folder, "before"))
        after = core.read_model(model.to_openvino(folder, "after"))
        rows = _rows(BEFORE, before) + _rows(AFTER, after)
        after.reshape([1, 3, *model.model.image_size])
        compiled = core.compile_model(after, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        rows += _rows(EXECUTED, compiled.get_runtime_model())
        images = torch.rand(1, 3, *model.model.image_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = model(images).anomaly_map
        exported = torch.from_numpy(compiled(images.numpy())["anomaly_map"])
        rows[-1]["difference"] = ((exported - expected).abs().max() / (expected.max() - expected.min())).item()
        del before, after, compiled  # they read from the folder
    return rows


def parameters(model: UniAD, backbone: str) -> dict[str, int]:
    """Parameters of the backbone: all that timm's feature extractor has, and those that lead to the maps in use.

    Args:
        model: The model.
        backbone: The backbone's name in timm.
    """
    whole = timm.create_model(backbone, features_only=True, pretrained=False)
    sizes = {"backbone_parameters": whole, "backbone_parameters_used": model.model.backbone}
    return {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in sizes.items()}


def _attention_of_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None, dropout: float = 0.0
) -> torch.Tensor:
    del dropout  # nothing is trained
    return F.scaled_dot_product_attention(query.expand_as(key), key, value, attn_mask=visible)


def _rows(graph: str, model: Any) -> list[dict[str, Any]]:
    operations = model.get_ops()
    kinds = Counter(_kind(op) for op in operations)
    constants = [op for op in operations if _kind(op) in {"Constant", "Const"}]
    size = sum(map(_bytes, constants))
    rows = [{"graph": graph, "operation": kind, "count": number, "bytes": None} for kind, number in kinds.most_common()]
    return [*rows, {"graph": graph, "operation": "all", "count": len(operations), "bytes": size}]


def _kind(op: Any) -> str:
    info = op.get_rt_info()
    return str(info["layerType"].value) if "layerType" in info else str(op.get_type_name())


def _bytes(op: Any) -> int:
    shape = op.output(0).get_partial_shape()
    return int(torch.Size(shape.to_shape()).numel()) * op.output(0).get_element_type().size if shape.is_static else 0


if __name__ == "__main__":
    auto_cli(graph)
